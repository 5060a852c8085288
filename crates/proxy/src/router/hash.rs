//! The hash that consistent load balancing goes by (Envoy `HashPolicyImpl`, xxHash64).
use std::net::IpAddr;

use http::HeaderValue;
use lateen_snapshot::route::{HashPolicy, HashSource};
use lateen_snapshot::stateful_session::set_cookie;
use xxhash_rust::xxh64::xxh64;

use crate::http::Exchange;
use crate::listener::Conn;

/// The hash of a request; `None` when no policy yields one. Cookies that are to be made are noted in the exchange.
pub(super) fn of(exchange: &mut Exchange<'_>, policies: &[HashPolicy]) -> Option<u64> {
    let mut cookies = Vec::new();
    let hash = combined(exchange, policies, Some(&mut cookies));
    exchange.info.affinity_cookies = cookies;
    hash
}

/// The hash of what the caller brought.
pub(super) fn brought(exchange: &Exchange<'_>, policies: &[HashPolicy]) -> Option<u64> {
    combined(exchange, policies, None)
}

fn combined(exchange: &Exchange<'_>, policies: &[HashPolicy], mut cookies: Option<&mut Vec<HeaderValue>>) -> Option<u64> {
    let mut hash: Option<u64> = None;
    for policy in policies {
        let Some(new) = one(exchange, &policy.source, cookies.as_deref_mut()) else { continue };
        // Rotating keeps two equal parts from cancelling each other out.
        hash = Some(hash.map_or(new, |old| old.rotate_left(1) ^ new));
        if policy.terminal {
            break;
        }
    }
    hash
}

/// The value of a cookie that is made: all requests of a connection that come before the first answer get the same, and so the
/// same host (Envoy `addDownstreamSetCookie`).
fn of_connection(conn: &Conn) -> String {
    format!("{:016x}", xxh64(format!("{}{}", conn.remote, conn.local).as_bytes(), 0))
}

/// The hash of a caller's address, without its port.
pub(crate) fn of_address(address: IpAddr) -> u64 {
    xxh64(address.to_string().as_bytes(), 0)
}

fn one(exchange: &Exchange<'_>, source: &HashSource, cookies: Option<&mut Vec<HeaderValue>>) -> Option<u64> {
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
            if let Some(value) = lateen_snapshot::matching::cookie(&exchange.request.headers, name).filter(|value| !value.is_empty()) {
                return Some(xxh64(value.as_bytes(), 0));
            }
            let (cookies, ttl) = (cookies?, (*ttl)?);
            let value = of_connection(exchange.conn);
            cookies.extend(HeaderValue::from_str(&set_cookie(name, &value, ttl, path, attributes)));
            Some(xxh64(value.as_bytes(), 0))
        }
    }
}
