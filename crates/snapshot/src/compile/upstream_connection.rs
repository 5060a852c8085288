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

/// Linux's `MAX_TCP_KEEPCNT`.
const MOST_PROBES: u32 = 127;
/// Linux's `MAX_TCP_KEEPIDLE` and `MAX_TCP_KEEPINTVL`.
const MOST_SECONDS: u32 = 32_767;

pub(crate) fn connection_options(value: proto::UpstreamConnectionOptions) -> Result<(Option<TcpKeepalive>, AddressOrder)> {
    let proto::UpstreamConnectionOptions { tcp_keepalive, set_local_interface_name_on_upstream_connections, happy_eyeballs_config } = value;
    harmless!(set_local_interface_name_on_upstream_connections);
    let order = happy_eyeballs_config.map(address_order).transpose().within("happy_eyeballs_config")?;
    let keepalive = tcp_keepalive.map(keepalive).transpose().within("tcp_keepalive")?.flatten();
    Ok((keepalive, order.unwrap_or_default()))
}

/// `None` where any of it is nought, which turns it off. What the kernel would not take would fail each connection.
pub(crate) fn keepalive(value: core::TcpKeepalive) -> Result<Option<TcpKeepalive>> {
    let core::TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = value;
    let limited = |field: &'static str, value: Option<u32>, most: u32| match value {
        Some(n) if n > most => Err(Invalid::field(field, format!("is at most {most}"))),
        _ => Ok(value),
    };
    let probes = limited("keepalive_probes", keepalive_probes, MOST_PROBES)?;
    let time = limited("keepalive_time", keepalive_time, MOST_SECONDS)?;
    let interval = limited("keepalive_interval", keepalive_interval, MOST_SECONDS)?;
    if [probes, time, interval].contains(&Some(0)) {
        return Ok(None);
    }
    let seconds = |n: Option<u32>| n.map(|s| Duration::from_secs(s.into()));
    Ok(Some(TcpKeepalive { probes, time: seconds(time), interval: seconds(interval) }))
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

#[cfg(test)]
mod keepalive_tests {
    use super::*;

    #[test]
    fn nought_turns_keepalive_off_and_what_the_kernel_would_not_take_is_refused() {
        let said = |probes, time, interval| {
            keepalive(core::TcpKeepalive { keepalive_probes: probes, keepalive_time: time, keepalive_interval: interval })
        };
        let most = TcpKeepalive { probes: Some(127), time: Some(Duration::from_secs(32_767)), interval: Some(Duration::from_secs(32_767)) };
        assert_eq!(said(Some(127), Some(32_767), Some(32_767)), Ok(Some(most)));
        assert_eq!(said(None, None, None), Ok(Some(TcpKeepalive { probes: None, time: None, interval: None })));
        for off in [said(Some(0), Some(1), Some(1)), said(Some(1), Some(0), None), said(None, None, Some(0))] {
            assert_eq!(off, Ok(None));
        }
        for (bad, field) in [
            (said(Some(128), None, None), "keepalive_probes"),
            (said(None, Some(32_768), Some(0)), "keepalive_time"),
            (said(None, None, Some(u32::MAX)), "keepalive_interval"),
        ] {
            let error = bad.unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
