//! A connection, or a stream on one, lent to one exchange.
use std::net::SocketAddr;
use std::rc::Rc;

use lateen_http2::shell::Sender;
use tokio::time::Instant;

use super::open::{Open, Principals};
use super::pool::{Idle, Pool};
use super::shared::Shared;
use crate::http::h2::H2Client;
use crate::http::message::Version;
use crate::http::stream::Upstream;
use crate::http::tcp::TcpClient;

/// What an exchange holds while it uses a connection. Dropped midway, the connection is closed (HTTP/1) or the
/// stream reset (HTTP/2); [`Lease::finish`] gives it back.
pub(crate) struct Lease {
    pub(crate) upstream: Upstream,
    /// The connection has served before: it may have been closed under our hands.
    pub(crate) reused: bool,
    pool: Rc<Pool>,
    held: Held,
    served: u32,
}

enum Held {
    Connection(Open),
    Stream(OnShared),
}

impl Held {
    fn open(&self) -> &Open {
        match self {
            Self::Connection(open) => open,
            Self::Stream(on) => &on.shared.open,
        }
    }
}

impl Lease {
    pub(crate) fn of_idle(idle: Idle, pool: &Rc<Pool>) -> Self {
        Self { reused: true, ..Self::fresh(idle, pool) }
    }

    pub(crate) fn fresh(idle: Idle, pool: &Rc<Pool>) -> Self {
        let Idle { client, open, served, .. } = idle;
        open.ending.in_use(true);
        Self { upstream: Upstream::H1(client), reused: false, pool: Rc::clone(pool), held: Held::Connection(open), served }
    }

    pub(crate) fn of_stream(shared: Rc<Shared>, sender: Sender, pool: &Rc<Pool>, reused: bool) -> Self {
        shared.active.set(shared.active.get() + 1);
        Self {
            upstream: Upstream::H2(H2Client::new(sender)),
            reused,
            pool: Rc::clone(pool),
            held: Held::Stream(OnShared { shared, pool: Rc::clone(pool) }),
            served: 0,
        }
    }

    /// A connection for one tunnel, which nobody uses again.
    pub(crate) fn of_tcp(client: TcpClient, open: Open, pool: &Rc<Pool>) -> Self {
        open.ending.in_use(true);
        Self { upstream: Upstream::Tcp(Box::new(client)), reused: false, pool: Rc::clone(pool), held: Held::Connection(open), served: 1 }
    }

    /// Our address on the connection.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.held.open().local
    }

    /// `None` where a tunnel ends.
    pub(crate) fn protocol(&self) -> Option<Version> {
        match &self.upstream {
            Upstream::H1(_) => Some(Version::Http11),
            Upstream::H2(_) => Some(Version::Http2),
            Upstream::Tcp(_) => None,
        }
    }

    /// Who its ends are.
    pub(crate) fn principals(&self) -> Principals {
        self.held.open().principals
    }

    /// It served no exchange after all, and waits for the next one.
    pub(crate) fn unused(self, now: Instant) {
        if let (Upstream::H1(client), Held::Connection(open)) = (self.upstream, self.held) {
            open.ending.in_use(false);
            self.pool.put_back(Idle { client, open, since: now, served: self.served.saturating_sub(1) });
        }
    }

    /// The exchange is over: the connection goes back to the pool if it is still good.
    pub(crate) fn finish(self, most_requests: Option<u32>, now: Instant) {
        let (Upstream::H1(mut client), Held::Connection(open)) = (self.upstream, self.held) else { return };
        open.ending.in_use(!client.is_done());
        if client.reusable() && most_requests.is_none_or(|most| self.served < most) {
            self.pool.put_back(Idle { client, open, since: now, served: self.served });
        }
    }
}

/// Counts a stream on its connection.
struct OnShared {
    shared: Rc<Shared>,
    pool: Rc<Pool>,
}

impl Drop for OnShared {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get() - 1);
        self.pool.stream_ended(&self.shared);
    }
}
