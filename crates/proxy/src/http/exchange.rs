//! One request and its response, from head to log line.
use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use lateen_balance::Host;
use lateen_core::recycle::maps;
use lateen_snapshot::RouteTable;
use lateen_snapshot::bootstrap::overload::Action;
use lateen_snapshot::metadata::Metadata;
use lateen_snapshot::ratelimit::TokenBucket;
use lateen_snapshot::route::{Route, VirtualHost};
use lateen_telemetry::istio::PeerId;
use lateen_telemetry::{ResponseFlags, details};
use tokio::time::Instant;

use super::message::{Length, Request, Response, Version};
use super::reply::{self, Reply};
use super::stream::Downstream;
use super::{Hcm, normalize, report, sanitize, upgrade};
use crate::filter;
use crate::filter::http::body::Bodies;
use crate::filter::http::grpc_stats;
use crate::filter::http::stateful_session::Session;
use crate::io::Timer;
use crate::listener::Conn;
use crate::router::{self, Redirects};
use crate::spans::{self, Active};
use crate::upstream::{ClusterState, Principals};
use crate::worker::{Live, Worker};

/// Why an exchange did not simply complete.
#[derive(Debug)]
pub(crate) enum End {
    /// We answer ourselves.
    Reply(Box<Reply>),
    /// The caller went away: nobody to answer.
    Gone,
    /// The response had begun when it broke: all we can do is to cut it off.
    Cut,
    /// The upstream redirected, and the request begins anew where that leads.
    Redirected,
    /// The request meets filters from the first on: those of an upgrade, or the same with a route that was found late.
    FiltersAnew,
}

impl From<Reply> for End {
    fn from(reply: Reply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

/// The route that a request took, kept alive by its table.
#[derive(Clone)]
pub(crate) struct Matched {
    pub(crate) table: Arc<RouteTable>,
    pub(crate) virtual_host: usize,
    pub(crate) route: Arc<Route>,
    /// Index into the route's weighted clusters, once chosen.
    pub(crate) weighted: Option<usize>,
}

impl Matched {
    pub(crate) fn virtual_host(&self) -> Option<&VirtualHost> {
        self.table.virtual_hosts.get(self.virtual_host)
    }
}

/// What is learnt on the way and told at the end.
pub(crate) struct Info {
    pub(crate) start: Instant,
    pub(crate) start_time: SystemTime,
    /// When the clock was last looked at: good as `now` until the exchange waits again. Looking costs as much as a table
    /// lookup, and a request that waits twice would do it a dozen times.
    pub(crate) moment: Instant,
    /// When the response had been handed over; set before the exchange is reported.
    pub(crate) ended: Option<Instant>,
    pub(crate) flags: ResponseFlags,
    pub(crate) details: Cow<'static, str>,
    /// 0 until a response begins.
    pub(crate) status: u16,
    pub(crate) body_received: u64,
    pub(crate) body_sent: u64,
    pub(crate) head_sent: u64,
    pub(crate) route: Option<Matched>,
    /// Where a route was looked for, while none matches.
    pub(crate) unmatched: Option<Arc<RouteTable>>,
    /// The HTTP filters that are switched off, once that is settled.
    pub(crate) off: Option<filter::http::switches::Off>,
    /// Index of the HTTP filter that runs.
    pub(crate) filter: usize,
    pub(crate) cluster: Option<Rc<ClusterState>>,
    pub(crate) host: Option<Arc<Host>>,
    pub(crate) upstream_local: Option<SocketAddr>,
    pub(crate) upstream_protocol: Option<Version>,
    pub(crate) upstream_principals: Principals,
    pub(crate) attempts: u32,
    pub(crate) transport_failure: String,
    pub(crate) request_done: Option<Duration>,
    pub(crate) response_at: Option<Duration>,
    pub(crate) response_headers: Option<HeaderMap>,
    pub(crate) response_length: Length,
    pub(crate) response_trailers: Option<Box<HeaderMap>>,
    pub(crate) grpc: bool,
    pub(crate) grpc_status: Option<u16>,
    /// The other end's metadata: the caller's when inbound, the upstream's when outbound.
    pub(crate) peer: PeerId,
    /// The caller after `x-forwarded-for`.
    pub(crate) remote: SocketAddr,
    pub(crate) internal: bool,
    pub(crate) reply_body: Option<Cow<'static, str>>,
    /// Values for `set-cookie` that make later requests go to the same host.
    pub(crate) affinity_cookies: Vec<http::HeaderValue>,
    pub(crate) cors: Option<Box<filter::http::cors::Marks>>,
    /// The caller sent its own metadata and expects ours.
    pub(crate) peer_asked: bool,
    /// Messages of a gRPC call, where they are counted.
    pub(crate) grpc_call: Option<Box<grpc_stats::Call>>,
    /// The request's span, where it has one.
    pub(crate) span: Option<Box<Active>>,
    /// Traced because a service's header asked for it.
    pub(crate) trace_forced: bool,
    /// What filters found out.
    pub(crate) metadata: Metadata,
    /// A health check, as a filter found out.
    pub(crate) health_check: bool,
    /// Buckets that the caller is told about.
    pub(crate) quotas: Vec<Arc<TokenBucket>>,
    /// The host that the caller stays at.
    pub(crate) session: Option<Box<Session>>,
    /// What filters that asked another server put on the response.
    pub(crate) response_mutations: Option<Box<filter::http::Mutations>>,
}

/// The exchange.
pub(crate) struct Exchange<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) hcm: &'a Rc<Hcm>,
    /// The manager that the request came to, where `hcm` is that of an upgrade.
    pub(crate) entered: &'a Rc<Hcm>,
    pub(crate) conn: &'a Rc<Conn>,
    pub(crate) live: Rc<Live>,
    pub(crate) request: Request,
    pub(crate) down: &'a mut Downstream,
    pub(crate) timer: &'a mut Timer,
    pub(crate) info: Info,
    /// Set once a redirect was followed here.
    pub(crate) redirects: Option<Box<Redirects>>,
    /// What filters make of bodies, where any does.
    pub(crate) bodies: Option<Box<Bodies>>,
}

