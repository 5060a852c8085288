//! Which requests and connections a log holds, and which of our own replies are reworded.
use lateen_snapshot::log_filter::{LogFilter, LogType};
use lateen_snapshot::matcher::{Fraction, ValueMatcher};
use lateen_telemetry::access_log::{HeaderKey, HeadersOf, Record, Span};

use super::access::RequestRecord;
use super::headers::{GRPC_STATUS, REQUEST_ID};
use super::reply::grpc_status_of;
use crate::router::lookup::header_matches;
use crate::spans::die_of;

/// The last status that gRPC knows, and the one of a call of which none is known.
const UNAUTHENTICATED: u32 = 16;
const UNKNOWN: u32 = 2;

/// Whether a filter lets through what happened on this occasion.
pub(super) fn passes<R: Record>(filter: &LogFilter, record: &R, request: Option<&RequestRecord<'_>>, on: LogType) -> bool {
    match filter {
        LogFilter::StatusCode(matcher) => holds(*matcher, u64::from(record.response_code())),
        LogFilter::Duration(matcher) => holds(*matcher, record.span(Span::Whole).map_or(0, |d| d.as_millis() as u64)),
        LogFilter::ResponseFlags(flags) => record.flags().intersects(*flags),
        LogFilter::And(all) => all.iter().all(|f| passes(f, record, request, on)),
        LogFilter::Or(any) => any.iter().any(|f| passes(f, record, request, on)),
        LogFilter::NotHealthCheck => !request.is_some_and(|r| r.info.health_check),
        LogFilter::Header(matcher) => match request.map(|r| r.request).filter(|request| request.was_read()) {
            Some(request) => header_matches(matcher, request),
            // Of a connection, and of bytes that are no request, there are no headers.
            None => matcher.matches_missing(),
        },
        LogFilter::Traceable => request.is_some_and(|r| r.info.trace_forced && !r.info.health_check),
        LogFilter::Share { fraction, independent } => {
            let id = request.filter(|_| !independent).and_then(|r| r.request.headers.get(REQUEST_ID));
            hit(*fraction, id.and_then(|id| die_of(id.as_bytes())).unwrap_or_else(rand::random))
        }
        LogFilter::GrpcStatus { statuses, exclude } => {
            let found = grpc_status(record).is_some_and(|status| statuses & (1 << status) != 0);
            found != *exclude
        }
        LogFilter::Metadata { matcher, without } => {
            let value = matcher.as_ref().and_then(|m| Some((m, record.dynamic_metadata(&m.namespace, &m.path)?)));
            value.map_or(*without, |(matcher, value)| matcher.value.matches(value))
        }
        LogFilter::LogType { types, exclude } => on.is_among(*types) != *exclude,
    }
}

fn holds(matcher: ValueMatcher, value: u64) -> bool {
    match matcher {
        ValueMatcher::Equal(n) => value == n,
        ValueMatcher::GreaterOrEqual(n) => value >= n,
        ValueMatcher::LessOrEqual(n) => value <= n,
        ValueMatcher::NotEqual(n) => value != n,
    }
}

fn hit(fraction: Fraction, die: u64) -> bool {
    die % u64::from(fraction.denominator) < u64::from(fraction.numerator)
}

/// That of the trailers before that of the head, else what callers make of the HTTP status. `None` for a status that gRPC
/// does not know.
fn grpc_status<R: Record>(record: &R) -> Option<u32> {
    let key = HeaderKey::Named(GRPC_STATUS);
    let said = [HeadersOf::ResponseTrailers, HeadersOf::Response].into_iter().find_map(|of| record.header(of, &key));
    match said.filter(|said| !said.is_empty()) {
        Some(said) => std::str::from_utf8(said).ok()?.parse().ok().filter(|status| *status <= UNAUTHENTICATED),
        None => Some(match record.response_code() {
            0 => UNKNOWN,
            status => u32::from(grpc_status_of(status)),
        }),
    }
}
