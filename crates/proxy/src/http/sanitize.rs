//! What a request may claim about itself (Envoy `ConnectionManagerUtility::mutateRequestHeaders`): forwarding
//! headers are extended or trusted, internal ones stripped where they come from outside.
use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use super::exchange::{End, Exchange};
use super::headers as names;
use super::original_ip::{self, Detected};
use super::reply::Reply;
use super::{host_port, xfcc};
use crate::spans;
use lateen_snapshot::http::{HttpConnectionManager, Underscores};
use lateen_telemetry::ResponseFlags;

/// Stripped from every request that is not internal.
const INTERNAL_ONLY: [HeaderName; 14] = [
    names::RETRIABLE_STATUS_CODES,
    names::RETRIABLE_HEADERS,
    names::RETRY_ON,
    names::RETRY_GRPC_ON,
    names::MAX_RETRIES,
    names::ALT_STAT_NAME,
    names::TIMEOUT,
    names::PER_TRY_TIMEOUT,
    names::TIMEOUT_ALT_RESPONSE,
    names::EXPECTED_TIMEOUT,
    names::FORCE_TRACE,
    names::IP_TAGS,
    names::ORIGINAL_URL,
    names::HEDGE_ON_PER_TRY_TIMEOUT,
];
/// Stripped at the edge besides: what only another proxy of ours could know.
const EDGE_ONLY: [HeaderName; 5] =
    [names::DECORATOR, names::DOWNSTREAM_CLUSTER, names::DOWNSTREAM_NODE, names::ORIGINAL_PATH, names::ORIGINAL_HOST];

pub(crate) fn run(exchange: &mut Exchange<'_>) -> Result<(), End> {
    let config = &exchange.hcm.config;
    if config.normalize_underscores != Underscores::Allow {
        underscores(exchange, config.normalize_underscores)?;
    }
    if config.strip_trailing_host_dot {
        host_port::strip_dot(&mut exchange.request);
    }
    if config.strip_any_host_port || config.strip_matching_host_port {
        host_port::strip(&mut exchange.request, config.strip_any_host_port, exchange.conn.local.port());
    }
    remote_address(exchange)?;
    let config = &exchange.hcm.config;
    let edge = config.use_remote_address && !exchange.info.internal;
    let hints = exchange.request.hints;
    let map = &mut exchange.request.headers;
    if exchange.info.internal {
        map.insert(names::INTERNAL, HeaderValue::from_static("true"));
    } else if hints.envoy {
        map.remove(names::INTERNAL);
        INTERNAL_ONLY.iter().for_each(|name| drop(map.remove(name)));
        if edge {
            EDGE_ONLY.iter().for_each(|name| drop(map.remove(name)));
        }
    }
    if config.generate_request_id {
        let keep = !edge || config.preserve_external_request_id;
        let given = hints.request_id && map.get(names::REQUEST_ID).is_some_and(|id| !id.is_empty());
        if !keep || !given {
            map.insert(names::REQUEST_ID, request_id(exchange.worker.random_bytes()));
        } else if edge && config.request_ids.pack_reason {
            spans::forget(map);
        }
    }
    if let Some(via) = &config.via {
        names::append_list_with(map, http::header::VIA, ", ", via);
    }
    xfcc::run(exchange);
    Ok(())
}

fn underscores(exchange: &mut Exchange<'_>, rule: Underscores) -> Result<(), End> {
    let has = |name: &HeaderName| name.as_str().contains('_');
    match rule {
        Underscores::Allow => Ok(()),
        Underscores::RejectRequest if !exchange.request.headers.keys().any(has) => Ok(()),
        Underscores::RejectRequest => {
            Err(Reply::new(400, "Bad Request", "http1.unexpected_underscore", ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR).into())
        }
        Underscores::DropHeader => {
            let found: Vec<HeaderName> = exchange.request.headers.keys().filter(|n| has(n)).cloned().collect();
            for name in found {
                exchange.request.headers.remove(name);
            }
            Ok(())
        }
    }
}

