//! What connections to hosts take over from the caller's: addresses to tell, the address to come from, a pool of their own.
use std::net::SocketAddr;
use std::rc::Rc;

use lateen_snapshot::proxy_protocol::Tlv;

use crate::listener::Conn;

/// Exchanges that differ in this share no connection.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    pub(crate) proxied: Option<Proxied>,
    pub(crate) source: Option<Source>,
    /// Nobody else's exchanges, whatever they are like.
    own_pool: bool,
}

/// What a PROXY protocol header tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proxied {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) tlvs: Vec<Tlv>,
}

/// Where a connection comes from instead of from ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// With port 0 the system chooses one.
    pub(crate) address: SocketAddr,
    pub(crate) mark: Option<u32>,
}

impl PartialEq for Caller {
    fn eq(&self, other: &Self) -> bool {
        if self.own_pool || other.own_pool {
            return std::ptr::eq(self, other);
        }
        self.proxied == other.proxied && self.source == other.source
    }
}

impl Eq for Caller {}

/// Which of these matter for a cluster and its transport socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) proxied: bool,
    pub(crate) own_pool: bool,
}

impl Caller {
    /// `None` where nothing of the caller matters.
    pub(super) fn of(conn: Option<&Conn>, needs: Needs) -> Option<Rc<Self>> {
        let conn = conn?;
        if !needs.proxied && !needs.own_pool && conn.source.is_none() {
            return None;
        }
        let mut known = conn.callers.borrow_mut();
        if let Some((_, caller)) = known.iter().find(|(of, _)| *of == needs) {
            return Some(Rc::clone(caller));
        }
        let proxied = needs.proxied.then(|| Proxied {
            source: conn.remote,
            destination: conn.local,
            tlvs: conn.told.as_ref().map(|t| t.tlvs.clone()).unwrap_or_default(),
        });
        let caller = Rc::new(Self { proxied, source: conn.source, own_pool: needs.own_pool });
        // At most one for each of the four needs.
        known.push((needs, Rc::clone(&caller)));
        Some(caller)
    }

    /// Whether whom this was for has left, so that its connections serve nobody.
    pub(super) fn has_left(self: &Rc<Self>) -> bool {
        self.own_pool && Rc::strong_count(self) == 1
    }

    /// For a connection that nobody shares anyway.
    pub(crate) fn alone(proxied: Option<Proxied>, source: Option<Source>) -> Rc<Self> {
        Rc::new(Self { proxied, source, own_pool: true })
    }
}
