//! Fetching the keys of JWT issuers: on demand, or ahead of time where the configuration says so (Envoy `RemoteJwks`).
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lateen_identity::jwks::KeySet;
use lateen_snapshot::http::{HttpConnectionManager, HttpFilter};
use lateen_snapshot::jwt::{Fetching, KeySource, RemoteKeys};
use lateen_telemetry::envoy_names::jwt_authn as names;
use lateen_telemetry::{BlockName, Local};
use rand::Rng;

use super::wait;
use crate::http::message::Request;
use crate::http::{End, Exchange};
use crate::io::Text;
use crate::upstream::call::{self, Limits};
use crate::worker::{Worker, spawn};

/// A larger set of keys is refused.
const MOST: usize = 1 << 20;
/// Keys that are kept fresh are fetched so long before they are out of date (Envoy's time).
const AHEAD: Duration = Duration::from_secs(5);

/// Waits until the keys have been fetched, or could not be.
pub(super) async fn wait_for(exchange: &mut Exchange<'_>, wanted: Vec<Arc<RemoteKeys>>) -> Result<(), End> {
    for keys in wanted {
        if let Some(fetching) = keys.begin(Instant::now()) {
            let (worker, stats) = (Rc::clone(exchange.worker), exchange.hcm.jwt_authn.clone());
            // In a task of its own: others may wait for it when this caller has gone.
            spawn(exchange.worker, async move { fetch(&worker, &stats, fetching).await });
        }
        wait::patiently(exchange, std::future::poll_fn(|cx| keys.poll_idle(cx))).await?;
    }
    Ok(())
}

/// Begins to fetch what a connection manager's requests are not to wait for.
pub(crate) fn keep(worker: &Rc<Worker>, config: &HttpConnectionManager) {
    for filter in &config.filters {
        let HttpFilter::JwtAuthn(filter) = filter else { continue };
        for keys in filter.remote.iter().filter(|keys| keys.keep()) {
            let stats = worker.shard.local(&worker.registry.block(names::DEFS, BlockName::http_filters(&config.stat_prefix)));
            let (owner, keys) = (Rc::clone(worker), Arc::downgrade(keys));
            spawn(worker, async move { keep_fresh(&owner, &stats, &keys).await });
        }
    }
}

/// Fetches again and again, until nothing refers to the keys any more.
async fn keep_fresh(worker: &Rc<Worker>, stats: &Local, keys: &Weak<RemoteKeys>) {
    loop {
        let Some(current) = keys.upgrade() else { return };
        let source = current.source.clone();
        if let Some(fetching) = current.begin(Instant::now()) {
            fetch(worker, stats, fetching).await;
        }
        let good = if source.cache > AHEAD * 2 { source.cache - AHEAD } else { source.cache / 2 };
        let fresh = current.is_fresh(Instant::now());
        drop(current);
        tokio::time::sleep(if fresh { good } else { source.refetch.unwrap_or(AHEAD) }.max(Duration::from_millis(1))).await;
    }
}

async fn fetch(worker: &Rc<Worker>, stats: &Local, fetching: Fetching) {
    let source = &fetching.of().source.clone();
    let mut left = source.retries;
    let mut pause = source.back_off.0;
    loop {
        match Box::pin(ask(worker, source)).await {
            Ok(keys) => {
                stats.inc(names::JWKS_FETCH_SUCCESS);
                return fetching.done(keys, Instant::now());
            }
            Err(reason) => tracing::warn!(uri = format!("{}{}", source.uri.authority, source.uri.path), "keys were not fetched: {reason}"),
        }
        if left == 0 {
            stats.inc(names::JWKS_FETCH_FAILED);
            return fetching.failed(Instant::now());
        }
        left -= 1;
        // Proxies that failed together do not come back together.
        let share = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(share)).await;
        pause = pause.saturating_mul(2).min(source.back_off.1);
    }
}

async fn ask(worker: &Rc<Worker>, source: &KeySource) -> Result<KeySet, String> {
    let request = Request::get(Text::from(&*source.uri.authority), Text::from(&*source.uri.path));
    let limits = Limits { time: source.uri.timeout, bytes: MOST };
    let answer = call::ask(worker, &worker.live(), source.uri.cluster, &request, Bytes::new(), limits).await;
    let answer = answer.map_err(|lost| format!("{lost:?}"))?;
    if answer.status != http::StatusCode::OK {
        return Err(format!("the answer's status is {}", answer.status));
    }
    let text = std::str::from_utf8(&answer.body).map_err(|_| "the answer is not text".to_owned())?;
    KeySet::parse(text).map_err(|e| e.to_string())
}
