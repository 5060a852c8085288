//! How connections to a cluster's hosts are made: keepalive, the order of addresses, source addresses, socket options.
use std::time::Duration;

use lateen_proto::any;
use lateen_proto::envoy::config::cluster::v3 as proto;
use lateen_proto::envoy::config::cluster::v3::upstream_connection_options::{FirstAddressFamilyVersion, HappyEyeballsConfig};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::upstream::local_address_selector::v3::DefaultLocalAddressSelector;

use super::common::{socket, socket_options};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use crate::cluster::{AddressOrder, TcpKeepalive};
use crate::socket::{Bind, BindSource};

pub(crate) fn connection_options(value: proto::UpstreamConnectionOptions) -> Result<(Option<TcpKeepalive>, AddressOrder)> {
    let proto::UpstreamConnectionOptions { tcp_keepalive, set_local_interface_name_on_upstream_connections, happy_eyeballs_config } = value;
    harmless!(set_local_interface_name_on_upstream_connections);
    let order = happy_eyeballs_config.map(address_order).transpose().within("happy_eyeballs_config")?;
    Ok((tcp_keepalive.map(keepalive), order.unwrap_or_default()))
}

pub(crate) fn keepalive(value: core::TcpKeepalive) -> TcpKeepalive {
    let core::TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = value;
    let seconds = |n: Option<u32>| n.map(|s| Duration::from_secs(s.into()));
    TcpKeepalive { probes: keepalive_probes, time: seconds(keepalive_time), interval: seconds(keepalive_interval) }
}

fn address_order(value: HappyEyeballsConfig) -> Result<AddressOrder> {
    let HappyEyeballsConfig { first_address_family_version, first_address_family_count } = value;
    let v4_first = match FirstAddressFamilyVersion::try_from(first_address_family_version) {
        Ok(FirstAddressFamilyVersion::Default) => None,
        Ok(FirstAddressFamilyVersion::V4) => Some(true),
        Ok(FirstAddressFamilyVersion::V6) => Some(false),
        _ => return Err(Invalid::field("first_address_family_version", "must be DEFAULT, V4 or V6")),
    };
    match first_address_family_count.unwrap_or(1) {
        0 => Err(Invalid::field("first_address_family_count", "must be at least 1")),
        count => Ok(AddressOrder { v4_first, count: usize::try_from(count).unwrap_or(usize::MAX) }),
    }
}

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
        return Ok(Bind::default());
    };
    refuse!(validate_network_namespaces);
    if let Some(core::TypedExtensionConfig { name, typed_config }) = local_address_selector
        && !typed_config.as_ref().is_none_or(any::is::<DefaultLocalAddressSelector>)
    {
        return Err(Invalid::field("local_address_selector", format!("{name} is not supported; leave it out for the default one")));
    }
    // Whoever connects without one of these, to the other address family say, may be captured as somebody
    // else's traffic: none is left out.
    let mut sources = Vec::new();
    if let Some(address) = source_address {
        sources.push(BindSource { address: socket(Some(address)).within("source_address")?, options: None });
    }
    for (index, extra) in extra_source_addresses.into_iter().enumerate() {
        sources.push(extra_source(extra).within_item("extra_source_addresses", index)?);
    }
    for (index, address) in additional_source_addresses.into_iter().enumerate() {
        sources.push(BindSource { address: socket(Some(address)).within_item("additional_source_addresses", index)?, options: None });
    }
    Ok(Bind { sources, options: socket_options(options, "socket_options")?, freebind })
}

fn extra_source(extra: core::ExtraSourceAddress) -> Result<BindSource> {
    let core::ExtraSourceAddress { address, socket_options: instead } = extra;
    let options = instead.map(|core::SocketOptionsOverride { socket_options: o }| socket_options(o, "socket_options"));
    Ok(BindSource { address: socket(address).within("address")?, options: options.transpose().within("socket_options")? })
}
