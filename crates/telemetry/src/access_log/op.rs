//! One compiled piece of a format, and the value it takes from a record.
use super::record::{Address, AddressOf, Bytes, FilterState, HeaderKey, HeadersOf, Record, Span, Text};
use super::time::{TimeFormat, push_padded};
use std::io::Write as _;
use std::net::IpAddr;

/// Which half of an address to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Both,
    WithoutPort,
    Port,
}

/// How a gRPC status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrpcForm {
    /// `NotFound`
    Camel,
    /// `NOT_FOUND`
    Snake,
    Number,
}

/// What an operator prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    StartTime(TimeFormat),
    /// The first header, else the second; the flag cuts the query off.
    Header {
        of: HeadersOf,
        key: HeaderKey,
        fallback: Option<HeaderKey>,
        without_query: bool,
    },
    Text(Text),
    /// What a filter found out about the request.
    DynamicMetadata {
        namespace: Box<str>,
        path: Vec<Box<str>>,
    },
    FilterState(FilterState),
    Address(AddressOf, Half),
    Span(Span),
    Bytes(Bytes),
    ResponseCode,
    Flags,
    FlagsLong,
    ConnectionId,
    Attempts,
    /// Of a gRPC call.
    GrpcStatus(GrpcForm),
    /// All of them, with commas between.
    PeerUriSans,
    TraceId,
    /// Known when compiled: the host's name, an environment variable.
    Fixed(String),
}

/// A piece of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Literal(Vec<u8>),
    Field(Field, Option<usize>),
}

/// Whether JSON prints the value as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Text,
    Number,
    /// Already JSON: an object or list.
    Json,
    Missing,
}

const GRPC_NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

impl Field {
    /// Appends the value, cut to `limit` bytes; says what it was. Appends nothing when missing.
    pub(super) fn write<R: Record + ?Sized>(&self, record: &R, limit: Option<usize>, out: &mut Vec<u8>) -> Found {
        let start = out.len();
        let found = self.write_whole(record, out);
        if let Some(limit) = limit {
            out.truncate(start + limit.min(out.len() - start));
        }
        found
    }

    fn write_whole<R: Record + ?Sized>(&self, record: &R, out: &mut Vec<u8>) -> Found {
        match self {
            Self::StartTime(format) => {
                format.write(record.start_time(), out);
                Found::Text
            }
            Self::Header { of, key, fallback, without_query } => {
                let found = header(record, *of, key, *without_query, out);
                let found = found.or_else(|| header(record, *of, fallback.as_ref()?, *without_query, out));
                found.unwrap_or(Found::Missing)
            }
            Self::DynamicMetadata { namespace, path } => metadata(record.dynamic_metadata(namespace, path), out),
            // Its absence is an empty body.
            Self::Text(Text::LocalReplyBody) => {
                out.extend_from_slice(record.text(Text::LocalReplyBody).unwrap_or_default().as_bytes());
                Found::Text
            }
            Self::FilterState(of) => metadata(record.filter_state(*of).as_ref(), out),
            Self::Text(of) => text(record.text(*of).map(str::as_bytes), out),
            Self::Address(of, half) => address(record.address(*of), *half, out),
            Self::Span(of) => number(record.span(*of).map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)), out),
            Self::Bytes(of) => number(Some(record.bytes(*of)), out),
            Self::ResponseCode => number(Some(record.response_code().into()), out),
            Self::Flags => {
                record.flags().write_short(out);
                Found::Text
            }
            Self::FlagsLong => {
                record.flags().write_long(out);
                Found::Text
            }
            Self::ConnectionId => number(record.connection_id(), out),
            Self::Attempts => number(Some(record.attempts().into()), out),
            Self::GrpcStatus(form) => grpc_status(record).map_or(Found::Missing, |code| write_grpc(code, *form, out)),
            Self::PeerUriSans => {
                for (index, name) in record.peer_uri_sans().iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(name.as_bytes());
                }
                if record.peer_uri_sans().is_empty() { Found::Missing } else { Found::Text }
            }
            Self::TraceId => record.trace_id().map_or(Found::Missing, |(id, digits)| {
                // Writing to a Vec cannot fail.
                let _ = write!(out, "{id:0digits$x}");
                Found::Text
            }),
            Self::Fixed(value) => text(Some(value.as_bytes()), out),
        }
    }
}

/// `None` when there is none.
fn header<R: Record + ?Sized>(record: &R, of: HeadersOf, key: &HeaderKey, without_query: bool, out: &mut Vec<u8>) -> Option<Found> {
    if matches!(key, HeaderKey::ContentLength) {
        number(Some(record.content_length(of)?), out);
        // It is a header's text all the same.
        return Some(Found::Text);
    }
    if matches!((of, key), (HeadersOf::Response, HeaderKey::Status)) {
        number(Some(record.response_code()).filter(|code| *code != 0).map(u64::from), out);
        return (record.response_code() != 0).then_some(Found::Text);
    }
    let value = record.header(of, key)?;
    // One that is there and empty is not missing.
    out.extend_from_slice(if without_query { value.split(|b| *b == b'?').next().unwrap_or(value) } else { value });
    Some(Found::Text)
}

