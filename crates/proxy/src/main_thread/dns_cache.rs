//! Names that requests bring along: looked up when the first asks, kept fresh while they are used.
use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use lateen_balance::Address;
use lateen_snapshot::dns::cache::{CachedHost, DnsCache, DnsCacheConfig};
use lateen_telemetry::envoy_names::dns_cache as names;
use lateen_telemetry::{Block, BlockName};
use tokio::task::{AbortHandle, JoinSet};

use super::Main;
use crate::dns::Answer;

/// How old the figures of a cache may be.
const INTERVAL: Duration = Duration::from_secs(1);

/// Keeps one task for each cache, as configurations come and go.
pub(super) async fn run(main: Arc<Main>) {
    let mut snapshots = main.snapshots();
    let mut running: Vec<(Weak<DnsCache>, Block, AbortHandle)> = Vec::new();
    let mut tasks = JoinSet::new();
    loop {
        let caches = main.compiler().dns_caches();
        running.retain(|(cache, _, task)| {
            let keep = caches.iter().any(|c| std::ptr::eq(Arc::as_ptr(c), cache.as_ptr()));
            if !keep {
                task.abort();
            }
            keep
        });
        while tasks.try_join_next().is_some() {}
        for cache in &caches {
            match running.iter().find(|(known, ..)| std::ptr::eq(Arc::as_ptr(cache), known.as_ptr())) {
                Some((_, block, _)) => show(block, cache),
                None => {
                    let block = main.registry.block(names::DEFS, BlockName::plain("dns_cache").scope(&cache.config.name));
                    let serve = serve(main.clone(), Arc::downgrade(cache), block.clone());
                    let task = tasks.spawn(main.supervisor.clone().only_once("a cache of names", serve));
                    running.push((Arc::downgrade(cache), block, task));
                }
            }
        }
        drop(caches);
        if let Ok(Err(_)) = tokio::time::timeout(INTERVAL, snapshots.changed()).await {
            return;
        }
    }
}

/// What the workers count.
fn show(block: &Block, cache: &DnsCache) {
    block.set(names::NUM_HOSTS, cache.len() as u64);
    block.add_shared(names::HOST_OVERFLOW, cache.overflows.swap(0, Relaxed));
    block.add_shared(names::DNS_RQ_PENDING_OVERFLOW, cache.pending_overflows.swap(0, Relaxed));
}

/// Looks up what is asked for. Nobody here keeps the cache alive.
async fn serve(main: Arc<Main>, cache: Weak<DnsCache>, block: Block) {
    let mut hosts = JoinSet::new();
    loop {
        let asked = poll_fn(|cx| match cache.upgrade() {
            Some(cache) => cache.poll_asked(cx).map(Some),
            None => Poll::Ready(None),
        });
        let Some(asked) = asked.await else { return };
        while hosts.try_join_next().is_some() {}
        for host in asked {
            block.add_shared(names::HOST_ADDED, 1);
            let (main, cache, block) = (main.clone(), cache.clone(), block.clone());
            let supervisor = main.supervisor.clone();
            let keeps = move || keep(main.clone(), cache.clone(), host.clone(), block.clone());
            hosts.spawn(supervisor.run("addresses of a name", keeps));
        }
    }
}

/// Keeps one host's addresses fresh until nobody uses it any more.
async fn keep(main: Arc<Main>, cache: Weak<DnsCache>, host: Arc<CachedHost>, block: Block) {
    let Some(config) = cache.upgrade().map(|c| Arc::clone(&c.config)) else { return };
    let mut failures: u32 = 0;
    loop {
        block.add_shared(names::DNS_QUERY_ATTEMPT, 1);
        let found = look_up(&main, &config, &host, &block).await;
        block.add_shared(if found.is_ok() { names::DNS_QUERY_SUCCESS } else { names::DNS_QUERY_FAILURE }, 1);
        let pause = match found {
            Ok(answer) => {
                failures = 0;
                if answer.addresses.is_empty() {
                    host.failed("the name has no address");
                    config.refresh
                } else {
                    if host.resolved(&answer.addresses) {
                        block.add_shared(names::HOST_ADDRESS_CHANGED, 1);
                    }
                    config.after_answer(answer.ttl)
                }
            }
            Err(reason) => {
                failures = failures.saturating_add(1);
                tracing::debug!(cache = %config.name, host = %host.key.text, "cannot be resolved: {reason}");
                host.failed(&reason);
                config.failure.map_or(config.refresh, |backoff| backoff.pause(failures, rand::random()))
            }
        };
        let forget = failures > 0 && config.forget_failures;
        if !forget {
            tokio::time::sleep(pause).await;
        }
        let Some(cache) = cache.upgrade() else { return };
        if forget || cache.is_stale(&host) {
            cache.forget(&host);
            block.add_shared(names::HOST_REMOVED, 1);
            return;
        }
    }
}

/// The addresses that may be used, in an order in which the one in use stays first.
async fn look_up(main: &Main, config: &DnsCacheConfig, host: &CachedHost, block: &Block) -> Result<Answer, String> {
    let lookup = main.resolver.lookup(&host.key.name, config.family, config.resolver.as_ref());
    let mut answer = match config.query_timeout {
        None => lookup.await?,
        Some(limit) => match tokio::time::timeout(limit, lookup).await {
            Ok(answer) => answer?,
            Err(_) => {
                block.add_shared(names::DNS_QUERY_TIMEOUT, 1);
                return Err(format!("no answer within {limit:?}"));
            }
        },
    };
    let had_any = !answer.addresses.is_empty();
    answer.addresses.retain(|address| config.allows(*address));
    if had_any && answer.addresses.is_empty() {
        return Err("none of its addresses is allowed".to_owned());
    }
    if let Ok(Address::Socket(now)) = host.host().map(|h| h.address.clone())
        && let Some(at) = answer.addresses.iter().position(|a| *a == now.ip())
    {
        answer.addresses.swap(0, at);
    }
    answer.addresses.get_mut(1..).unwrap_or_default().sort();
    Ok(answer)
}
