//! Listeners and their filter chains.
use std::sync::Arc;
use std::time::Duration;

use lateen_proto::any;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::listener::v3::{self as proto, listener_filter, listener_filter_chain_match_predicate::Rule};
use lateen_proto::envoy::extensions::filters::listener as filters;
use proto::filter_chain_match::ConnectionSourceType;

use super::common::{Place, cidrs, limit, open, place, port, socket_options};
use super::context::Context;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::{access_log, network, proxy_protocol, tls};
use crate::chain::ChainIndex;
use crate::listener::{ChainCriteria, Direction, FilterChain, Inspectors, Listener, OriginalSrc, PortGate, SourceType};

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
    // Every worker has its own socket, so the kernel balances; the rest shapes statistics or performance only.
    harmless!(stats_matcher, metadata, tcp_fast_open_queue_length, connection_balance_config, reuse_port, enable_reuse_port);
    harmless!(max_connections_to_accept_per_socket_event, enable_mptcp);
    harmless!(per_connection_buffer_high_watermark_timeout);
    refuse!(fcds_config, filter_chain_matcher, udp_listener_config, api_listener, tcp_keepalive, listener_specifier);
    if name.is_empty() {
        return Err(Invalid::field("name", "is empty; every listener needs a name"));
    }
    context.outbound = traffic_direction == core::TrafficDirection::Outbound as i32;
    let bind = bind_to_port.or(deprecated_v1.and_then(|d| d.bind_to_port)).unwrap_or(true);
    let mut addresses = vec![address_of(address).within("address")?];
    for (index, additional) in additional_addresses.into_iter().enumerate() {
        addresses.push(additional_address(additional).within_item("additional_addresses", index)?);
    }
    let mut inspectors = inspectors(listener_filters)?;
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
    let index = ChainIndex::build(&chains).map_err(|clash| Invalid::field("filter_chains", clash))?;
    Ok(Listener {
        stat_prefix: if stat_prefix.is_empty() { stat_address(&addresses) } else { stat_prefix.into() },
        name: name.into(),
        addresses,
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
        inspectors,
        chains,
        default_chain,
        index,
        socket_options: socket_options(options, "socket_options")?,
        tcp_backlog: tcp_backlog_size.unwrap_or(128),
        per_connection_buffer_limit: per_connection_buffer_limit_bytes.unwrap_or(1 << 20),
        access_logs: access_log::logs(access_log, "access_log")?,
    })
}

/// Envoy names listeners in statistics by their address: `listener.127.0.0.1_80.`.
fn stat_address(addresses: &[std::net::SocketAddr]) -> Arc<str> {
    addresses.first().map(|a| a.to_string().replace(':', "_")).unwrap_or_default().into()
}

fn address_of(value: Option<core::Address>) -> Result<std::net::SocketAddr> {
    match place(value)? {
        Place::Socket(address) => Ok(address),
        Place::Name(name, _) => Err(Invalid::field("socket_address.address", format!("`{name}` is not an IP address"))),
        Place::Pipe(_) => Err(Invalid::unsupported("pipe")),
    }
}

fn additional_address(value: proto::AdditionalAddress) -> Result<std::net::SocketAddr> {
    let proto::AdditionalAddress { address, socket_options, tcp_keepalive } = value;
    refuse!(socket_options, tcp_keepalive);
    address_of(address).within("address")
}

fn inspectors(values: Vec<proto::ListenerFilter>) -> Result<Inspectors> {
    let mut result = Inspectors::default();
    for (index, value) in values.into_iter().enumerate() {
        inspector(&mut result, value).within_item("listener_filters", index)?;
    }
    Ok(result)
}

