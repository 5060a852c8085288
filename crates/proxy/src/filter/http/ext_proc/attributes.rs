//! What a processor is told of an exchange beside its parts.
use std::sync::LazyLock;

use http::HeaderMap;
use http::header::HeaderName;
use lateen_balance::Address;
use lateen_proto::Struct;
use lateen_snapshot::attribute::{Attribute, NamedAttribute};
use lateen_snapshot::listener::Direction;
use lateen_telemetry::access_log::TimeFormat;
use prost_types::value::Kind;

use crate::http::Exchange;
use crate::http::headers::{GRPC_STATUS, number};
use crate::http::message::{Length, Response};
use crate::http::reply::grpc_status;
use crate::router::lookup;

/// As Envoy prints a time.
static TIME: LazyLock<Option<TimeFormat>> = LazyLock::new(|| TimeFormat::compile("%Y-%m-%dT%H:%M:%E*S%Ez").ok());

/// What is known of these.
pub(super) fn tell(exchange: &Exchange<'_>, response: Option<&Response>, all: &[NamedAttribute]) -> Struct {
    let value = |named: &NamedAttribute| {
        let kind = of_request(exchange, &named.attribute).or_else(|| of_response(exchange, response?, &named.attribute));
        let kind = kind.or_else(|| of_connection(exchange, &named.attribute)).or_else(|| of_upstream(exchange, &named.attribute))?;
        Some((named.name.to_string(), prost_types::Value { kind: Some(kind) }))
    };
    Struct { fields: all.iter().filter_map(value).collect() }
}

fn text(value: impl Into<String>) -> Option<Kind> {
    Some(Kind::StringValue(value.into()))
}

#[allow(clippy::cast_precision_loss, reason = "numbers are told as doubles")]
fn count(value: u64) -> Option<Kind> {
    Some(Kind::NumberValue(value as f64))
}

/// All values of a header in one.
fn header(map: &HeaderMap, length: Length, name: &HeaderName) -> Option<Kind> {
    if name == http::header::CONTENT_LENGTH {
        return text(length.said()?.to_string());
    }
    let mut all = map.get_all(name).iter().map(|value| super::heads::sanitized(value.as_bytes()));
    let first = all.next()?;
    text(all.fold(first, |joined, value| joined + "," + &value))
}

fn of_request(exchange: &Exchange<'_>, attribute: &Attribute) -> Option<Kind> {
    let request = &exchange.request;
    let query_at = request.path.find('?');
    match attribute {
        Attribute::RequestPath => text(&*request.path),
        Attribute::RequestUrlPath => text(&request.path[..query_at.unwrap_or(request.path.len())]),
        Attribute::RequestQuery => {
            let query = query_at.and_then(|at| request.path.get(at + 1..)).unwrap_or_default();
            text(query.split('#').next().unwrap_or_default())
        }
        Attribute::RequestHost => text(&*request.authority),
        Attribute::RequestScheme => text(request.scheme),
        Attribute::RequestMethod => text(request.method.as_str()),
        Attribute::RequestHeader(name) => header(&request.headers, request.length, name),
        Attribute::RequestTime => {
            let mut out = Vec::new();
            TIME.as_ref()?.write(exchange.info.start_time, &mut out);
            text(String::from_utf8(out).ok()?)
        }
        Attribute::RequestSize => match request.length {
            Length::Known(n) => count(n),
            _ => count(exchange.info.body_received),
        },
        Attribute::RequestProtocol => text(request.version.name()),
        _ => None,
    }
}

fn of_response(exchange: &Exchange<'_>, response: &Response, attribute: &Attribute) -> Option<Kind> {
    match attribute {
        Attribute::ResponseCode => count(response.status.as_u16().into()),
        Attribute::ResponseCodeDetails => Some(&exchange.info.details).filter(|d| !d.is_empty()).and_then(|d| text(&**d)),
        Attribute::ResponseFlags => count(exchange.info.flags.bits().into()),
        Attribute::ResponseGrpcStatus => {
            count(number(&response.headers, &GRPC_STATUS).unwrap_or_else(|| grpc_status(response.status).into()))
        }
        Attribute::ResponseHeader(name) => header(&response.headers, response.length, name),
        Attribute::ResponseSize => count(exchange.info.body_sent),
        _ => None,
    }
}

fn of_connection(exchange: &Exchange<'_>, attribute: &Attribute) -> Option<Kind> {
    let conn = exchange.conn;
    match attribute {
        Attribute::ConnectionId => count(conn.connected.id),
        Attribute::ConnectionMtls => Some(Kind::BoolValue(conn.peer().is_some())),
        Attribute::ConnectionRequestedServerName => text(conn.server_name.as_deref().unwrap_or_default()),
        Attribute::ConnectionTlsVersion => text(conn.tls.as_ref()?.version),
        Attribute::ConnectionUriSanLocalCertificate => text(&**conn.local_uri.as_ref()?),
        Attribute::ConnectionSubjectPeerCertificate => {
            conn.tls.as_ref()?;
            text(conn.peer().map(|p| p.subject.clone()).unwrap_or_default())
        }
        Attribute::ConnectionUriSanPeerCertificate => text(conn.peer()?.uri_sans.first()?),
        Attribute::ConnectionDnsSanPeerCertificate => text(conn.peer()?.dns_sans.first()?),
        Attribute::ConnectionSha256PeerCertificateDigest => text(&conn.peer()?.fingerprint),
        Attribute::SourceAddress => text(exchange.info.remote.to_string()),
        Attribute::SourcePort => count(exchange.info.remote.port().into()),
        Attribute::DestinationAddress => text(conn.local.to_string()),
        Attribute::DestinationPort => count(conn.local.port().into()),
        Attribute::FilterChainName => text(&*conn.chain.chain.name),
        Attribute::ListenerDirection => count(match conn.listener.listener.direction {
            Direction::Unspecified => 0,
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        }),
        _ => None,
    }
}

fn of_upstream(exchange: &Exchange<'_>, attribute: &Attribute) -> Option<Kind> {
    let info = &exchange.info;
    match attribute {
        Attribute::UpstreamAddress => match &info.host.as_ref()?.address {
            Address::Socket(address) => text(address.to_string()),
            Address::Pipe(path) => text(&**path),
        },
        Attribute::UpstreamPort => match &info.host.as_ref()?.address {
            Address::Socket(address) => count(address.port().into()),
            Address::Pipe(_) => None,
        },
        Attribute::UpstreamLocalAddress => text(info.upstream_local?.to_string()),
        Attribute::UpstreamRequestAttemptCount => count(info.attempts.into()),
        Attribute::ClusterName => match &info.cluster {
            Some(cluster) => text(&*cluster.cluster.config.name),
            None => {
                let id = lookup::fixed_cluster(info.route.as_ref()?)?;
                text(&*exchange.live.cluster(exchange.worker, id)?.cluster.config.name)
            }
        },
        Attribute::RouteName => text(&*info.route.as_ref()?.route.name),
        Attribute::VirtualHostName => text(&*info.route.as_ref()?.virtual_host()?.name),
        _ => None,
    }
}