impl Info {
    fn new(start: Instant, start_time: SystemTime, remote: SocketAddr, grpc: bool) -> Self {
        Self {
            start,
            start_time,
            moment: start,
            ended: None,
            flags: ResponseFlags::NONE,
            details: Cow::Borrowed(""),
            status: 0,
            body_received: 0,
            body_sent: 0,
            head_sent: 0,
            route: None,
            unmatched: None,
            off: None,
            filter: 0,
            cluster: None,
            host: None,
            upstream_local: None,
            upstream_protocol: None,
            upstream_principals: Principals::default(),
            attempts: 0,
            transport_failure: String::new(),
            request_done: None,
            response_at: None,
            response_headers: None,
            response_length: Length::None,
            response_trailers: None,
            grpc,
            grpc_status: None,
            peer: PeerId::default(),
            remote,
            internal: false,
            reply_body: None,
            affinity_cookies: Vec::new(),
            cors: None,
            peer_asked: false,
            grpc_call: None,
            span: None,
            trace_forced: false,
            metadata: Metadata::default(),
            health_check: false,
            quotas: Vec::new(),
            session: None,
            response_mutations: None,
        }
    }
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(
        worker: &'a Rc<Worker>,
        hcm: &'a Rc<Hcm>,
        conn: &'a Rc<Conn>,
        request: Request,
        down: &'a mut Downstream,
        timer: &'a mut Timer,
    ) -> Self {
        let start = Instant::now();
        let info = Info::new(start, worker.wall_clock(start), conn.remote, request.is_grpc());
        Self { worker, hcm, entered: hcm, conn, live: worker.live(), request, down, timer, info, redirects: None, bodies: None }
    }

    /// Serves the request to its end, whatever that is; returns when that was.
    pub(crate) async fn run(&mut self) -> Instant {
        report::begin(self);
        let outcome = loop {
            match self.steps().await {
                Err(End::Redirected) => self.begin_anew(),
                outcome => break outcome,
            }
        };
        match outcome {
            Ok(()) | Err(End::Redirected | End::FiltersAnew) => {}
            Err(End::Reply(reply)) => reply::send(self, *reply).await,
            Err(End::Gone) => {
                self.note_gone();
                self.down.abort();
            }
            Err(End::Cut) => self.down.abort(),
        }
        self.timer.set(None);
        let ended = *self.info.ended.get_or_insert_with(Instant::now);
        report::end(self, ended);
        spans::end(self);
        maps::recycle(std::mem::take(&mut self.request.headers));
        self.info.response_headers.take().into_iter().for_each(maps::recycle);
        ended
    }

    /// What was learnt so far is told as a request of its own; the next is as old, and by the same caller.
    fn begin_anew(&mut self) {
        self.timer.set(None);
        let now = Instant::now();
        self.info.ended = Some(now);
        report::end(self, now);
        spans::end(self);
        let before = &mut self.info;
        let mut info = Info::new(before.start, before.start_time, before.remote, before.grpc);
        info.moment = now;
        info.body_received = before.body_received;
        info.request_done = before.request_done;
        info.internal = before.internal;
        info.peer_asked = before.peer_asked;
        if self.hcm.inbound {
            info.peer = before.peer;
        }
        self.info = info;
        let body = self.redirects.as_mut().and_then(|r| r.body.take());
        self.bodies = body.map(|kept| Box::new(Bodies::of(kept.into_frames())));
        self.live = self.worker.live();
        report::begin(self);
    }

    /// For the log: the caller went away, or gave up this exchange alone.
    pub(crate) fn note_gone(&mut self) {
        let (flag, detail) = if self.down.was_reset() {
            (ResponseFlags::DOWNSTREAM_REMOTE_RESET, details::HTTP2_REMOTE_RESET)
        } else {
            (ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, details::DOWNSTREAM_REMOTE_DISCONNECT)
        };
        self.info.flags.insert(flag);
        self.info.details = Cow::Borrowed(detail);
    }

