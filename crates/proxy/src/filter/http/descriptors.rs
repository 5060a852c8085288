//! What a request counts as for rate limits, local and global.
use lateen_snapshot::ratelimit::{Counted, HitCount, Hits, HitsAddend, LimitFacts, RateLimit, VirtualHostLimits};
use lateen_snapshot::route::{Action, RequestHead};

use crate::http::Exchange;
use crate::http::access::RequestRecord;
use crate::router::lookup;

/// What descriptors are made of.
pub(super) fn facts<'a>(exchange: &'a Exchange<'_>, head: &'a RequestHead<'a>) -> LimitFacts<'a> {
    LimitFacts {
        head,
        remote: exchange.info.remote.ip(),
        cluster: cluster_name(exchange),
        source: &exchange.worker.node.cluster,
        metadata: &exchange.info.metadata,
    }
}

fn cluster_name<'a>(exchange: &'a Exchange<'_>) -> Option<&'a str> {
    let matched = exchange.info.route.as_ref()?;
    let id = lookup::cluster_of(matched, &exchange.live.snapshot, &exchange.request)?;
    Some(&exchange.live.snapshot.cluster(id)?.config.name)
}

/// The descriptors of these limits.
pub(super) fn of<'a>(exchange: &Exchange<'_>, limits: impl Iterator<Item = &'a RateLimit>, facts: &LimitFacts<'a>) -> Vec<Counted<'a>> {
    let counted = |limit: &'a RateLimit| {
        let entries = limit.descriptor(facts)?;
        let hits = limit.hits.as_ref().map_or(Some(Hits::default()), |addend| hits(exchange, addend))?;
        Some(Counted { entries, hits })
    };
    limits.filter_map(counted).collect()
}

/// For how much the request counts; `None` where there is no telling, which takes the descriptor away.
fn hits(exchange: &Exchange<'_>, addend: &HitsAddend) -> Option<Hits> {
    let count = match &addend.count {
        HitCount::Number(number) => *number,
        HitCount::Format(text) => {
            let mut bytes = Vec::new();
            exchange.hcm.format(text)?.write(&RequestRecord::new(exchange, None), &mut bytes);
            Hits::number(std::str::from_utf8(&bytes).ok()?)?
        }
    };
    Some(Hits { count: Some(count), negative: addend.negative })
}

/// The descriptors of the route, and of its virtual host where that counts too.
pub(super) fn of_route<'a>(exchange: &'a Exchange<'_>, host: VirtualHostLimits, stage: u32, facts: &LimitFacts<'a>) -> Vec<Counted<'a>> {
    let Some(matched) = &exchange.info.route else { return Vec::new() };
    let Action::Forward(forward) = &matched.route.action else { return Vec::new() };
    let include = match host {
        _ if forward.include_virtual_host_limits => true,
        VirtualHostLimits::Include => true,
        VirtualHostLimits::Ignore => false,
        VirtualHostLimits::Override => forward.rate_limits.is_empty(),
    };
    let host = matched.virtual_host().filter(|_| include).map_or(&[][..], |h| &h.settings.rate_limits);
    of(exchange, forward.rate_limits.iter().chain(host).filter(|l| l.stage == stage), facts)
}
