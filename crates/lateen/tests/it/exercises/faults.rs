//! Injected faults: delays and aborts, for all and for a share.
use std::time::Duration;

use anyhow::ensure;

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::world::{RECOMMENDATION, routes, to};

exercises!("faults": delay, delay_for_a_share, abort, abort_for_a_share, abort_for_some_callers);

fn fault(fault: &str) -> String {
    routes(&format!("{{fault: {{{fault}}}, {}}}", to("v1")))
}

fn delay(mesh: &Mesh) {
    mesh.apply(&fault("delay: {percentage: {value: 100}, fixedDelay: 700ms}"));
    settles("every request waits, and is answered then", || {
        let answer = mesh.from("customer").get(RECOMMENDATION);
        answer.ensure_status(200)?;
        ensure!(answer.took >= Duration::from_millis(700), "answered after {:?}", answer.took);
        check!(answer.took < Duration::from_secs(3), "answered after {:?}", answer.took)
    });
}

fn delay_for_a_share(mesh: &Mesh) {
    mesh.apply(&fault("delay: {percentage: {value: 30}, fixedDelay: 400ms}"));
    settles("a third waits", || {
        let report = mesh.from("customer").load_with(RECOMMENDATION, 300, &["--connections", "100"])?;
        report.ensure_clean()?;
        let (p50, p90) = (report.0["latency_ms"]["p50"].as_f64().unwrap_or(0.0), report.0["latency_ms"]["p90"].as_f64().unwrap_or(0.0));
        check!(p50 < 380.0 && p90 >= 400.0, "p50 {p50} ms, p90 {p90} ms")
    });
}

fn abort(mesh: &Mesh) {
    mesh.apply(&fault("abort: {percentage: {value: 100}, httpStatus: 418}"));
    settles("every request is refused, with the reason", || {
        let answer = mesh.from("customer").get(RECOMMENDATION);
        answer.ensure_status(418)?;
        check!(answer.body.trim_end() == "fault filter abort", "{answer:?}")
    });
}

fn abort_for_a_share(mesh: &Mesh) {
    mesh.apply(&fault("abort: {percentage: {value: 40}, httpStatus: 555}"));
    settles("four of ten are refused", || mesh.from("customer").load(RECOMMENDATION, 300)?.status_share(555).ensure_near(0.4));
}

fn abort_for_some_callers(mesh: &Mesh) {
    let jason = format!(
        "{{match: [{{headers: {{x-user: {{exact: jason}}}}}}], fault: {{abort: {{percentage: {{value: 100}}, httpStatus: 500}}}}, {}}}",
        to("v1")
    );
    mesh.apply(&routes(&format!("{jason}, {{{}}}", to("v1"))));
    settles("Jason is refused", || mesh.from("customer").ask(RECOMMENDATION, &["-H", "x-user: jason"]).ensure_status(500).map(drop));
    mesh.from("customer").load(RECOMMENDATION, 50).unwrap().ensure_clean().unwrap();
}
