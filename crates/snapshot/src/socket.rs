//! How sockets of connections to hosts are set up.
use std::net::SocketAddr;
use std::sync::Arc;

/// An option as the operating system knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    pub value: OptionValue,
    /// Only for sockets of IPv4 (`true`) or IPv6.
    pub only_v4: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionValue {
    Number(i32),
    Bytes(Arc<[u8]>),
}

impl SocketOption {
    pub fn applies_to(&self, address: SocketAddr) -> bool {
        self.only_v4.is_none_or(|v4| v4 == address.is_ipv4())
    }
}

/// Envoy `BindConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bind {
    /// Local addresses to connect from, e.g. 127.0.0.6 for inbound traffic: the first of the destination's address
    /// family counts (Envoy's default local address selector).
    pub sources: Vec<BindSource>,
    pub options: Vec<SocketOption>,
    /// Whether an address may be used that this host does not have.
    pub freebind: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindSource {
    pub address: SocketAddr,
    /// Instead of those for all sources.
    pub options: Option<Vec<SocketOption>>,
}

impl Bind {
    pub fn source_for(&self, destination: SocketAddr) -> Option<&BindSource> {
        self.sources.iter().find(|source| source.address.is_ipv4() == destination.is_ipv4())
    }
}
