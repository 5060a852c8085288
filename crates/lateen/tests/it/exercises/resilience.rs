//! Timeouts and retries.
use std::time::Duration;

use anyhow::ensure;

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::world::{RECOMMENDATION, routes, to};

exercises!("resilience": timeout, retries_hide_a_failing_version, no_attempts_no_retries, default_retries, per_try_timeout, not_everything_is_retried);

const BOTH: &str = "route: [{destination: {host: recommendation}}]";

fn timeout(mesh: &Mesh) {
    mesh.apply(&routes(&format!("{{timeout: 0.4s, {}}}", to("v1"))));
    settles("a late answer is given up", || {
        let answer = mesh.from("customer").get("http://recommendation:8080/delay/3000");
        answer.ensure_status(504)?;
        ensure!(answer.body.trim_end() == "upstream request timeout", "{answer:?}");
        check!(answer.took < Duration::from_secs(2), "only after {:?}", answer.took)
    });
    assert_eq!(mesh.from("customer").get("http://recommendation:8080/delay/50").status, 200, "an answer in time is passed on");
}

/// The share of 503 that callers see of 200 requests while v2 always fails.
fn failures<'a>(mesh: &'a Mesh, rule: &str) -> impl Fn() -> anyhow::Result<crate::report::Share> + use<'a> {
    mesh.apply(&routes(rule));
    mesh.misbehave("recommendation-v2", 503);
    move || Ok(mesh.from("customer").load(RECOMMENDATION, 200)?.status_share(503))
}

fn retries_hide_a_failing_version(mesh: &Mesh) {
    let failed = failures(mesh, &format!("{{retries: {{attempts: 3, perTryTimeout: 2s, retryOn: 5xx}}, {BOTH}}}"));
    settles("no caller sees a failure", || failed()?.ensure_none());
    let tried = mesh.from("recommendation-v2").stats().unwrap()["failed"].as_u64().unwrap_or(0);
    assert!(tried > 0, "the failing version was tried");
}

fn no_attempts_no_retries(mesh: &Mesh) {
    let failed = failures(mesh, &format!("{{retries: {{attempts: 0}}, {BOTH}}}"));
    settles("half of the callers see the failure", || failed()?.ensure_near(0.5));
}

fn default_retries(mesh: &Mesh) {
    // Since Istio 1.24 a 503 of the service itself is not retried unless a rule says so: the request may have done something.
    let failed = failures(mesh, &format!("{{{BOTH}}}"));
    settles("half of the callers see the service's own 503", || failed()?.ensure_near(0.5));
}

fn per_try_timeout(mesh: &Mesh) {
    mesh.apply(&routes(&format!("{{retries: {{attempts: 2, perTryTimeout: 300ms, retryOn: '5xx'}}, timeout: 5s, {BOTH}}}")));
    mesh.slow_down("recommendation-v2", 3000);
    settles("a slow version is given up for the other", || {
        let report = mesh.from("customer").load_with(RECOMMENDATION, 60, &["--connections", "60"])?;
        report.ensure_clean()?.share("recommendation", "v1").ensure_all()
    });
}

fn not_everything_is_retried(mesh: &Mesh) {
    mesh.apply(&routes(&format!("{{retries: {{attempts: 3, retryOn: 'gateway-error,connect-failure'}}, {BOTH}}}")));
    mesh.misbehave("recommendation-v2", 500);
    settles("500 is no gateway error", || mesh.from("customer").load(RECOMMENDATION, 200)?.status_share(500).ensure_near(0.5));
}
