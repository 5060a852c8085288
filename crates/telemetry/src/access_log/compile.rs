//! From a format string to its pieces.
use super::op::{Field, GrpcForm, Half, Op};
use super::record::{AddressOf, Bytes, FilterState, HeaderKey, HeadersOf, Span, Text};
use super::time::TimeFormat;
use http::HeaderName;

/// A format string that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFormat {
    #[error("access log format: %{0}% is not an operator known here; see Envoy's access log documentation for the names")]
    Unknown(String),
    #[error("access log format: %{0}% is an operator of Envoy that is not supported here; remove it from the format")]
    Unsupported(String),
    #[error("access log format: %{operator}% {problem}")]
    Argument { operator: String, problem: String },
    #[error("access log format: a `%` at byte {0} begins no operator; write `%%` for a percent sign")]
    Stray(usize),
    #[error("access log format: nested deeper than {0} levels")]
    TooDeep(usize),
}

/// Operators of Envoy that would need state kept per request which this proxy does not keep: they could only print `-`.
const UNSUPPORTED: &[&str] = &[
    "CLUSTER_METADATA",
    "UPSTREAM_METADATA",
    "FILTER_STATE",
    "UPSTREAM_FILTER_STATE",
    "METADATA",
    "CEL",
    "COMMON_DURATION",
    "CUSTOM_FLAGS",
    "QUERY_PARAM",
    "PATH",
    "UNIQUE_ID",
    "STREAM_ID",
    "SPAN_ID",
    "EMIT_TIME",
    "ACCESS_LOG_TYPE",
    "ROUNDTRIP_DURATION",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_CONNECTION_ID",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_LOCAL_URI_SAN",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_TLS_SESSION_ID",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "REQUEST_HEADERS_BYTES",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
];

/// Splits a format into literals and operators: `%NAME%`, `%NAME(argument)%`, `%NAME(argument):length%`.
pub(super) fn compile(format: &str) -> Result<Vec<Op>, InvalidFormat> {
    let mut ops = Vec::new();
    let mut literal = Vec::new();
    let mut at = 0;
    while let Some(found) = format[at..].find('%') {
        let percent = at + found;
        literal.extend_from_slice(&format.as_bytes()[at..percent]);
        if format[percent + 1..].starts_with('%') {
            literal.push(b'%');
            at = percent + 2;
            continue;
        }
        let call = Call::read(&format[percent + 1..]).ok_or(InvalidFormat::Stray(percent))?;
        if !literal.is_empty() {
            ops.push(Op::Literal(std::mem::take(&mut literal)));
        }
        ops.push(Op::Field(call.field()?, call.limit));
        at = percent + 1 + call.length;
    }
    literal.extend_from_slice(&format.as_bytes()[at..]);
    if !literal.is_empty() {
        ops.push(Op::Literal(literal));
    }
    Ok(ops)
}

/// An operator as written.
struct Call<'a> {
    name: &'a str,
    argument: Option<&'a str>,
    limit: Option<usize>,
    /// Bytes taken, with the closing percent sign.
    length: usize,
}

