//! The hash that consistent load balancing goes by (Envoy `HashPolicyImpl`, xxHash64).
use std::net::IpAddr;

use http::HeaderValue;
use lateen_snapshot::route::{HashPolicy, HashSource};
use lateen_snapshot::stateful_session::set_cookie;
use xxhash_rust::xxh64::xxh64;

use crate::http::Exchange;

/// The hash of a request; `None` when no policy yields one. A cookie that is to be made is noted in the exchange.
pub(super) fn of(exchange: &mut Exchange<'_>, policies: &[HashPolicy]) -> Option<u64> {
    let (hash, cookie) = combined(exchange, policies, true);
    if cookie.is_some() {
        exchange.info.affinity_cookie = cookie;
    }
    hash
}

/// The hash of what the caller brought.
pub(super) fn brought(exchange: &Exchange<'_>, policies: &[HashPolicy]) -> Option<u64> {
    combined(exchange, policies, false).0
}

fn combined(exchange: &Exchange<'_>, policies: &[HashPolicy], makes_cookies: bool) -> (Option<u64>, Option<HeaderValue>) {
    let (mut hash, mut cookie): (Option<u64>, _) = (None, None);
    for policy in policies {
        let Some(new) = one(exchange, &policy.source, makes_cookies.then_some(&mut cookie)) else { continue };
        // Rotating keeps two equal parts from cancelling each other out.
        hash = Some(hash.map_or(new, |old| old.rotate_left(1) ^ new));
        if policy.terminal {
            break;
        }
    }
    (hash, cookie)
}

/// The hash of a caller's address, without its port.
pub(crate) fn of_address(address: IpAddr) -> u64 {
    xxh64(address.to_string().as_bytes(), 0)
}

fn one(exchange: &Exchange<'_>, source: &HashSource, new_cookie: Option<&mut Option<HeaderValue>>) -> Option<u64> {
    match source {
        HashSource::Header { name, rewrite } => {
            let hashed = |value: &[u8], seed| match rewrite {
                None => xxh64(value, seed),
                Some((pattern, with)) => xxh64(pattern.replace_all(&String::from_utf8_lossy(value), &**with).as_bytes(), seed),
            };
            let mut values: Vec<&[u8]> = exchange.request.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
            match values.as_slice() {
                [] if name == http::header::HOST => Some(hashed(exchange.request.authority.as_bytes(), 0)),
                [] if name == http::header::CONTENT_LENGTH => {
                    Some(hashed(itoa::Buffer::new().format(exchange.request.length.said()?).as_bytes(), 0))
                }
                [] => None,
                [one] => Some(hashed(one, 0)),
                _ => {
                    values.sort_unstable();
                    Some(values.iter().fold(0, |seed, value| hashed(value, seed)))
                }
            }
        }
        HashSource::SourceIp => Some(of_address(exchange.info.remote.ip())),
        HashSource::QueryParameter(name) => {
            let found = lateen_snapshot::matching::query_parameters(&exchange.request.path).find(|(key, _)| *key == &**name);
            found.map(|(_, value)| xxh64(value.as_bytes(), 0))
        }
        HashSource::Cookie { name, ttl, path, attributes } => {
            if let Some(value) = lateen_snapshot::matching::cookie(&exchange.request.headers, name) {
                return Some(xxh64(value.as_bytes(), 0));
            }
            let (new_cookie, ttl) = (new_cookie?, (*ttl)?);
            let value = format!("{:016x}", exchange.worker.roll64());
            let set = set_cookie(name, &value, ttl, path, attributes);
            *new_cookie = HeaderValue::from_str(&set).ok();
            Some(xxh64(value.as_bytes(), 0))
        }
    }
}
