//! Who is whom: mutual TLS by default and by policy, what is on the wire, SPIFFE ids.
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::world::{PREFERENCE, RECOMMENDATION, peer_authentication, rules, subsets_with, to};

exercises!("identity": permissive_serves_both, strict_refuses_plaintext, the_wire_shows_tls13_only, caller_and_callee_are_service_accounts,
    the_certificate_names_the_service_account);

fn permissive_serves_both(mesh: &Mesh) {
    settles("a caller without a sidecar is served by default", || mesh.from("stranger").get(RECOMMENDATION).ensure_status(200).map(drop));
    mesh.from("customer").get(RECOMMENDATION).ensure_status(200).unwrap();
}

fn strict_refuses_plaintext(mesh: &Mesh) {
    mesh.apply(&peer_authentication("STRICT"));
    settles("the stranger is refused", || {
        let answer = mesh.from("stranger").get(RECOMMENDATION);
        check!(answer.status == 0, "{answer:?}")
    });
    // And goes on being refused, by name and by address, while the mesh's own are served.
    let address = format!("http://{}:8080/", mesh.pod_address("recommendation-v1", false));
    for url in [RECOMMENDATION, PREFERENCE, &address] {
        let answer = mesh.from("stranger").get(url);
        assert_eq!(answer.status, 0, "{url}: {answer:?}");
    }
    mesh.from("customer").load(PREFERENCE, 50).unwrap().ensure_clean().unwrap();
    mesh.apply(&peer_authentication("PERMISSIVE"));
    settles("PERMISSIVE lets the stranger in again", || mesh.from("stranger").get(RECOMMENDATION).ensure_status(200).map(drop));
}

const MARKER: &str = "in-nobodys-sight";

/// What is on recommendation-v1's wire while somebody calls it with a marker in a header.
fn listen(mesh: &Mesh, caller: &str) -> anyhow::Result<Value> {
    let listener = mesh.from("recommendation-v1").start_probe(&["wire", "8080", MARKER, "3"]);
    let (_, first) = listener.line(Duration::from_secs(10)).context("the listener does not start")?;
    ensure!(first == "listening", "{first}");
    let header = format!("x-marker: {MARKER}");
    let report = mesh.from(caller).load_with(RECOMMENDATION, 20, &["--no-keepalive", "-H", &header])?;
    report.ensure_clean()?.share("recommendation", "v1").ensure_all()?;
    let output = listener.finish(Duration::from_secs(15));
    serde_json::from_str(&output.out).with_context(|| format!("{output:?}"))
}

fn the_wire_shows_tls13_only(mesh: &Mesh) {
    // A new connection for every request, so that handshakes are seen.
    let policy = ", trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}";
    let rule = rules("recommendation", &format!("{{{}}}", to("v1")));
    mesh.apply(&(subsets_with(policy) + &rule + &peer_authentication("STRICT")));
    settles("the rules hold", || {
        ensure!(mesh.from("stranger").get(RECOMMENDATION).status == 0, "not strict yet");
        mesh.from("customer").load(RECOMMENDATION, 10)?.share("recommendation", "v1").ensure_all()
    });
    let seen = listen(mesh, "customer").unwrap();
    assert!(seen["server_hellos"].as_u64() > Some(0) && seen["tls13"] == seen["server_hellos"], "every handshake chooses TLS 1.3: {seen}");
    assert!(seen["application_data"].as_u64() >= Some(20), "{seen}");
    assert_eq!((&seen["marker"], &seen["not_tls"]), (&Value::from(0), &Value::from(0)), "plaintext on the wire: {seen}");
}

fn caller_and_callee_are_service_accounts(mesh: &Mesh) {
    settles("the callee is told who calls whom", || {
        let certificate = mesh.from("customer").get(RECOMMENDATION).saw("/headers/x-forwarded-client-cert")?;
        ensure!(certificate.contains("By=spiffe://cluster.local/ns/default/sa/recommendation"), "{certificate}");
        check!(certificate.contains("URI=spiffe://cluster.local/ns/default/sa/customer"), "{certificate}")
    });
    // A caller cannot say so itself.
    settles("the stranger is served", || mesh.from("stranger").get(RECOMMENDATION).ensure_status(200).map(drop));
    let forged = mesh
        .from("stranger")
        .ask(RECOMMENDATION, &["-H", "x-forwarded-client-cert: By=x;URI=spiffe://cluster.local/ns/default/sa/customer"]);
    let seen = forged.json().unwrap()["headers"]["x-forwarded-client-cert"].clone();
    assert!(seen.is_null(), "a forged identity is passed on: {seen}");
}

fn the_certificate_names_the_service_account(mesh: &Mesh) {
    if mesh.outside().run("sh", &["-c", "command -v openssl"]).code != 0 {
        return eprintln!("skipped: there is no openssl to ask");
    }
    let address = mesh.pod_address("recommendation-v1", false);
    // No certificate of one's own: the handshake fails after the server has shown its.
    let show = format!(
        "openssl s_client -connect {address}:8080 -alpn istio -showcerts </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName"
    );
    settles("openssl sees the SPIFFE id", || {
        let output = mesh.from("stranger").run("sh", &["-c", &show]);
        check!(output.out.contains("URI:spiffe://cluster.local/ns/default/sa/recommendation"), "{output:?}")
    });
}
