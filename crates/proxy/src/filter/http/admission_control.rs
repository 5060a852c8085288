//! Refusing requests early while too many of the last ones failed (Envoy admission_control filter). Each worker goes by the
//! requests that it has seen itself, as in Envoy.
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::CONTENT_TYPE;
use lateen_snapshot::admission::{AdmissionControl, Window};
use lateen_telemetry::envoy_names::admission_control as names;
use lateen_telemetry::{Local, ResponseFlags, details};
use tokio::time::Instant;

use super::Step;
use super::body::{Piece, Source, Stage};
use crate::http::headers::{GRPC_STATUS, number};
use crate::http::message::{Frame, Response};
use crate::http::reply::Reply;
use crate::http::{Exchange, Info};

/// Four digits of a probability count (Envoy).
const ACCURACY: u32 = 10_000;

/// What a worker knows of one filter's requests.
pub(crate) struct State {
    stats: Local,
    window: RefCell<Window>,
}

impl State {
    pub(crate) fn new(stats: Local) -> Self {
        Self { stats, window: RefCell::default() }
    }

    fn record(&self, config: &AdmissionControl, success: bool, now: Instant) {
        self.stats.inc(if success { names::RQ_SUCCESS } else { names::RQ_FAILURE });
        self.window.borrow_mut().record(success, now.into_std(), config.window);
    }

    fn refuses(&self, config: &AdmissionControl, now: Instant, roll: u32) -> bool {
        let (mut window, now) = (self.window.borrow_mut(), now.into_std());
        if window.rate(now, config.window) < u64::from(config.rps_threshold) {
            return false;
        }
        let (requests, successes) = window.counts(now, config.window);
        config.rejection(requests, successes) * f64::from(ACCURACY) > f64::from(roll % ACCURACY)
    }
}

/// The request was refused here: its response says nothing about the upstream.
struct Refused;

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &AdmissionControl, state: &State, index: usize) -> Step {
    let info = &exchange.info;
    if !config.enabled || info.health_check || !state.refuses(config, info.moment, exchange.worker.roll()) {
        return Step::Continue;
    }
    state.stats.inc(names::RQ_REJECTED);
    exchange.bodies().note(index, Refused);
    Step::Reply(Reply::new(503, "", details::DENIED_BY_ADMISSION_CONTROL, ResponseFlags::NONE))
}

pub(super) fn on_response(
    exchange: &mut Exchange<'_>,
    config: &Arc<AdmissionControl>,
    state: &Rc<State>,
    index: usize,
    response: &Response,
) {
    if !config.enabled || exchange.info.health_check || exchange.noted::<Refused>(index).is_some() {
        return;
    }
    let grpc = response.headers.get(CONTENT_TYPE).is_some_and(|v| is_grpc(v.as_bytes())) && response.status.as_u16() == 200;
    let success = if !grpc {
        config.is_http_success(response.status.as_u16())
    } else if let Some(status) = number(&response.headers, &GRPC_STATUS) {
        is_success(config, status)
    } else {
        return exchange.change_response_body(Watched { state: Rc::clone(state), config: Arc::clone(config) });
    };
    state.record(config, success, Instant::now());
}

fn is_grpc(content_type: &[u8]) -> bool {
    content_type.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}

fn is_success(config: &AdmissionControl, status: u64) -> bool {
    u32::try_from(status).is_ok_and(|status| config.is_grpc_success(status))
}

/// A gRPC response, whose status comes last.
struct Watched {
    state: Rc<State>,
    config: Arc<AdmissionControl>,
}

impl Stage for Watched {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Piece> {
        let piece = ready!(source.poll_piece(cx, info));
        if let Some(Ok(Frame::Trailers(trailers))) = &piece {
            let success = number(trailers, &GRPC_STATUS).is_some_and(|status| is_success(&self.config, status));
            self.state.record(&self.config, success, Instant::now());
        }
        Poll::Ready(piece)
    }
}