fn text(value: Option<&[u8]>, out: &mut Vec<u8>) -> Found {
    match value {
        Some(value) if !value.is_empty() => {
            out.extend_from_slice(value);
            Found::Text
        }
        _ => Found::Missing,
    }
}

/// Text without quotes, anything else as JSON, as Envoy's formatter does.
fn metadata(value: Option<&serde_json::Value>, out: &mut Vec<u8>) -> Found {
    match value {
        None => Found::Missing,
        Some(serde_json::Value::String(value)) => {
            out.extend_from_slice(value.as_bytes());
            Found::Text
        }
        Some(value) => {
            sorted_json(value, out);
            Found::Json
        }
    }
}

/// JSON with sorted keys, so that equal values are equal lines.
fn sorted_json(value: &serde_json::Value, out: &mut Vec<u8>) {
    let comma = |index: usize, out: &mut Vec<u8>| {
        if index > 0 {
            out.push(b',');
        }
    };
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            out.push(b'{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                comma(index, out);
                // Writing to a Vec cannot fail.
                let _ = serde_json::to_writer(&mut *out, key);
                out.push(b':');
                sorted_json(value, out);
            }
            out.push(b'}');
        }
        serde_json::Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                comma(index, out);
                sorted_json(item, out);
            }
            out.push(b']');
        }
        scalar => {
            let _ = write!(out, "{scalar}");
        }
    }
}

fn number(value: Option<u64>, out: &mut Vec<u8>) -> Found {
    match value {
        Some(value) => {
            push_padded(out, value, 1, b'0');
            Found::Number
        }
        None => Found::Missing,
    }
}

fn address(address: Option<Address<'_>>, half: Half, out: &mut Vec<u8>) -> Found {
    let socket = match (address, half) {
        (None, _) => return Found::Missing,
        (Some(Address::Named(_)), Half::Port) => return Found::Missing,
        (Some(Address::Named(name)), _) => return text(Some(name.as_bytes()), out),
        (Some(Address::Socket(socket)), _) => socket,
    };
    if half == Half::Port {
        return number(Some(socket.port().into()), out);
    }
    // Writing to a Vec cannot fail. The IPv4 case, which is nearly every line, avoids the formatter.
    match socket.ip() {
        IpAddr::V4(ip) => push_ipv4(out, ip.octets()),
        IpAddr::V6(ip) if half == Half::Both => {
            let _ = write!(out, "[{ip}]");
        }
        IpAddr::V6(ip) => {
            let _ = write!(out, "{ip}");
        }
    }
    if half == Half::Both {
        out.push(b':');
        push_padded(out, socket.port().into(), 1, b'0');
    }
    Found::Text
}

fn push_ipv4(out: &mut Vec<u8>, octets: [u8; 4]) {
    let mut text = [0; 16];
    let mut at = 0;
    for octet in octets {
        for (scale, least) in [(100, 100), (10, 10), (1, 0)] {
            if octet >= least {
                text[at] = b'0' + octet / scale % 10;
                at += 1;
            }
        }
        text[at] = b'.';
        at += 1;
    }
    out.extend_from_slice(&text[..at - 1]);
}

/// `grpc-status` of the trailers, else of the headers of a response without a body; -1 for one that is no number.
fn grpc_status<R: Record + ?Sized>(record: &R) -> Option<i64> {
    if !record.is_grpc() {
        return None;
    }
    let key = HeaderKey::Named(http::HeaderName::from_static("grpc-status"));
    let of = |headers| record.header(headers, &key).filter(|value| !value.is_empty());
    match of(HeadersOf::ResponseTrailers).or_else(|| of(HeadersOf::Response)) {
        Some(value) => Some(std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).filter(|code| *code >= 0).unwrap_or(-1)),
        None => record.implied_grpc_status().map(i64::from),
    }
}

/// A code without a name is its number.
fn write_grpc(code: i64, form: GrpcForm, out: &mut Vec<u8>) -> Found {
    let name = usize::try_from(code).ok().filter(|_| form != GrpcForm::Number).and_then(|code| GRPC_NAMES.get(code));
    let Some((camel, snake)) = name else {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{code}");
        return if form == GrpcForm::Number { Found::Number } else { Found::Text };
    };
    out.extend_from_slice(if form == GrpcForm::Camel { camel } else { snake }.as_bytes());
    Found::Text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_as_the_standard_library_prints_them() {
        for octets in [[0, 0, 0, 0], [10, 0, 0, 1], [255, 255, 255, 255], [100, 99, 9, 109], [1, 20, 200, 101]] {
            let mut out = Vec::new();
            push_ipv4(&mut out, octets);
            assert_eq!(String::from_utf8(out).unwrap(), std::net::Ipv4Addr::from(octets).to_string());
        }
    }
}
