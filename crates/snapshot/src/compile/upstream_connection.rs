//! How connections to a cluster's hosts are made: keepalive, source addresses, socket options.
use std::time::Duration;

use lateen_proto::envoy::config::cluster::v3 as proto;
use lateen_proto::envoy::config::core::v3 as core;

use super::common::{socket, socket_options};
use super::invalid::{Result, Within, harmless, refuse};
use crate::cluster::TcpKeepalive;

pub(crate) fn connection_options(value: proto::UpstreamConnectionOptions) -> Result<Option<TcpKeepalive>> {
    let proto::UpstreamConnectionOptions { tcp_keepalive, set_local_interface_name_on_upstream_connections, happy_eyeballs_config } = value;
    harmless!(set_local_interface_name_on_upstream_connections);
    refuse!(happy_eyeballs_config);
    Ok(tcp_keepalive.map(keepalive))
}

pub(crate) fn keepalive(value: core::TcpKeepalive) -> TcpKeepalive {
    let core::TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = value;
    let seconds = |n: Option<u32>| n.map(|s| Duration::from_secs(s.into()));
    TcpKeepalive { probes: keepalive_probes, time: seconds(keepalive_time), interval: seconds(keepalive_interval) }
}

pub(crate) type Bind = (Vec<std::net::SocketAddr>, Vec<(i32, i32, i32)>);

pub(crate) fn bind(value: Option<core::BindConfig>) -> Result<Bind> {
    let Some(core::BindConfig {
        source_address,
        freebind,
        socket_options: options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces,
    }) = value
    else {
        return Ok((Vec::new(), Vec::new()));
    };
    // Binding to 127.0.0.6 and the like needs no freebind.
    harmless!(freebind, local_address_selector);
    refuse!(validate_network_namespaces);
    // Whoever connects without one of these, to the other address family say, may be captured as somebody
    // else's traffic: none is left out.
    let mut sources = Vec::new();
    if let Some(address) = source_address {
        sources.push(socket(Some(address)).within("source_address")?);
    }
    for (index, extra) in extra_source_addresses.into_iter().enumerate() {
        sources.push(extra_source(extra).within_item("extra_source_addresses", index)?);
    }
    for (index, address) in additional_source_addresses.into_iter().enumerate() {
        sources.push(socket(Some(address)).within_item("additional_source_addresses", index)?);
    }
    Ok((sources, socket_options(options, "socket_options")?))
}

fn extra_source(extra: core::ExtraSourceAddress) -> Result<std::net::SocketAddr> {
    let core::ExtraSourceAddress { address, socket_options } = extra;
    refuse!(socket_options);
    socket(address).within("address")
}