/// Settles who the caller is, and writes `x-forwarded-for`, `-proto` and `-port`.
fn remote_address(exchange: &mut Exchange<'_>) -> Result<(), End> {
    let config = &exchange.hcm.config;
    let tls = exchange.conn.is_tls();
    let direct = exchange.conn.remote;
    let hints = exchange.request.hints;
    let map = &mut exchange.request.headers;
    if hints.forwarded_for {
        join_forwarded_for(map);
    }
    let hops = config.xff_num_trusted_hops as usize;
    // Only a trusted proxy in front knows better at which port the caller came in.
    let trusts_port = !config.use_remote_address || hops > 0;
    if config.append_x_forwarded_port && !(trusts_port && map.contains_key(names::FORWARDED_PORT)) {
        map.insert(names::FORWARDED_PORT, exchange.conn.local.port().into());
    }
    let trusts_proto = if config.use_remote_address {
        let before = if hops > 0 && hints.forwarded_for { original_ip::last(map, hops - 1) } else { None };
        exchange.info.remote = before.map_or(direct, |ip| SocketAddr::new(ip, 0));
        exchange.info.internal = !hints.forwarded_for && is_internal(config, exchange.info.remote.ip());
        if !exchange.info.internal {
            map.insert(names::EXTERNAL_ADDRESS, address(exchange.info.remote.ip()));
        }
        if !config.skip_xff_append {
            let address = direct.ip();
            names::append_list(map, names::FORWARDED_FOR, &address.to_string());
        }
        hops > 0 && hints.forwarded_proto
    } else {
        let Detected { ip, trusted, append } = detected(config, direct.ip(), hints.forwarded_for, map)?;
        if let Some(ip) = ip {
            exchange.info.remote = SocketAddr::new(ip, 0);
            exchange.info.internal = trusted && is_internal(config, ip);
        }
        if append {
            names::append_list(map, names::FORWARDED_FOR, &direct.ip().to_string());
        }
        hints.forwarded_proto
    };
    if !trusts_proto {
        map.insert(names::FORWARDED_PROTO, HeaderValue::from_static(if tls { "https" } else { "http" }));
    } else if !exchange.request.scheme_given
        && let Some(proto) = map.get(names::FORWARDED_PROTO)
    {
        exchange.request.scheme = scheme_of(proto.as_bytes()).unwrap_or(exchange.request.scheme);
    }
    Ok(())
}

/// Policies compare the scheme, so its case must not matter. What is no scheme of HTTP says nothing.
fn scheme_of(proto: &[u8]) -> Option<&'static str> {
    match proto {
        https if https.eq_ignore_ascii_case(b"https") => Some("https"),
        http if http.eq_ignore_ascii_case(b"http") => Some("http"),
        _ => None,
    }
}

/// The caller's address as other proxies tell it; `forwarded` when there may be something in `x-forwarded-for`.
fn detected(config: &HttpConnectionManager, direct: IpAddr, forwarded: bool, map: &HeaderMap) -> Result<Detected, End> {
    if !config.original_ip.is_empty() {
        let refused = |status| Reply::new(status, "", "rejecting_because_detection_failed", ResponseFlags::NONE);
        return original_ip::detect(&config.original_ip, direct, map).map_err(|status| refused(status).into());
    }
    let ip = if forwarded { original_ip::last(map, config.xff_num_trusted_hops as usize) } else { None };
    Ok(Detected { ip, trusted: ip.is_some() && original_ip::is_single(map), append: false })
}

/// Envoy takes no address for internal unless it is told which ones are.
fn is_internal(config: &HttpConnectionManager, ip: IpAddr) -> bool {
    config.internal_addresses.iter().any(|block| block.contains(ip))
}

fn address(ip: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static(""))
}

/// One list, however many headers it came in: what reads only the first would see another caller.
fn join_forwarded_for(map: &mut HeaderMap) {
    let mut values = map.get_all(names::FORWARDED_FOR).iter();
    if values.next().is_some() && values.next().is_some() {
        let all: Vec<&[u8]> = map.get_all(names::FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b',')) {
            map.insert(names::FORWARDED_FOR, joined);
        }
    }
}

/// A random UUID.
fn request_id(bytes: [u8; 16]) -> HeaderValue {
    let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
    let mut text = [0u8; uuid::fmt::Hyphenated::LENGTH];
    let text: &str = id.hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("-"))
}
