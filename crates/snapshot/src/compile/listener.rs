//! Listeners and their filter chains.
use std::sync::Arc;
use std::time::Duration;

use lateen_proto::envoy::config::core::v3::{self as core, address::Address as Kind};
use lateen_proto::envoy::config::listener::v3 as proto;
use lateen_proto::xds::r#type::matcher::v3::Matcher;
use lateen_proto::{Any, any};
use prost::Message;
use proto::filter_chain_match::ConnectionSourceType;

use super::common::{Place, cidrs, limit, place, port, socket_options};
use super::context::Context;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::{access_log, listener_filter, matcher_tree, network, tls, upstream_connection};
use crate::chain::ChainIndex;
use crate::exact_balance::ExactBalance;
use crate::listener::{ChainCriteria, Direction, FilterChain, Listener, SourceType};
use crate::matcher_tree::MatchTree;
use crate::socket::SocketOption;

pub(crate) fn listener(value: proto::Listener, context: &mut Context<'_>) -> Result<Listener> {
    let proto::Listener {
        name,
        address,
        additional_addresses,
        stat_prefix,
        stats_matcher,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        metadata,
        deprecated_v1,
        drain_type,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind,
        socket_options: options,
        tcp_fast_open_queue_length,
        traffic_direction,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        reuse_port,
        enable_reuse_port,
        access_log,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive,
        listener_specifier,
    } = value;
    // Every worker has its own socket in any case; the rest shapes statistics or performance only.
    harmless!(stats_matcher, metadata, tcp_fast_open_queue_length, reuse_port, enable_reuse_port);
    harmless!(max_connections_to_accept_per_socket_event, enable_mptcp);
    harmless!(per_connection_buffer_high_watermark_timeout);
    refuse!(fcds_config, udp_listener_config, api_listener, listener_specifier);
    if name.is_empty() {
        return Err(Invalid::field("name", "is empty; every listener needs a name"));
    }
    context.source = traffic_direction != core::TrafficDirection::Inbound as i32;
    let bind = bind_to_port.or(deprecated_v1.and_then(|proto::listener::DeprecatedV1 { bind_to_port }| bind_to_port)).unwrap_or(true);
    let (address, dual) = address_of(address).within("address")?;
    let (mut addresses, mut dual_stack) = (vec![address], Vec::from_iter(dual.then_some(address)));
    let mut own_options = Vec::new();
    for (index, additional) in additional_addresses.into_iter().enumerate() {
        let ((address, dual), options) = additional_address(additional).within_item("additional_addresses", index)?;
        addresses.push(address);
        dual_stack.extend(dual.then_some(address));
        own_options.extend(options.map(|options| (address, options)));
    }
    let mut inspectors = listener_filter::inspectors(listener_filters, context)?;
    inspectors.timeout = limit(listener_filters_timeout.as_ref(), Some(Duration::from_secs(15)), "listener_filters_timeout")?;
    inspectors.continue_on_timeout = continue_on_listener_filters_timeout;
    let chains = filter_chains
        .into_iter()
        .enumerate()
        .map(|(i, c)| chain(c, context).map(Arc::new).within_item("filter_chains", i))
        .collect::<Result<Vec<_>>>()?;
    let default_chain = default_filter_chain.map(|c| chain(c, context).map(Arc::new)).transpose().within("default_filter_chain")?;
    if chains.is_empty() && default_chain.is_none() {
        return Err(Invalid::field("filter_chains", "is empty; a listener needs at least one chain"));
    }
    let chain_matcher = filter_chain_matcher.map(|m| chain_matcher(m, &chains)).transpose().within("filter_chain_matcher")?;
    let indexed = if chain_matcher.is_some() { &[] } else { chains.as_slice() };
    let index = ChainIndex::build(indexed).map_err(|clash| Invalid::field("filter_chains", clash))?;
    Ok(Listener {
        stat_prefix: if stat_prefix.is_empty() { stat_address(&addresses) } else { stat_prefix.into() },
        name: name.into(),
        lineage: Arc::default(),
        addresses,
        dual_stack,
        bind,
        direction: match core::TrafficDirection::try_from(traffic_direction) {
            Ok(core::TrafficDirection::Inbound) => Direction::Inbound,
            Ok(core::TrafficDirection::Outbound) => Direction::Outbound,
            _ => Direction::Unspecified,
        },
        drains_when_modified_only: drain_type == proto::listener::DrainType::ModifyOnly as i32,
        ignores_connection_limit: ignore_global_conn_limit,
        ignores_overload: bypass_overload_manager,
        use_original_dst: use_original_dst.unwrap_or(false),
        transparent: transparent.unwrap_or(false),
        freebind: freebind.unwrap_or(false),
        inspectors: Arc::new(inspectors),
        chains,
        default_chain,
        index,
        chain_matcher,
        socket_options: socket_options(options, "socket_options")?,
        own_options,
        tcp_keepalive: tcp_keepalive.map(upstream_connection::keepalive).transpose().within("tcp_keepalive")?.flatten(),
        balance: connection_balance_config.map(balance).transpose().within("connection_balance_config")?,
        tcp_backlog: tcp_backlog_size.unwrap_or(128),
        per_connection_buffer_limit: buffer_limit(per_connection_buffer_limit_bytes),
        access_logs: access_log::logs(access_log, "access_log")?,
    })
}

/// Envoy's 0 is no limit; here there is always one.
fn buffer_limit(bytes: Option<u32>) -> u32 {
    bytes.map_or(1 << 20, |bytes| if bytes == 0 { 64 << 20 } else { bytes })
}

