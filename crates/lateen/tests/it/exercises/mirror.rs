//! Mirrored traffic: copies arrive, and callers see nothing of them.
use anyhow::ensure;

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::report::Share;
use crate::world::{RECOMMENDATION, routes, to};

exercises!("mirror": copies_arrive_and_callers_see_none, a_share_is_copied, a_failing_mirror_harms_nobody);

fn mirrored(percentage: &str) -> String {
    routes(&format!("{{{}, mirror: {{host: recommendation, subset: v2}}{percentage}}}", to("v1")))
}

/// Requests that v2 has received.
fn copies(mesh: &Mesh) -> anyhow::Result<u64> {
    Ok(mesh.from("recommendation-v2").stats()?["requests"].as_u64().unwrap_or(0))
}

/// Sends until the rule is there, then counts from nothing.
fn prepare(mesh: &Mesh) {
    settles("copies begin to arrive", || {
        mesh.from("recommendation-v2").reset_stats();
        let report = mesh.from("customer").load(RECOMMENDATION, 20)?;
        report.share("recommendation", "v1").ensure_all()?;
        check!(copies(mesh)? > 0, "none yet")
    });
    // What is still on its way from then must not count.
    let mut last = u64::MAX;
    settles("the copies have all come", || {
        let now = copies(mesh)?;
        ensure!(std::mem::replace(&mut last, now) == now, "still coming");
        Ok(())
    });
    mesh.from("recommendation-v2").reset_stats();
}

fn copies_arrive_and_callers_see_none(mesh: &Mesh) {
    mesh.apply(&mirrored(""));
    prepare(mesh);
    let report = mesh.from("customer").load(RECOMMENDATION, 100).unwrap();
    report.ensure_clean().unwrap().share("recommendation", "v1").ensure_all().unwrap();
    settles("every request has its copy", || {
        let copies = copies(mesh)?;
        check!(copies == 100, "{copies} copies of 100")
    });
}

fn a_share_is_copied(mesh: &Mesh) {
    mesh.apply(&mirrored(", mirrorPercentage: {value: 30}"));
    prepare(mesh);
    mesh.from("customer").load(RECOMMENDATION, 300).unwrap().ensure_clean().unwrap();
    settles("three of ten have a copy", || Share { hits: copies(mesh)?, all: 300 }.ensure_near(0.3));
}

fn a_failing_mirror_harms_nobody(mesh: &Mesh) {
    mesh.apply(&mirrored(""));
    prepare(mesh);
    mesh.misbehave("recommendation-v2", 500);
    mesh.slow_down("recommendation-v2", 2000);
    let report = mesh.from("customer").load(RECOMMENDATION, 100).unwrap();
    report.ensure_clean().unwrap().share("recommendation", "v1").ensure_all().unwrap();
    assert!(report.0["latency_ms"]["p99"].as_f64().unwrap_or(f64::MAX) < 1500.0, "callers wait for the copies: {:#}", report.0);
}
