//! Circuit breakers and outlier ejection.
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::process::eventually;
use crate::world::{RECOMMENDATION, document, rules, subsets_with, to};

exercises!("breaking": overflow_names_its_cause, overflow_protects_the_service, ejection_empties_a_failing_pod_and_it_returns, ejection_for_gateway_errors_only);

fn breaker() -> String {
    let pool = ", trafficPolicy: {connectionPool: {http: {http1MaxPendingRequests: 1, http2MaxRequests: 1, maxRequestsPerConnection: 1}, tcp: {maxConnections: 1}}}";
    subsets_with(pool) + &rules("recommendation", &format!("{{retries: {{attempts: 0}}, {}}}", to("v1")))
}

fn overflow_names_its_cause(mesh: &Mesh) {
    mesh.apply(&breaker());
    mesh.slow_down("recommendation-v1", 300);
    let load = mesh.from("customer").start_load(RECOMMENDATION, &["--rps", "60", "--connections", "30", "--duration", "20s"]);
    settles("an answer names the overflow", || {
        let answer = mesh.from("customer").get(RECOMMENDATION);
        answer.ensure_status(503)?;
        let text = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
        ensure!(answer.body.contains(text), "{answer:?}");
        check!(answer.header("x-envoy-overloaded") == Some("true"), "{answer:?}")
    });
    load.stop();
}

fn overflow_protects_the_service(mesh: &Mesh) {
    mesh.apply(&breaker());
    mesh.slow_down("recommendation-v1", 100);
    settles("some are served, the others refused at once", || {
        let report = mesh.from("customer").load_with(RECOMMENDATION, 100, &["--rps", "100", "--connections", "50"])?;
        ensure!(report.status(200) > 0 && report.status(503) > 20, "{:#}", report.0);
        check!(report.status(200) + report.status(503) == 100, "{:#}", report.0)
    });
    mesh.behave("recommendation-v1");
}

fn ejecting(condition: &str) -> String {
    let policy = format!(
        "host: recommendation, trafficPolicy: {{outlierDetection: {{{condition}, interval: 1s, baseEjectionTime: 4s, maxEjectionPercent: 100}}}}"
    );
    document("DestinationRule", "recommendation", &policy)
        + &rules("recommendation", "{retries: {attempts: 0}, route: [{destination: {host: recommendation}}]}")
}

fn ejection_empties_a_failing_pod_and_it_returns(mesh: &Mesh) {
    mesh.apply(&ejecting("consecutive5xxErrors: 3"));
    mesh.misbehave("recommendation-v2", 500);
    settles("the failing pod is out: nobody meets it", || {
        let report = mesh.from("customer").load(RECOMMENDATION, 60)?;
        report.ensure_clean()?.share("recommendation", "v2").ensure_none()
    });
    mesh.behave("recommendation-v2");
    let since = Instant::now();
    eventually("the pod is back", Duration::from_secs(30), || {
        let report = mesh.from("customer").load(RECOMMENDATION, 60)?;
        report.ensure_clean()?;
        check!(report.share("recommendation", "v2").hits > 0, "not yet, {:?} after it behaves", since.elapsed())
    });
}

fn ejection_for_gateway_errors_only(mesh: &Mesh) {
    // 500 is none: the pod stays, and callers go on seeing its failures.
    mesh.apply(&ejecting("consecutiveGatewayErrors: 3, consecutive5xxErrors: 0"));
    mesh.misbehave("recommendation-v2", 500);
    settles("500 ejects nobody", || mesh.from("customer").load(RECOMMENDATION, 200)?.status_share(500).ensure_near(0.5));
    mesh.misbehave("recommendation-v2", 502);
    settles("502 ejects", || mesh.from("customer").load(RECOMMENDATION, 60)?.share("recommendation", "v2").ensure_none());
    // Without the rule nobody is kept out, whatever was left of the ejection.
    mesh.reset();
    settles("both versions answer", || {
        let report = mesh.from("customer").load(RECOMMENDATION, 60)?;
        report.ensure_clean()?.share("recommendation", "v2").ensure_near(0.5)
    });
}