fn balance(value: proto::listener::ConnectionBalanceConfig) -> Result<Arc<ExactBalance>> {
    use proto::listener::connection_balance_config::{BalanceType, ExactBalance as Exact};
    match value.balance_type {
        Some(BalanceType::ExactBalance(Exact {})) => Ok(Arc::default()),
        Some(BalanceType::ExtendBalance(_)) => Err(Invalid::unsupported("extend_balance")),
        Some(BalanceType::CpuLocalityBalance(_)) => Err(Invalid::unsupported("cpu_locality_balance")),
        None => Err(Invalid::new("names no way; give exact_balance")),
    }
}

/// Envoy names listeners in statistics by their address: `listener.127.0.0.1_80.`.
fn stat_address(addresses: &[std::net::SocketAddr]) -> Arc<str> {
    addresses.first().map(|a| a.to_string().replace(':', "_")).unwrap_or_default().into()
}

/// An address, and whether it takes IPv4 too.
type Address = (std::net::SocketAddr, bool);

fn address_of(value: Option<core::Address>) -> Result<Address> {
    let compatible = matches!(&value, Some(core::Address { address: Some(Kind::SocketAddress(socket)) }) if socket.ipv4_compat);
    match place(value)? {
        Place::Socket(address) => Ok((address, compatible && address.is_ipv6())),
        Place::Name(name, _) => Err(Invalid::field("socket_address.address", format!("`{name}` is not an IP address"))),
        Place::Pipe(_) => Err(Invalid::unsupported("pipe")),
    }
}

/// A tree whose actions are names of chains, which have no criteria of their own then.
fn chain_matcher(value: Matcher, chains: &[Arc<FilterChain>]) -> Result<MatchTree<usize>> {
    for (index, chain) in chains.iter().enumerate() {
        if chain.name.is_empty() || chains.iter().take(index).any(|other| other.name == chain.name) {
            return Err(Invalid::new(format!("chain {index} needs a name of its own, by which the matcher finds it")));
        }
        if chain.criteria != ChainCriteria::default() {
            return Err(Invalid::new(format!("chain {index} ({}) has a filter_chain_match; keep one of the two", chain.name)));
        }
    }
    let action = |name: &str, config: &Any| {
        if any::name_of(&config.type_url) != "google.protobuf.StringValue" {
            return Err(Invalid::new(format!("{name} is not a google.protobuf.StringValue with a chain's name")));
        }
        let wanted = String::decode(&*config.value).map_err(|e| Invalid::field("typed_config", e.to_string()))?;
        let at = chains.iter().position(|chain| *chain.name == *wanted);
        at.ok_or_else(|| Invalid::field("typed_config.value", format!("`{wanted}` is the name of no chain")))
    };
    matcher_tree::connection_tree(value, &action)
}

/// The address, and its options where they stand instead of the listener's.
fn additional_address(value: proto::AdditionalAddress) -> Result<(Address, Option<Vec<SocketOption>>)> {
    let proto::AdditionalAddress { address, socket_options: own, tcp_keepalive } = value;
    refuse!(tcp_keepalive);
    let options = own.map(|own| socket_options(own.socket_options, "socket_options")).transpose().within("socket_options")?;
    Ok((address_of(address).within("address")?, options))
}

fn chain(value: proto::FilterChain, context: &mut Context<'_>) -> Result<FilterChain> {
    let proto::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = value;
    harmless!(metadata);
    refuse!(use_proxy_proto);
    let criteria = criteria(filter_chain_match.unwrap_or_default()).within("filter_chain_match")?;
    let tls = tls::server(transport_socket, context).within("transport_socket")?;
    let transport_connect_timeout = limit(transport_socket_connect_timeout.as_ref(), None, "transport_socket_connect_timeout")?;
    let (filters, terminal) = network::filters(filters, context)?;
    Ok(FilterChain { name: name.into(), criteria, tls, transport_connect_timeout, filters, terminal })
}

fn criteria(value: proto::FilterChainMatch) -> Result<ChainCriteria> {
    let proto::FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = value;
    refuse!(address_suffix, suffix_len);
    let server_names =
        server_names.into_iter().enumerate().map(|(i, n)| server_name(n).within_item("server_names", i)).collect::<Result<_>>()?;
    Ok(ChainCriteria {
        destination_port: destination_port.map(port).transpose().within("destination_port")?,
        prefix_ranges: cidrs(prefix_ranges, "prefix_ranges")?,
        server_names,
        transport_protocol: transport_protocol.into(),
        application_protocols: application_protocols.into_iter().map(|p| p.into_bytes().into()).collect(),
        direct_source_prefix_ranges: cidrs(direct_source_prefix_ranges, "direct_source_prefix_ranges")?,
        source_type: match ConnectionSourceType::try_from(source_type) {
            Ok(ConnectionSourceType::Any) => SourceType::Any,
            Ok(ConnectionSourceType::SameIpOrLoopback) => SourceType::SameIpOrLoopback,
            Ok(ConnectionSourceType::External) => SourceType::External,
            Err(_) => return Err(Invalid::field("source_type", format!("{source_type} is not known"))),
        },
        source_prefix_ranges: cidrs(source_prefix_ranges, "source_prefix_ranges")?,
        source_ports: source_ports.into_iter().enumerate().map(|(i, p)| port(p).within_item("source_ports", i)).collect::<Result<_>>()?,
    })
}

fn server_name(name: String) -> Result<Arc<str>> {
    if name == "*" {
        return Err(Invalid::new("`*` is not a server name; leave server_names empty to match every name"));
    }
    if name.strip_prefix("*.").unwrap_or(&name).contains('*') {
        return Err(Invalid::new(format!("`{name}` has a wildcard inside; only a leading `*.` is allowed")));
    }
    Ok(name.to_ascii_lowercase().into())
}
