//! A connection manager bound to one worker's counters and logs.
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use lateen_snapshot::Listener;
use lateen_snapshot::http::{HttpConnectionManager, HttpFilter, Router};
use lateen_snapshot::listener::Direction;
use lateen_snapshot::matcher::Rbac;
use lateen_telemetry::access_log::TextFormat;
use lateen_telemetry::envoy_names::{cors, fault, http as names, jwt_authn, stateful_session};
use lateen_telemetry::{BlockName, Local};

use super::h1::HeadLimits;
use super::local_reply::Words;
use super::{LogSet, headers};
use crate::filter::http::{FilterStats, rbac};
use crate::filter::{self, Found};
use crate::spans::Tracer;
use crate::worker::{Counters, Worker};

/// A template with its compiled form, if it has one.
type KeptFormat = (Arc<str>, Option<Rc<TextFormat>>);

/// Compiled header templates kept at most.
const MAX_FORMATS: usize = 4096;

/// A connection manager with the discovered filters of a snapshot.
struct Resolved {
    found: Found,
    hcm: Rc<Hcm>,
}

/// The connection manager as a worker runs it.
pub(crate) struct Hcm {
    pub(crate) config: Arc<HttpConnectionManager>,
    pub(crate) inbound: bool,
    direction: Direction,
    /// Some filter's configuration is discovered: requests are served by [`Self::current`].
    pub(crate) discovers: bool,
    resolved: RefCell<Option<Resolved>>,
    pub(crate) stats: Local,
    pub(crate) fault: Local,
    pub(crate) cors: Local,
    rbac: Vec<(Arc<Rbac>, rbac::Stats)>,
    sessions: RefCell<Vec<(Arc<str>, Rc<Local>)>>,
    pub(crate) jwt_authn: Local,
    pub(crate) logs: LogSet,
    pub(crate) words: Option<Rc<Words>>,
    pub(crate) limits: HeadLimits,
    pub(crate) server: HeaderValue,
    pub(crate) router: Arc<Router>,
    pub(crate) tracer: Option<Rc<Tracer>>,
    /// Counters of filters, which may have a prefix of their own.
    pub(crate) counters: Counters,
    /// For each upgrade the manager with its filters, where it has some of its own.
    pub(crate) upgrades: Vec<Option<Rc<Hcm>>>,
    /// Whether any filter wants to see the response.
    pub(crate) response_filters: bool,
    /// By the filters' places.
    pub(crate) filter_stats: Vec<FilterStats>,
    /// Whether any filter may hold a response back.
    pub(crate) holds_responses: bool,
    /// By the text's address. Each holds its text, or another text could come to stand there.
    formats: RefCell<HashMap<usize, KeptFormat>>,
}

impl Hcm {
    pub(crate) fn new(worker: &Rc<Worker>, listener: &Listener, config: Arc<HttpConnectionManager>) -> Rc<Self> {
        let tracer = Tracer::new(worker, config.tracing.as_ref(), &config.stat_prefix, listener.direction == Direction::Outbound);
        Self::with(worker, listener.direction, config, tracer)
    }

    fn with(worker: &Rc<Worker>, direction: Direction, config: Arc<HttpConnectionManager>, tracer: Option<Rc<Tracer>>) -> Rc<Self> {
        // A filter that was discovered was not there when the listener was.
        filter::http::jwks::keep(worker, &config);
        let prefix = &config.stat_prefix;
        let local = |defs, name| worker.shard.local(&worker.registry.block(defs, name));
        let router = config.filters.iter().find_map(|f| if let HttpFilter::Router(r) = f { Some(Arc::clone(r)) } else { None });
        let sees_response = |f: &HttpFilter| {
            use HttpFilter as F;
            // A fault by route may slow a response down.
            matches!(
                f,
                F::Cors
                    | F::Fault(_)
                    | F::PeerMetadata(_)
                    | F::IstioStats(_)
                    | F::LocalRateLimit(_)
                    | F::HeaderToMetadata(_)
                    | F::ExtAuthz(_)
                    | F::RateLimit(_)
                    | F::ExtProc(_)
                    | F::BandwidthLimit(_)
                    | F::AdmissionControl(_)
                    | F::StatefulSession(_)
                    | F::Compressor(_)
                    | F::Decompressor(_)
                    | F::GrpcWeb
                    | F::HeaderMutation(_)
                    | F::HealthCheck(_)
                    | F::GrpcReverseBridge(_)
            )
        };
        Rc::new(Self {
            direction,
            inbound: direction == Direction::Inbound,
            resolved: RefCell::default(),
            discovers: config.filters.iter().any(|f| matches!(f, HttpFilter::Discovered(_))),
            stats: local(names::DEFS, BlockName::http(prefix)),
            fault: local(fault::DEFS, BlockName::http_filters(prefix)),
            cors: local(cors::DEFS, BlockName::http_filters(prefix)),
            rbac: config
                .filters
                .iter()
                .filter_map(|f| match f {
                    HttpFilter::Rbac(filter) => Some((Arc::clone(filter), rbac::Stats::new(worker, prefix, filter))),
                    _ => None,
                })
                .collect(),
            jwt_authn: local(jwt_authn::DEFS, BlockName::http_filters(prefix)),
            logs: LogSet::new(worker, &config.access_logs),
            words: config.local_replies.as_ref().map(Words::new),
            limits: HeadLimits {
                bytes: config.max_request_headers_kb as usize * 1024,
                count: config.max_headers_count as usize,
                accept_http_10: config.http1.accept_http_10,
                allow_chunked_length: config.http1.allow_chunked_length,
                names: config.http1.names,
            },
            server: HeaderValue::from_str(&config.server_name).unwrap_or(HeaderValue::from_static("envoy")),
            router: router.unwrap_or_default(),
            upgrades: config
                .upgrades
                .iter()
                .map(|upgrade| Some(Self::with(worker, direction, Arc::clone(upgrade.manager.as_ref()?), tracer.clone())))
                .collect(),
            tracer,
            response_filters: config.filters.iter().any(sees_response),
            filter_stats: config.filters.iter().map(|f| FilterStats::new(worker, prefix, f)).collect(),
            holds_responses: config.filters.iter().any(filter::http::may_hold_response),
            formats: RefCell::default(),
            sessions: RefCell::default(),
            counters: Counters::default(),
            config,
        })
    }

