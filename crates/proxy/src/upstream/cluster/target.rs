//! Where an exchange goes once its host is chosen: the pool, the protocol and how a connection would be made.
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use lateen_balance::Host;
use lateen_snapshot::cluster::{Discovery, UpstreamHttp};
use lateen_snapshot::http::AlpnOverrides;

use super::{ClusterState, Last};
use crate::http::message::Version;
use crate::listener::Conn;
use crate::upstream::caller::{Caller, Needs};
use crate::upstream::connect::{ConnectPlan, Names};
use crate::upstream::pool::{Pool, PoolKey, Wanted, tls_id};

/// Where an exchange goes.
pub(crate) struct Target {
    pub(crate) host: Arc<Host>,
    pub(crate) pool: Rc<Pool>,
    pub(crate) plan: ConnectPlan,
}

/// What decides about transport and protocol, beside the host.
pub(crate) struct TargetWish<'a> {
    pub(crate) downstream: Version,
    pub(crate) alpn: Option<&'a Arc<AlpnOverrides>>,
    /// What the request asks for, where a route sends it.
    pub(crate) authority: Option<&'a str>,
    pub(crate) upgrade: bool,
    /// The caller's connection.
    pub(crate) conn: Option<&'a Conn>,
}

impl ClusterState {
    /// The pool for an exchange with `host`.
    pub(crate) fn target(&self, host: Arc<Host>, wish: &TargetWish<'_>) -> Target {
        let config = &self.cluster.config;
        let wanted = match &config.http {
            UpstreamHttp::Http1 => Wanted::Http1,
            UpstreamHttp::Http2(_) => Wanted::Http2,
            // An upgrade of an HTTP/1 caller stays HTTP/1.
            UpstreamHttp::Downstream(_) if wish.downstream == Version::Http2 => Wanted::Http2,
            UpstreamHttp::Downstream(_) => Wanted::Http1,
            UpstreamHttp::Auto(_) if wish.upgrade => Wanted::Http1,
            UpstreamHttp::Auto(_) => Wanted::Auto,
        };
        self.target_speaking(wanted, host, wish)
    }

    /// Where the bytes of a tunnel go as they are.
    pub(crate) fn tcp_target(&self, host: Arc<Host>, wish: &TargetWish<'_>) -> Target {
        self.target_speaking(Wanted::Tcp, host, wish)
    }

    fn target_speaking(&self, wanted: Wanted, host: Arc<Host>, wish: &TargetWish<'_>) -> Target {
        let config = &self.cluster.config;
        let transport = config.transports.get(host.transport as usize);
        let needs = Needs { proxied: transport.is_some_and(|t| t.proxy_protocol.is_some()), own_pool: config.pool_per_downstream };
        let caller = Caller::of(wish.conn, needs);
        let Some(tls) = transport.and_then(|t| t.tls.as_ref()) else {
            let hostname = self.own_pools(&host, false);
            if caller.is_some() || hostname.is_some() {
                let key = PoolKey { hostname, caller: caller.clone(), ..PoolKey::plain(wanted) };
                let pool = self.host_pools(&host).pool(key);
                return Target { host, pool, plan: ConnectPlan { caller, ..ConnectPlan::default() } };
            }
            if let Some(last) = &*self.last.borrow()
                && last.host == Arc::as_ptr(&host)
                && last.wanted == wanted
            {
                return Target { host, pool: Rc::clone(&last.pool), plan: ConnectPlan::default() };
            }
            let pool = self.host_pools(&host).pool(PoolKey::plain(wanted));
            let dynamic = self.is_dynamic().then(|| Arc::clone(&host));
            *self.last.borrow_mut() = Some(Last { host: Arc::as_ptr(&host), wanted, pool: Rc::clone(&pool), _dynamic: dynamic });
            return Target { host, pool, plan: ConnectPlan::default() };
        };
        let names = Names::asked(wish.authority, tls);
        let own = alpn_override(wish, wanted);
        let alpn = own.or_else(|| alpn_fallback(wanted, &tls.alpn)).cloned();
        let hostname = self.own_pools(&host, tls.auto_host_sni);
        let key = PoolKey { tls: tls_id(transport), alpn: own.cloned(), hostname, names: names.clone(), wanted, caller: caller.clone() };
        let pool = self.host_pools(&host).pool(key);
        Target { host, pool, plan: ConnectPlan { alpn, names, caller } }
    }

    /// The name of a host that shares no connections with hosts of other names at its address: one that a request named, or whose
    /// connections ask for it.
    fn own_pools(&self, host: &Host, asks_for_it: bool) -> Option<Arc<str>> {
        let named = asks_for_it || matches!(self.cluster.config.discovery, Discovery::DynamicForwardProxy(_));
        (named && !host.hostname.is_empty()).then(|| Arc::clone(&host.hostname))
    }
}

static HTTP1: LazyLock<Arc<Vec<Vec<u8>>>> = LazyLock::new(|| Arc::new(vec![b"http/1.1".to_vec()]));
static HTTP2: LazyLock<Arc<Vec<Vec<u8>>>> = LazyLock::new(|| Arc::new(vec![b"h2".to_vec()]));
static EITHER: LazyLock<Arc<Vec<Vec<u8>>>> = LazyLock::new(|| Arc::new(vec![b"h2".to_vec(), b"http/1.1".to_vec()]));

/// The ALPN that the filter wants to be offered, by upstream protocol.
fn alpn_override<'a>(wish: &TargetWish<'a>, wanted: Wanted) -> Option<&'a Arc<Vec<Vec<u8>>>> {
    let overrides = wish.alpn.filter(|_| wanted != Wanted::Tcp)?;
    let list = match (wanted, wish.downstream) {
        (Wanted::Http2, _) => &overrides.http2,
        (_, Version::Http10) if !overrides.http10.is_empty() => &overrides.http10,
        _ => &overrides.http11,
    };
    Some(list).filter(|list| !list.is_empty())
}

/// The protocol's own where the context says nothing.
fn alpn_fallback(wanted: Wanted, configured: &[Vec<u8>]) -> Option<&'static Arc<Vec<Vec<u8>>>> {
    if !configured.is_empty() {
        return None;
    }
    match wanted {
        Wanted::Http1 => Some(&HTTP1),
        Wanted::Http2 => Some(&HTTP2),
        Wanted::Auto => Some(&EITHER),
        Wanted::Tcp => None,
    }
}