impl<'a> Call<'a> {
    fn read(rest: &'a str) -> Option<Self> {
        let name_end = rest.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))?;
        let name = &rest[..name_end];
        if name.is_empty() {
            return None;
        }
        if !rest[name_end..].starts_with('(') {
            let (limit, end) = Self::tail(rest, name_end)?;
            return Some(Self { name, argument: None, limit, length: end });
        }
        // An argument may hold `%` and even `)`: it ends at the first `)` after which the operator can end.
        let open = name_end + 1;
        rest[open..].match_indices(')').find_map(|(close, _)| {
            let close = open + close;
            let (limit, end) = Self::tail(rest, close + 1)?;
            Some(Self { name, argument: Some(&rest[open..close]), limit, length: end })
        })
    }

    /// Reads `:length` if there is one, and the closing percent sign.
    fn tail(rest: &str, at: usize) -> Option<(Option<usize>, usize)> {
        let tail = &rest[at..];
        if tail.starts_with('%') {
            return Some((None, at + 1));
        }
        let digits = tail.strip_prefix(':')?;
        let end = digits.find('%')?;
        Some((Some(digits[..end].parse().ok()?), at + 1 + end + 1))
    }

    fn field(&self) -> Result<Field, InvalidFormat> {
        if let Some(field) = self.with_argument()? {
            return Ok(field);
        }
        if UNSUPPORTED.contains(&self.name) {
            return Err(InvalidFormat::Unsupported(self.name.to_owned()));
        }
        let field = plain(self.name).ok_or_else(|| InvalidFormat::Unknown(self.name.to_owned()))?;
        self.alone(field)
    }

    /// Refuses an argument. An empty one is none, as Envoy has it.
    fn alone(&self, field: Field) -> Result<Field, InvalidFormat> {
        match self.argument {
            None | Some("") => Ok(field),
            Some(_) => Err(self.wrong("takes no argument")),
        }
    }

    fn grpc_form(&self) -> Result<GrpcForm, InvalidFormat> {
        match self.argument {
            None | Some("" | "CAMEL_STRING") => Ok(GrpcForm::Camel),
            Some("SNAKE_STRING") => Ok(GrpcForm::Snake),
            Some("NUMBER") => Ok(GrpcForm::Number),
            Some(_) => Err(self.wrong("takes CAMEL_STRING, SNAKE_STRING or NUMBER")),
        }
    }

    fn with_argument(&self) -> Result<Option<Field>, InvalidFormat> {
        Ok(Some(match self.name {
            "START_TIME" => Field::StartTime(match self.argument {
                None | Some("") => TimeFormat::iso8601(),
                Some(format) => TimeFormat::compile(format).map_err(|problem| self.wrong(&problem))?,
            }),
            "REQ" | "REQUEST_HEADER" => self.header(HeadersOf::Request, false)?,
            "REQ_WITHOUT_QUERY" => self.header(HeadersOf::Request, true)?,
            "RESP" | "RESPONSE_HEADER" => self.header(HeadersOf::Response, false)?,
            "TRAILER" | "RESPONSE_TRAILER" => self.header(HeadersOf::ResponseTrailers, false)?,
            "DYNAMIC_METADATA" => self.metadata()?,
            "FILTER_STATE" => match self.argument {
                Some("envoy.tcp_proxy.propagate_response_headers") => Field::FilterState(FilterState::TunnelHeaders),
                Some("envoy.tcp_proxy.propagate_response_trailers") => Field::FilterState(FilterState::TunnelTrailers),
                _ => return Ok(None),
            },
            "GRPC_STATUS" => Field::GrpcStatus(self.grpc_form()?),
            "ENVIRONMENT" => {
                let name = self.argument.filter(|name| !name.is_empty()).ok_or_else(|| self.wrong("needs the name of a variable"))?;
                Field::Fixed(std::env::var(name).unwrap_or_default())
            }
            _ => return Ok(None),
        }))
    }

    fn header(&self, of: HeadersOf, without_query: bool) -> Result<Field, InvalidFormat> {
        let argument = self.argument.filter(|argument| !argument.is_empty()).ok_or_else(|| self.wrong("needs the name of a header"))?;
        let mut names = argument.split('?');
        let key = self.key(names.next().unwrap_or_default())?;
        let fallback = names.next().map(|name| self.key(name)).transpose()?;
        if names.next().is_some() {
            return Err(self.wrong("takes at most two header names, as in X?Y"));
        }
        Ok(Field::Header { of, key, fallback, without_query })
    }

    fn metadata(&self) -> Result<Field, InvalidFormat> {
        let mut parts = self.argument.unwrap_or_default().split(':');
        match parts.next() {
            Some(namespace) if !namespace.is_empty() => {
                Ok(Field::DynamicMetadata { namespace: namespace.into(), path: parts.map(Into::into).collect() })
            }
            _ => Err(self.wrong("needs the name of a filter, as in NAMESPACE:KEY")),
        }
    }

    fn key(&self, name: &str) -> Result<HeaderKey, InvalidFormat> {
        let lower = name.to_ascii_lowercase();
        Ok(match lower.as_str() {
            ":method" => HeaderKey::Method,
            ":path" => HeaderKey::Path,
            ":authority" | "host" => HeaderKey::Authority,
            ":scheme" => HeaderKey::Scheme,
            ":status" => HeaderKey::Status,
            "content-length" => HeaderKey::ContentLength,
            _ => HeaderKey::Named(
                HeaderName::from_bytes(lower.as_bytes()).map_err(|_| self.wrong(&format!("`{name}` is not a header name")))?,
            ),
        })
    }

    fn wrong(&self, problem: &str) -> InvalidFormat {
        InvalidFormat::Argument { operator: self.name.to_owned(), problem: problem.to_owned() }
    }
}

