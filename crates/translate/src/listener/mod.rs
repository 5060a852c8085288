//! Listeners: what is accepted where, and which chain of filters a connection passes.
pub(crate) mod access_log;
pub(crate) mod filters;
pub(crate) mod gateway;
pub(crate) mod inbound;
pub(crate) mod outbound;
pub(crate) mod tcp;

use crate::provenance::Provenance;
use crate::view::{ProxyKind, ProxyView};
use crate::wire::{self, listener_v3};
use crate::world::World;

/// A listener and what shaped it.
pub(crate) struct Built {
    pub(crate) listener: listener_v3::Listener,
    pub(crate) provenance: Vec<Provenance>,
}

/// Every listener of a proxy.
pub(crate) fn build(world: &World, view: &ProxyView) -> Vec<Built> {
    match view.kind {
        ProxyKind::Router => gateway::build(world, view),
        ProxyKind::Sidecar => {
            let mut listeners = outbound::build(world, view);
            listeners.push(outbound::virtual_listener(world, view));
            listeners.push(inbound::build(world, view));
            listeners
        }
    }
}

/// The addresses of a second family that a dual-stack listener opens too.
pub(crate) fn additional_addresses(addresses: &[&str], port: u16) -> Vec<listener_v3::AdditionalAddress> {
    addresses
        .iter()
        .map(|address| listener_v3::AdditionalAddress { address: Some(wire::address(address, u32::from(port))), ..Default::default() })
        .collect()
}

/// ALPN names that the HTTP inspector gives plaintext HTTP.
pub(crate) fn plaintext_http(http10: bool) -> Vec<String> {
    let names: &[&str] = if http10 { &["http/1.0", "http/1.1", "h2c"] } else { &["http/1.1", "h2c"] };
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The transports that listener filters tell apart.
pub(crate) const RAW: &str = "raw_buffer";
pub(crate) const TLS: &str = "tls";
