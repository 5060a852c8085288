//! What the control plane is told at start: plain data.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use lateen_model::MeshConfig;
use lateen_xds::server::Limits;

/// Everything but the sources of configuration and the authority, which are handed over live.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names this control plane in every response: its pod name, or `lateen`.
    pub identifier: String,
    /// Where plaintext xDS and CSR are served; default `0.0.0.0:15010`, `None` for not at all.
    pub xds_plain: Option<SocketAddr>,
    /// Where xDS and CSR over TLS are served; default `0.0.0.0:15012`. Needs an identity.
    pub xds_tls: Option<SocketAddr>,
    /// Istio's debug and readiness port; default `127.0.0.1:8080`.
    pub debug: Option<SocketAddr>,
    /// Istio's monitoring port; default `0.0.0.0:15014`.
    pub monitoring: Option<SocketAddr>,
    /// Let hosts other than this one read `/debug/*`. Default false: the pages show all configuration.
    pub debug_for_all: bool,
    /// Mesh settings, unless the configuration holds a ConfigMap `istio` in the root namespace.
    pub mesh: MeshConfig,
    pub debounce: Debounce,
    /// Proxies for which resources are generated at the same time. Default: the number of CPUs.
    pub push_concurrency: usize,
    pub limits: Limits,
    /// How long streams may take to end on shutdown. Default 2 s.
    pub shutdown: Duration,
    /// DNS names and addresses of the certificate on `xds_tls`, beside Istio's usual ones.
    pub server_names: Vec<String>,
    /// Refuse streams without an identity also on the plaintext port. Default false, as Istio's 15010.
    pub require_identity: bool,
}

/// How long changes are collected before they are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Debounce {
    /// A change is taken up when this long no other followed.
    pub quiet: Duration,
    /// And after this long in any case.
    pub max: Duration,
}

impl Default for Debounce {
    /// Istio's PILOT_DEBOUNCE_AFTER and PILOT_DEBOUNCE_MAX: 100 ms, 10 s.
    fn default() -> Self {
        Self { quiet: Duration::from_millis(100), max: Duration::from_secs(10) }
    }
}

impl Default for Config {
    fn default() -> Self {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            identifier: "lateen".into(),
            xds_plain: Some(SocketAddr::new(any, 15010)),
            xds_tls: Some(SocketAddr::new(any, 15012)),
            debug: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))),
            monitoring: Some(SocketAddr::new(any, 15014)),
            debug_for_all: false,
            mesh: MeshConfig::default(),
            debounce: Debounce::default(),
            push_concurrency: std::thread::available_parallelism().map_or(2, usize::from),
            limits: Limits::default(),
            shutdown: Duration::from_secs(2),
            server_names: Vec::new(),
            require_identity: false,
        }
    }
}

impl Config {
    /// All on free ports of the loopback address: for tests, and for a mesh within one machine.
    pub fn on_loopback() -> Self {
        let free = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        Self { xds_plain: free, xds_tls: free, debug: free, monitoring: free, ..Self::default() }
    }
}
