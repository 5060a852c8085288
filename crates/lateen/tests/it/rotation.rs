//! Certificates that end within seconds, renewed under traffic in which every request is a new TLS connection.
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::exercises::exercises;
use crate::mesh::{Mesh, Place, settles};
use crate::process::eventually;
use crate::report::Report;

exercises!("rotation": certificates_are_renewed_under_load);

/// Both ends get certificates for this long; they are renewed at about half of it.
const LIFETIME: &str = "16s";

/// A caller and a callee, and a rule that gives every request a connection of its own.
fn pair() -> String {
    let deployment = |name: &str| {
        format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata:
      labels: {{app: {name}, version: v1}}
      annotations: {{proxy.istio.io/config: '{{\"proxyMetadata\": {{\"SECRET_TTL\": \"{LIFETIME}\"}}}}'}}
    spec:
      containers:
      - {{name: app, image: lateen/app, args: [--name, {name}], ports: [{{containerPort: 8080}}]}}
---
"
        )
    };
    deployment("brief-caller")
        + &deployment("brief-callee")
        + "apiVersion: v1
kind: Service
metadata: {name: brief-callee}
spec: {selector: {app: brief-callee}, ports: [{name: http, port: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: brief-callee}
spec: {host: brief-callee, trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}}
---
"
}

/// The serial number of the workload's certificate in force.
fn serial(place: &Place<'_>) -> anyhow::Result<String> {
    let page: Value = serde_json::from_str(&place.get("http://127.0.0.1:15000/certs").body)?;
    let mut chains = page["certificates"].as_array().context("certificates")?.iter().filter_map(|c| c["cert_chain"].get(0));
    let own = chains.find(|c| c["subject_alt_names"][0]["uri"].as_str().is_some_and(|uri| uri.starts_with("spiffe://")));
    Ok(own.context("no certificate of the workload")?["serial_number"].as_str().context("serial_number")?.to_owned())
}

fn certificates_are_renewed_under_load(mesh: &Mesh) {
    mesh.apply(&pair());
    eventually("the pair is ready", Duration::from_secs(60), || mesh.all_ready());
    let url = "http://brief-callee:8080/";
    settles("the pair serves", || mesh.from("brief-caller").load(url, 30)?.ensure_clean().map(drop));
    let load = mesh.from("brief-caller").start_load(url, &["--rps", "50", "--connections", "8", "--duration", "300s"]);
    let callee = mesh.from("brief-callee");
    let mut seen = vec![serial(&callee).unwrap()];
    eventually("the callee's certificate is renewed three times", Duration::from_secs(60), || {
        let now = serial(&callee)?;
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        ensure!(seen.len() > 3, "{} renewals so far", seen.len() - 1);
        Ok(())
    });
    let report = Report::read(&load.stop()).unwrap();
    println!("{} requests over {} certificates", report.count("scheduled"), seen.len());
    report.ensure_clean().unwrap();
}