    /// This one with the filters that are discovered as of now. Requests under way keep those that they began with.
    pub(crate) fn current(&self, worker: &Rc<Worker>) -> Rc<Self> {
        let live = worker.live();
        let snapshot = &live.snapshot;
        let mut kept = self.resolved.borrow_mut();
        if let Some(resolved) = kept.as_mut()
            && resolved.found.is_current(snapshot)
        {
            return Rc::clone(&resolved.hcm);
        }
        let discovered = |f: &HttpFilter| if let HttpFilter::Discovered(filter) = f { Some(filter.id) } else { None };
        let found = Found::new(snapshot, self.config.filters.iter().filter_map(discovered));
        let mut config = HttpConnectionManager::clone(&self.config);
        for filter in &mut config.filters {
            if let HttpFilter::Discovered(one) = filter
                && let Some(now) = one.resolve(found.get(one.id), self.direction.is_source())
            {
                *filter = now;
            }
        }
        let hcm = Self::with(worker, self.direction, Arc::new(config), self.tracer.clone());
        *kept = Some(Resolved { found, hcm: Rc::clone(&hcm) });
        hcm
    }

    /// The counters of a stateful session filter, by its prefix.
    pub(crate) fn session_stats(&self, worker: &Worker, prefix: &Arc<str>) -> Rc<Local> {
        let mut known = self.sessions.borrow_mut();
        if let Some((_, stats)) = known.iter().find(|(name, _)| name == prefix) {
            return Rc::clone(stats);
        }
        let name = BlockName::http_filter(&self.config.stat_prefix, &format!("stateful_session.{}", prefix.trim_end_matches('.')));
        let stats = Rc::new(worker.shard.local(&worker.registry.block(stateful_session::DEFS, name)));
        known.push((Arc::clone(prefix), Rc::clone(&stats)));
        stats
    }

    /// The counters of an RBAC filter.
    pub(crate) fn rbac(&self, filter: &Arc<Rbac>) -> Option<&rbac::Stats> {
        self.rbac.iter().find(|(known, _)| Arc::ptr_eq(known, filter)).map(|(_, stats)| stats)
    }

    /// The compiled form of a header template; `None` for one that does not compile (refused with the configuration).
    pub(crate) fn format(&self, text: &Arc<str>) -> Option<Rc<TextFormat>> {
        let key = text.as_ptr() as usize;
        let mut formats = self.formats.borrow_mut();
        if formats.len() > MAX_FORMATS {
            // Of route tables long replaced, most of them.
            formats.clear();
        }
        let compile = || (Arc::clone(text), TextFormat::compile(text).ok().map(|f| Rc::new(f.omit_missing())));
        formats.entry(key).or_insert_with(compile).1.clone()
    }
}

/// Sets the `server` header as configured.
pub(crate) fn set_server(hcm: &Hcm, map: &mut http::HeaderMap) {
    use lateen_snapshot::http::ServerHeader;
    match hcm.config.server_header {
        ServerHeader::Overwrite => {
            map.insert(http::header::SERVER, hcm.server.clone());
        }
        ServerHeader::AppendIfAbsent => headers::insert_if_absent(map, http::header::SERVER, || hcm.server.clone()),
        ServerHeader::PassThrough => {}
    }
}