    /// Answers without a request to serve.
    pub(crate) async fn refuse(mut self, reply: Reply) {
        report::begin(&self);
        self.down.close_after();
        reply::send(&mut self, reply).await;
        self.timer.set(None);
        report::end(&self, Instant::now());
    }

    async fn steps(&mut self) -> Result<(), End> {
        #[cfg(test)]
        assert!(self.request.path.as_str() != "/injected-panic", "injected");
        self.refuse_when_overloaded()?;
        normalize::run(self)?;
        // What a redirected request says of itself was settled the first time.
        if self.redirects.is_none() {
            sanitize::run(self)?;
        }
        let found = self.find_route();
        spans::begin(self);
        found?;
        upgrade::admit(self)?;
        let mut turns = 0u32;
        loop {
            let passed = {
                let mut filters = pin!(filter::http::on_request(self));
                poll_fn(|cx| {
                    turns += 1;
                    filters.as_mut().poll(cx)
                })
                .await
            };
            match passed {
                Err(End::FiltersAnew) => self.forget_filters(),
                passed => break passed?,
            }
        }
        if turns > 1 {
            self.info.moment = Instant::now();
        }
        router::run(self).await
    }

    /// What filters kept for the response is theirs by their places. What they made of the request stays made.
    fn forget_filters(&mut self) {
        self.info.response_mutations = None;
        self.info.session = None;
        self.info.quotas.clear();
        let body = self.request.has_body() || self.request.upgrade.is_some();
        self.bodies = self.bodies.take().filter(|b| body && !b.request.is_empty()).map(|b| Box::new(Bodies::with_request(b.request)));
    }

    /// Envoy `ConnectionManagerImpl::ActiveStream::decodeHeaders`: an overloaded process answers, and does no more.
    fn refuse_when_overloaded(&self) -> Result<(), End> {
        let concerns = |action| self.worker.overload.concerns(action, || self.worker.roll());
        let exempt = self.conn.listener.listener.ignores_overload;
        if exempt || !(concerns(Action::ShedRequests) || concerns(Action::StopAcceptingRequests)) {
            return Ok(());
        }
        self.hcm.stats.inc(lateen_telemetry::envoy_names::http::DOWNSTREAM_RQ_OVERLOAD_CLOSE);
        Err(Reply::new(503, "envoy overloaded", details::OVERLOAD, ResponseFlags::NONE).into())
    }

    /// Has the connection end after the response, if there is a cause (Envoy `ConnectionManagerImpl::ActiveStream::encodeHeaders`).
    /// HTTP/2 decides for itself, when a stream begins.
    fn end_connection(&mut self, response: &Response) {
        use lateen_telemetry::envoy_names::http as names;
        let drains = self.conn.ends(self.worker);
        let overloaded = !drains && self.conn.ends_by_overload(self.worker);
        if drains || overloaded {
            if self.down.close_after() {
                self.hcm.stats.inc(names::DOWNSTREAM_CX_DRAIN_CLOSE);
                self.hcm.stats.add(names::DOWNSTREAM_CX_OVERLOAD_DISABLE_KEEPALIVE, u64::from(overloaded));
            }
        } else if self.conn.is_old() || (self.request.upgrade.is_some() && response.upgrade.is_none()) {
            // Bytes behind a refused switch of protocols are no request, whatever they look like.
            self.down.close_after();
        }
    }

    /// Sends the response's head to the caller, finished off with what every response carries.
    pub(crate) fn send_head(&mut self, response: &mut Response, end: bool) {
        let hcm = self.hcm;
        super::hcm::set_server(hcm, &mut response.headers);
        let worker = self.worker;
        let now = self.info.start_time;
        super::headers::insert_if_absent(&mut response.headers, http::header::DATE, || worker.date(now));
        if hcm.config.always_set_request_id_in_response
            && let Some(id) = self.request.headers.get(super::headers::REQUEST_ID)
        {
            response.headers.insert(super::headers::REQUEST_ID, id.clone());
        }
        if let Some(via) = &hcm.config.via {
            super::headers::append_list_with(&mut response.headers, http::header::VIA, ", ", via);
        }
        self.end_connection(response);
        self.info.status = response.status.as_u16();
        self.info.head_sent = response.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 4).sum::<usize>() as u64 + 19;
        if self.info.grpc {
            self.note_grpc_status(&response.headers);
            // What answers a call without gRPC has a status all the same, as callers will read it.
            if self.info.grpc_status.is_none() && response.status != http::StatusCode::OK {
                self.info.grpc_status = Some(reply::grpc_status(response.status));
            }
        }
        self.down.send_head(response, end);
        let headers = std::mem::take(&mut response.headers);
        if hcm.logs.wants_headers() || self.info.span.is_some() {
            self.info.response_headers = Some(headers);
            self.info.response_length = response.length;
        } else {
            maps::recycle(headers);
        }
    }

    pub(crate) fn note_grpc_status(&mut self, map: &HeaderMap) {
        if let Some(status) = super::headers::number(map, &super::headers::GRPC_STATUS) {
            self.info.grpc_status = u16::try_from(status).ok();
        }
    }
}
