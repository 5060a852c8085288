//! The proxies' own pages, and what the control plane knows of them: configuration was accepted everywhere.
use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::exercises::exercises;
use crate::mesh::{Mesh, settles};
use crate::world::{RECOMMENDATION, routes, to};

exercises!("admin": pages_in_envoys_form, every_proxy_has_accepted_everything);

fn page(mesh: &Mesh, path: &str) -> anyhow::Result<String> {
    let answer = mesh.from("customer").get(&format!("http://127.0.0.1:15000/{path}"));
    answer.ensure_status(200)?;
    Ok(answer.body)
}

fn pages_in_envoys_form(mesh: &Mesh) {
    mesh.apply(&routes(&format!("{{{}}}", to("v2"))));
    settles("the clusters of the subsets are there", || {
        let clusters = page(mesh, "clusters")?;
        check!(clusters.contains("outbound|8080|v2|recommendation.default.svc.cluster.local::"), "{clusters}")
    });
    mesh.from("customer").load(RECOMMENDATION, 20).unwrap().ensure_clean().unwrap();
    let dump: Value = serde_json::from_str(&page(mesh, "config_dump").unwrap()).unwrap();
    let kinds: Vec<&str> = dump["configs"].as_array().unwrap().iter().filter_map(|c| c["@type"].as_str()).collect();
    for kind in ["BootstrapConfigDump", "ClustersConfigDump", "ListenersConfigDump", "RoutesConfigDump"] {
        assert!(kinds.contains(&format!("type.googleapis.com/envoy.admin.v3.{kind}").as_str()), "no {kind} in {kinds:?}");
    }
    assert!(dump.to_string().contains("outbound|8080|v2|recommendation.default.svc.cluster.local"));
    // Private keys never leave the proxy.
    assert!(!dump.to_string().contains("PRIVATE KEY"));
    assert!(page(mesh, "listeners").unwrap().contains(":15006"));
    assert!(page(mesh, "stats").unwrap().lines().any(|l| l.contains(": ")));
    assert!(page(mesh, "ready").unwrap().contains("LIVE"));
    let metrics = page(mesh, "stats/prometheus").unwrap();
    if mesh.is_envoy() {
        // Istio's own metrics come from a filter that the stock Envoy does not have.
        return assert!(metrics.contains("envoy_cluster_upstream_rq_total"), "{}", &metrics[..metrics.len().min(4000)]);
    }
    let counted = metrics
        .lines()
        .find(|l| l.starts_with("istio_requests_total{") && l.contains("destination_version=\"v2\"") && l.contains("reporter=\"source\""));
    assert!(counted.is_some(), "no istio_requests_total for v2 in\n{}", &metrics[..metrics.len().min(4000)]);
}

/// The control plane's view: no proxy has refused anything, now or before.
fn every_proxy_has_accepted_everything(mesh: &Mesh) {
    settles("every proxy has everything", || {
        let body = mesh.control_plane().get("http://127.0.0.1:8080/debug/syncz").body;
        let proxies: Value = serde_json::from_str(&body).context(body)?;
        let proxies = proxies.as_array().context("a list")?;
        ensure!(proxies.len() >= 5, "{} proxies", proxies.len());
        for proxy in proxies {
            for of_type in proxy["types"].as_array().context("types")? {
                let state = of_type["state"].as_str().unwrap_or_default();
                ensure!(state == "SYNCED" || state == "NOT SENT", "{}: {of_type:#}", proxy["proxy"]);
            }
        }
        Ok(())
    });
    let metrics = mesh.control_plane().get("http://127.0.0.1:15014/metrics").body;
    assert!(metrics.contains("pilot_xds "), "no metrics: {metrics}");
    let rejected: Vec<&str> = metrics.lines().filter(|l| l.starts_with("pilot_total_xds_rejects") && !l.ends_with(" 0")).collect();
    assert!(rejected.is_empty(), "{rejected:?}");
}
