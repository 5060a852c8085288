//! HTTP/2 connections that exchanges share.
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

use lateen_http2::Refused;
use lateen_http2::shell::{self, Driver, Sender};
use lateen_snapshot::cluster::{ClusterConfig, UpstreamHttp};
use lateen_snapshot::http::Http2Options;
use tokio::time::Instant;

use super::lease::Lease;
use super::open::Open;
use super::pool::Pool;
use crate::io::Io;

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
    pub(super) fn start(io: Io, open: Open, config: &ClusterConfig) -> (Rc<Self>, Driver<Io>) {
        let options = http2_options(config);
        let windows = lateen_http2::Config {
            stream_window: options.initial_stream_window_size,
            connection_window: options.initial_connection_window_size,
            ..lateen_http2::Config::default()
        };
        let (sender, driver) = shell::connect(io, windows);
        let shared = Self {
            sender,
            active: Cell::new(0),
            served: Cell::new(0),
            last_used: Cell::new(Instant::now()),
            limit: options.max_concurrent_streams.max(1),
            most: config.max_requests_per_connection.unwrap_or(u32::MAX),
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
        if self.active.get() < self.limit { Ok(()) } else { Err(Refused::Full) }
    }

    /// One more stream.
    pub(super) fn lend(self: &Rc<Self>, pool: &Rc<Pool>) -> Lease {
        let reused = self.served.get() > 0;
        self.served.set(self.served.get() + 1);
        Lease::of_stream(Rc::clone(self), self.sender.clone(), pool, reused)
    }

    /// Whether it has carried as many streams as it may.
    pub(super) fn is_used_up(&self) -> bool {
        self.served.get() >= self.most
    }
}

/// Moves a shared connection's bytes until it has ended, or was given up and has had its time.
pub(super) async fn drive(driver: &mut (impl Future<Output = ()> + Unpin), shared: &Weak<Shared>) {
    let ended = poll_fn(|cx| match Pin::new(&mut *driver).poll(cx) {
        // Giving it up wakes the driver.
        Poll::Pending if shared.strong_count() > 0 => Poll::Pending,
        polled => Poll::Ready(polled.is_ready()),
    })
    .await;
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
            keepalive_interval: None,
            keepalive_timeout: Duration::from_secs(10),
        },
    }
}
