//! HTTP/2 connections that exchanges share.
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

use lateen_http2::Refused;
use lateen_http2::shell::{self, Driver, Sender};
use lateen_snapshot::cluster::{ClusterConfig, UpstreamHttp};
use lateen_snapshot::http::Http2Options;
use lateen_telemetry::Local;
use lateen_telemetry::envoy_names::cluster as names;
use tokio::time::Instant;

use super::lease::Lease;
use super::open::Open;
use super::pool::Pool;
use crate::http::h2::Keepalive;
use crate::io::Metered;
use crate::worker::Worker;

/// A connection that nobody holds any more may take so long to write what is left. Its peer may not be there to read.
const LINGER: Duration = Duration::from_secs(1);

/// One of them.
pub(crate) struct Shared {
    sender: Sender,
    pub(crate) active: Cell<u32>,
    served: Cell<u32>,
    pub(super) last_used: Cell<Instant>,
    /// How many streams it may carry at once, and how many in all.
    limit: u32,
    most: u32,
    /// How many the peer took at once when somebody looked last.
    peer_limit: Cell<u32>,
    keepalive: Option<RefCell<Keepalive>>,
    pub(crate) open: Open,
}

impl Drop for Shared {
    /// Neither the pool nor an exchange has it: its driver would wait for the peer to end it.
    fn drop(&mut self) {
        self.sender.close();
    }
}

impl Shared {
    /// Starts HTTP/2 on a connection.
    pub(super) fn start(worker: &Worker, io: Metered, open: Open, config: &ClusterConfig) -> (Rc<Self>, Driver<Metered>) {
        let options = http2_options(config);
        let heads = config.response_heads;
        let windows = lateen_http2::Config {
            stream_window: options.initial_stream_window_size,
            connection_window: options.initial_connection_window_size,
            max_header_bytes: heads.http2_bytes as usize,
            max_headers: heads.headers as usize,
            ..lateen_http2::Config::default()
        };
        let (sender, driver) = shell::connect(io, windows);
        let keepalive = options.keepalive.map(|config| RefCell::new(Keepalive::new(worker, config, sender.pulse())));
        let shared = Self {
            sender,
            active: Cell::new(0),
            served: Cell::new(0),
            last_used: Cell::new(Instant::now()),
            limit: options.max_concurrent_streams.max(1),
            most: config.max_requests_per_connection.unwrap_or(u32::MAX),
            peer_limit: Cell::new(u32::MAX),
            keepalive,
            open,
        };
        (Rc::new(shared), driver)
    }

    /// Whether it takes one more stream now.
    ///
    /// # Errors
    /// When it does not, now or ever.
    pub(super) fn can_lend(&self) -> Result<(), Refused> {
        self.sender.can_open()?;
        // Who was lent a stream may not have opened it yet.
        if self.active.get() < self.limit.min(self.sender.peer_limit()) { Ok(()) } else { Err(Refused::Full) }
    }

    /// One more stream.
    pub(super) fn lend(self: &Rc<Self>, pool: &Rc<Pool>) -> Lease {
        if let Some(keepalive) = &self.keepalive {
            keepalive.borrow_mut().before_stream();
        }
        let reused = self.served.get() > 0;
        self.served.set(self.served.get() + 1);
        Lease::of_stream(Rc::clone(self), self.sender.clone(), pool, reused)
    }

    /// Whether the peer takes more streams than it did.
    fn has_more_room(&self) -> bool {
        let now = self.sender.peer_limit();
        self.peer_limit.replace(now) < now
    }

    /// Whether it has carried as many streams as it may.
    pub(super) fn is_used_up(&self) -> bool {
        self.served.get() >= self.most
    }
}

/// Moves a shared connection's bytes until it has ended, does not answer PINGs, or was given up and has had its time.
pub(super) async fn drive(worker: &Worker, stats: &Local, mut driver: Driver<Metered>, shared: &Weak<Shared>, pool: &Weak<Pool>) {
    let ended = poll_fn(|cx| {
        if Pin::new(&mut driver).poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        // Giving it up wakes the driver.
        let Some(shared) = shared.upgrade() else { return Poll::Ready(false) };
        if shared.has_more_room()
            && let Some(pool) = pool.upgrade()
        {
            pool.waiting.wake_all();
        }
        let Some(keepalive) = &shared.keepalive else { return Poll::Pending };
        keepalive.borrow_mut().poll(cx, worker).map(|()| {
            stats.inc(names::HTTP2_KEEPALIVE_TIMEOUT);
            true
        })
    })
    .await;
    if ended && let Some(shared) = shared.upgrade() {
        shared.open.ending.in_use(shared.active.get() > 0);
    }
    if !ended {
        let _ = tokio::time::timeout(LINGER, driver).await;
    }
}

/// How many exchanges a connection that is being made will carry at once (Envoy `effectiveConcurrentStreamLimit`).
pub(super) fn room_of_one(config: &ClusterConfig) -> usize {
    http2_options(config).max_concurrent_streams.min(config.max_requests_per_connection.unwrap_or(u32::MAX)).max(1) as usize
}

fn http2_options(config: &ClusterConfig) -> Http2Options {
    match &config.http {
        UpstreamHttp::Http2(options) | UpstreamHttp::Downstream(options) | UpstreamHttp::Auto(options) => *options,
        UpstreamHttp::Http1 => Http2Options {
            max_concurrent_streams: 1024,
            initial_stream_window_size: 1 << 20,
            initial_connection_window_size: 1 << 20,
            allow_connect: false,
            keepalive: None,
        },
    }
}