/// Operators without an argument.
fn plain(name: &str) -> Option<Field> {
    Some(match name {
        "PROTOCOL" => Field::Text(Text::Protocol),
        "UPSTREAM_PROTOCOL" => Field::Text(Text::UpstreamProtocol),
        "RESPONSE_CODE" => Field::ResponseCode,
        "RESPONSE_FLAGS" => Field::Flags,
        "RESPONSE_FLAGS_LONG" => Field::FlagsLong,
        "RESPONSE_CODE_DETAILS" => Field::Text(Text::ResponseCodeDetails),
        "CONNECTION_TERMINATION_DETAILS" => Field::Text(Text::ConnectionTerminationDetails),
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Field::Text(Text::UpstreamTransportFailureReason),
        "LOCAL_REPLY_BODY" => Field::Text(Text::LocalReplyBody),
        "BYTES_RECEIVED" => Field::Bytes(Bytes::Received),
        "BYTES_SENT" => Field::Bytes(Bytes::Sent),
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Field::Bytes(Bytes::DownstreamWireReceived),
        "DOWNSTREAM_WIRE_BYTES_SENT" => Field::Bytes(Bytes::DownstreamWireSent),
        "DURATION" => Field::Span(Span::Whole),
        "REQUEST_DURATION" => Field::Span(Span::Request),
        "RESPONSE_DURATION" => Field::Span(Span::Response),
        "RESPONSE_TX_DURATION" => Field::Span(Span::ResponseTx),
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Field::Attempts,
        "UPSTREAM_CLUSTER" => Field::Text(Text::UpstreamCluster),
        "UPSTREAM_CLUSTER_RAW" => Field::Text(Text::UpstreamClusterRaw),
        "REQUESTED_SERVER_NAME" => Field::Text(Text::RequestedServerName),
        "ROUTE_NAME" => Field::Text(Text::RouteName),
        "VIRTUAL_HOST_NAME" => Field::Text(Text::VirtualHostName),
        "FILTER_CHAIN_NAME" => Field::Text(Text::FilterChainName),
        "DOWNSTREAM_PEER_URI_SAN" => Field::PeerUriSans,
        "DOWNSTREAM_LOCAL_URI_SAN" => Field::Text(Text::DownstreamLocalUriSan),
        "DOWNSTREAM_PEER_SUBJECT" => Field::Text(Text::DownstreamPeerSubject),
        "DOWNSTREAM_TLS_VERSION" => Field::Text(Text::DownstreamTlsVersion),
        "DOWNSTREAM_TLS_CIPHER" => Field::Text(Text::DownstreamTlsCipher),
        "TRACE_ID" => Field::TraceId,
        "GRPC_STATUS_NUMBER" => Field::GrpcStatus(GrpcForm::Number),
        "HOSTNAME" => Field::Fixed(hostname()),
        "CONNECTION_ID" => Field::ConnectionId,
        _ => return address(name),
    })
}

/// `<WHOSE>_ADDRESS`, `…_WITHOUT_PORT`, and `<WHOSE>_PORT`.
fn address(name: &str) -> Option<Field> {
    let (stem, half) = if let Some(stem) = name.strip_suffix("_WITHOUT_PORT") {
        (stem.strip_suffix("_ADDRESS").unwrap_or(stem), Half::WithoutPort)
    } else if let Some(stem) = name.strip_suffix("_PORT") {
        (stem, Half::Port)
    } else {
        (name.strip_suffix("_ADDRESS").unwrap_or(name), Half::Both)
    };
    let of = match stem {
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE" => AddressOf::UpstreamHost,
        "UPSTREAM_LOCAL" => AddressOf::UpstreamLocal,
        "DOWNSTREAM_LOCAL" => AddressOf::DownstreamLocal,
        "DOWNSTREAM_REMOTE" => AddressOf::DownstreamRemote,
        "DOWNSTREAM_DIRECT_REMOTE" => AddressOf::DownstreamDirectRemote,
        _ => return None,
    };
    // `%UPSTREAM_LOCAL%` alone is no operator; `%UPSTREAM_HOST%` is.
    if stem == name && stem != "UPSTREAM_HOST" {
        return None;
    }
    Some(Field::Address(of, half))
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}
