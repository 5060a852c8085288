//! Bodies at the rate of a bucket that streams share (Envoy bandwidth_limit filter).
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use lateen_snapshot::bandwidth::{BandwidthLimit, DelayTrailers, Limit};
use lateen_telemetry::envoy_names::bandwidth_limit as names;
use lateen_telemetry::stats::{Counter, Gauge, Held, Histogram};
use lateen_telemetry::{BlockName, Local};
use tokio::time::Instant;

use super::body::Piece;
use super::body::throttle::{Meter, Throttled};
use super::per_route;
use crate::http::Exchange;
use crate::http::message::{Frame, Length, Response};

/// What is counted of one direction.
struct Names {
    enforced: Counter,
    pending: Gauge,
    incoming: Counter,
    allowed: Counter,
    duration: Histogram,
}

const REQUEST: Names = Names {
    enforced: names::REQUEST_ENFORCED,
    pending: names::REQUEST_PENDING,
    incoming: names::REQUEST_INCOMING_TOTAL_SIZE,
    allowed: names::REQUEST_ALLOWED_TOTAL_SIZE,
    duration: names::REQUEST_TRANSFER_DURATION,
};
const RESPONSE: Names = Names {
    enforced: names::RESPONSE_ENFORCED,
    pending: names::RESPONSE_PENDING,
    incoming: names::RESPONSE_INCOMING_TOTAL_SIZE,
    allowed: names::RESPONSE_ALLOWED_TOTAL_SIZE,
    duration: names::RESPONSE_TRANSFER_DURATION,
};

/// How long a request took, for the trailers of its response: all, and what of it was waiting here.
type Took = Rc<Cell<(Duration, Duration)>>;

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &Arc<BandwidthLimit>, index: usize) {
    let config = per_route(exchange, |p| p.bandwidth_limit.as_ref()).unwrap_or_else(|| Arc::clone(config));
    let Some(limit) = config.limit.as_ref().filter(|limit| limit.request) else { return };
    let stats = stats(exchange, &config);
    stats.inc(names::REQUEST_ENABLED);
    if matches!(exchange.request.length, Length::None | Length::Empty | Length::Known(0)) {
        return;
    }
    let took = limit.trailers.is_some().then(Took::default);
    if let Some(took) = &took {
        exchange.bodies().note(index, Rc::clone(took));
    }
    exchange.change_request_body(throttled(limit, Measured { took, ..Measured::new(stats, &REQUEST) }), false);
}

pub(super) fn on_response(exchange: &mut Exchange<'_>, config: &Arc<BandwidthLimit>, index: usize, response: &Response) {
    let config = per_route(exchange, |p| p.bandwidth_limit.as_ref()).unwrap_or_else(|| Arc::clone(config));
    let Some(limit) = config.limit.as_ref().filter(|limit| limit.response) else { return };
    let stats = stats(exchange, &config);
    stats.inc(names::RESPONSE_ENABLED);
    if !super::has_body(exchange, response) {
        return;
    }
    let took = exchange.noted::<Took>(index).cloned();
    let trailers = limit.trailers.clone();
    exchange.change_response_body(throttled(limit, Measured { took, trailers, ..Measured::new(stats, &RESPONSE) }));
}

fn stats(exchange: &Exchange<'_>, config: &BandwidthLimit) -> Rc<Local> {
    let prefix = &config.stat_prefix;
    exchange.hcm.counters.get(exchange.worker, names::DEFS, prefix, || BlockName::plain(prefix))
}

fn throttled(limit: &Limit, meter: Measured) -> Throttled<Measured> {
    Throttled::new(Arc::clone(&limit.bucket), limit.fill_interval, meter)
}

/// Counts a body that passes, and tells the caller of its delays where that is wanted.
struct Measured {
    stats: Rc<Local>,
    names: &'static Names,
    /// Since the first piece.
    since: Option<(Instant, Held)>,
    waited: Duration,
    /// Of the request: written by its meter, read by that of the response.
    took: Option<Took>,
    /// Of a response.
    trailers: Option<Arc<DelayTrailers>>,
}

impl Measured {
    fn new(stats: Rc<Local>, names: &'static Names) -> Self {
        Self { stats, names, since: None, waited: Duration::ZERO, took: None, trailers: None }
    }

    fn told(&self, names: &DelayTrailers, duration: Duration, map: &mut HeaderMap) {
        let (request, request_waited) = self.took.as_ref().map_or_else(Default::default, |took| took.get());
        let mut tell = |name: &HeaderName, span: Duration| {
            if let Ok(millis @ 1..) = u64::try_from(span.as_millis()) {
                map.insert(name.clone(), HeaderValue::from(millis));
            }
        };
        tell(&names.request, request);
        tell(&names.request_filter, request_waited);
        tell(&names.response, duration);
        tell(&names.response_filter, self.waited);
    }
}

impl Meter for Measured {
    fn came(&mut self, bytes: u64, now: Instant) {
        if self.since.is_none() {
            self.since = Some((now, self.stats.hold(self.names.pending)));
        }
        self.stats.add(self.names.incoming, bytes);
    }

    fn went(&mut self, bytes: u64) {
        self.stats.add(self.names.allowed, bytes);
    }

    fn waits(&mut self, span: Duration) {
        self.stats.inc(self.names.enforced);
        self.waited += span;
    }

    fn over(&mut self, end: Piece, now: Instant) -> Piece {
        let Some((since, _pending)) = self.since.take() else { return end };
        if matches!(end, Some(Err(_))) {
            return end;
        }
        let duration = now.saturating_duration_since(since);
        self.stats.record(self.names.duration, u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        let Some(names) = &self.trailers else {
            if let Some(took) = &self.took {
                took.set((duration, self.waited));
            }
            return end;
        };
        let mut map = match end {
            Some(Ok(Frame::Trailers(map))) => map,
            _ => Box::default(),
        };
        self.told(names, duration, &mut map);
        (!map.is_empty()).then_some(Ok(Frame::Trailers(map)))
    }
}
