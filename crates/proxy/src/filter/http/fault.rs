//! Fault injection: delays, then aborts (Envoy fault filter; texts and details are Envoy's).
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use lateen_snapshot::http::{AbortKind, Fault};
use lateen_telemetry::envoy_names::fault as names;
use lateen_telemetry::{ResponseFlags, details};

use super::{Step, per_route};
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::router::lookup;

pub(super) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<Fault>) -> Result<Step, End> {
    let fault = per_route(exchange, |p| p.fault.as_ref()).unwrap_or_else(|| Arc::clone(config));
    if (fault.delay.is_none() && fault.abort.is_none()) || !applies(exchange, &fault) {
        return Ok(Step::Continue);
    }
    let stats = &exchange.hcm.fault;
    let delay = fault.delay.filter(|d| d.fraction.hits(exchange.worker.roll()));
    let abort = fault.abort.filter(|a| a.fraction.hits(exchange.worker.roll()));
    if delay.is_none() && abort.is_none() {
        return Ok(Step::Continue);
    }
    if fault.max_active_faults.is_some_and(|most| stats.block().gauge(names::ACTIVE_FAULTS) >= u64::from(most)) {
        stats.inc(names::FAULTS_OVERFLOW);
        return Ok(Step::Continue);
    }
    let _active = stats.hold(names::ACTIVE_FAULTS);
    if let Some(delay) = delay {
        stats.inc(names::DELAYS_INJECTED);
        exchange.info.flags.insert(ResponseFlags::DELAY_INJECTED);
        exchange.timer.after(Some(delay.duration));
        let (timer, down) = (&mut exchange.timer, &mut exchange.down);
        let gone = poll_fn(|cx| {
            if down.request_done() && down.poll_gone(cx).is_ready() {
                return Poll::Ready(true);
            }
            timer.poll(cx).map(|()| false)
        })
        .await;
        exchange.timer.set(None);
        if gone {
            return Err(End::Gone);
        }
    }
    let Some(abort) = abort else { return Ok(Step::Continue) };
    exchange.hcm.fault.inc(names::ABORTS_INJECTED);
    let mut reply = Reply::new(200, "fault filter abort", details::FAULT_FILTER_ABORT, ResponseFlags::FAULT_INJECTED);
    match abort.kind {
        AbortKind::Http(status) => reply.status = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::SERVICE_UNAVAILABLE),
        AbortKind::Grpc(status) => reply.grpc_status = Some(status),
    }
    Ok(Step::Reply(reply))
}

fn applies(exchange: &Exchange<'_>, fault: &Fault) -> bool {
    let cluster_fits = fault.upstream_cluster.as_ref().is_none_or(|wanted| {
        let id = exchange.info.route.as_ref().and_then(lookup::fixed_cluster);
        id.and_then(|id| exchange.live.snapshot.cluster(id)).is_some_and(|c| c.config.name == *wanted)
    });
    cluster_fits && fault.headers.iter().all(|m| lookup::header_matches(m, &exchange.request))
}
