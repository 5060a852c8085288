//! Waits for a cluster that is discovered because this request wants it (Envoy on_demand filter).
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use lateen_snapshot::http::OnDemand;

use super::{Step, per_route};
use crate::http::{End, Exchange};
use crate::router::lookup;

pub(super) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<OnDemand>) -> Result<Step, End> {
    let config = per_route(exchange, |p| p.on_demand.as_ref()).unwrap_or_else(|| Arc::clone(config));
    let Some(timeout) = config.clusters else { return Ok(Step::Continue) };
    let Some(name) = lookup::unknown_cluster(exchange) else { return Ok(Step::Continue) };
    let Some(answer) = exchange.worker.wishes.ask(&name) else { return Ok(Step::Continue) };
    let mut applied = exchange.worker.applied();
    let arrived = async {
        let Ok(version) = answer.await else { return };
        let _ = applied.wait_for(|now| *now >= version).await;
    };
    let mut arrived = pin!(arrived);
    exchange.timer.after(Some(timeout));
    let (timer, down) = (&mut exchange.timer, &mut exchange.down);
    let gone = poll_fn(|cx| {
        if down.request_done() && down.poll_gone(cx).is_ready() {
            return Poll::Ready(true);
        }
        if arrived.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        timer.poll(cx).map(|()| false)
    })
    .await;
    exchange.timer.set(None);
    if gone {
        return Err(End::Gone);
    }
    // Found or not, the router looks again.
    exchange.live = exchange.worker.live();
    Ok(Step::Continue)
}