fn inspector(result: &mut Inspectors, value: proto::ListenerFilter) -> Result<()> {
    let proto::ListenerFilter { name, filter_disabled, config_type } = value;
    let config = match config_type {
        Some(listener_filter::ConfigType::TypedConfig(config)) => config,
        Some(listener_filter::ConfigType::ConfigDiscovery(_)) => return Err(Invalid::unsupported("config_discovery")),
        None => return Err(Invalid::field("typed_config", format!("is missing for {name}"))),
    };
    let gate = filter_disabled.map_or_else(|| Ok(PortGate::default()), |p| gate(p, 0)).within("filter_disabled")?;
    let only_always = |what: &str| {
        if gate.disabled_ports.is_empty() {
            Ok(!gate.always_disabled)
        } else {
            Err(Invalid::field("filter_disabled", format!("by port is not supported for {what}")))
        }
    };
    if any::is::<filters::tls_inspector::v3::TlsInspector>(&config) {
        let filters::tls_inspector::v3::TlsInspector {
            enable_ja3_fingerprinting,
            enable_ja4_fingerprinting,
            initial_read_buffer_size,
            close_connection_on_client_hello_parsing_errors,
            max_client_hello_size,
        } = open(&config)?;
        harmless!(enable_ja3_fingerprinting, enable_ja4_fingerprinting, initial_read_buffer_size, max_client_hello_size);
        refuse!(close_connection_on_client_hello_parsing_errors);
        result.tls = Some(gate);
    } else if any::is::<filters::http_inspector::v3::HttpInspector>(&config) {
        result.http = Some(gate);
    } else if any::is::<filters::original_dst::v3::OriginalDst>(&config) {
        result.original_dst = only_always("the original destination")?;
    } else if any::is::<filters::proxy_protocol::v3::ProxyProtocol>(&config) {
        let filter = proxy_protocol::listener_filter(open(&config)?)?;
        result.proxy_protocol = only_always("PROXY protocol")?.then(|| Arc::new(filter));
    } else if any::is::<filters::original_src::v3::OriginalSrc>(&config) {
        let filters::original_src::v3::OriginalSrc { bind_port, mark } = open(&config)?;
        // Before the PROXY protocol is read, the caller is whoever connected.
        let direct = result.proxy_protocol.is_none();
        let on = only_always("the original source")?;
        result.original_src = on.then_some(OriginalSrc { bind_port, mark: (mark != 0).then_some(mark), direct });
    } else {
        let supported = "tls_inspector, http_inspector, original_dst, original_src and proxy_protocol";
        return Err(Invalid::new(format!("{name} ({}) is not supported; supported are {supported}", any::name_of(&config.type_url))));
    }
    Ok(())
}

/// Istio switches inspectors off by destination port, or on for some ports only; both are sets of ports.
fn gate(value: proto::ListenerFilterChainMatchPredicate, depth: u32) -> Result<PortGate> {
    if depth > 16 {
        return Err(Invalid::new("is nested more than 16 deep"));
    }
    match value.rule {
        Some(Rule::AnyMatch(always_disabled)) => Ok(PortGate { disabled_ports: Vec::new(), always_disabled }),
        Some(Rule::DestinationPortRange(range)) => match (u16::try_from(range.start), u16::try_from(range.end)) {
            (Ok(start), Ok(end)) if start < end => {
                Ok(PortGate { disabled_ports: std::iter::once(start..end).collect(), always_disabled: false })
            }
            _ => Err(Invalid::field("destination_port_range", "the start must be less than the end, both being ports")),
        },
        Some(Rule::OrMatch(set)) => {
            let mut all = PortGate::default();
            for (index, rule) in set.rules.into_iter().enumerate() {
                let one = gate(rule, depth + 1).within_item("or_match.rules", index)?;
                all.disabled_ports.extend(one.disabled_ports);
                all.always_disabled |= one.always_disabled;
            }
            Ok(all)
        }
        Some(Rule::NotMatch(rule)) => gate(*rule, depth + 1).within("not_match").map(complement),
        Some(Rule::AndMatch(_)) => Err(Invalid::unsupported("and_match")),
        None => Err(Invalid::new("has no rule")),
    }
}

/// All ports but those of the set. Port 65535 cannot be the end of a half-open range and stays out.
fn complement(mut gate: PortGate) -> PortGate {
    if gate.always_disabled {
        return PortGate::default();
    }
    if gate.disabled_ports.is_empty() {
        return PortGate { disabled_ports: Vec::new(), always_disabled: true };
    }
    gate.disabled_ports.sort_by_key(|r| r.start);
    let mut next = 0;
    let mut rest = Vec::new();
    for range in gate.disabled_ports {
        if range.start > next {
            rest.push(next..range.start);
        }
        next = next.max(range.end);
    }
    if next < u16::MAX {
        rest.push(next..u16::MAX);
    }
    PortGate { disabled_ports: rest, always_disabled: false }
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
