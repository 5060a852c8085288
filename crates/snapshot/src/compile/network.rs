//! Network filters: those before the terminal one, and what ends a chain.
use std::sync::Arc;

use bytes::Bytes;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::listener::v3::{self as listener, filter};
use lateen_proto::envoy::extensions::filters::network as proto;
use lateen_proto::envoy::tcp::metadataexchange::config::MetadataExchange;
use lateen_proto::{Any, any};
use proto::tcp_proxy::v3 as tcp;

use super::common::{data, open};
use super::context::{Context, Place};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::{connection_services, dns_cache, extension, hcm, istio, local_ratelimit, opaque, rbac, set_filter_state, tcp_proxy};
use crate::listener::{ConnectionLimit, NetworkFilter, Terminal};

const SUPPORTED: &str = "http_connection_manager, tcp_proxy, direct_response, rbac, sni_cluster, sni_dynamic_forward_proxy, connection_limit, local_ratelimit, ext_authz, ratelimit, set_filter_state, istio.metadata_exchange and istio.stats";

const SET_STATE: &str = "envoy.extensions.filters.network.set_filter_state.v3.Config";

/// The filters of a chain, and the last one, which consumes the connection.
pub(crate) fn filters(values: Vec<listener::Filter>, context: &mut Context<'_>) -> Result<(Vec<NetworkFilter>, Terminal)> {
    let mut filters = Vec::new();
    let last = values.len().wrapping_sub(1);
    let mut terminal = None;
    for (index, value) in values.into_iter().enumerate() {
        let name = value.name.clone();
        match filter(value, index == last, context).within_item("filters", index)? {
            Kind::Before(filter) if index != last => filters.push(filter),
            Kind::Terminal(end) if index == last => terminal = Some(end),
            Kind::Before(_) => {
                let reason = format!("{name}: the last filter must consume the connection; add http_connection_manager or tcp_proxy");
                return Err(Invalid::new(reason)).within_item("filters", index);
            }
            Kind::Terminal(_) => {
                return Err(Invalid::new(format!("{name}: must be the last filter of the chain"))).within_item("filters", index);
            }
        }
    }
    let sets = filters.iter().any(|f| match f {
        NetworkFilter::SetState(values) => !values.is_empty(),
        NetworkFilter::Discovered(place) => place.types.iter().any(|t| **t == *SET_STATE),
        _ => false,
    });
    match terminal {
        Some(Terminal::Http(_)) if sets => Err(Invalid::field("filters", "set_filter_state is supported in front of the tcp_proxy alone")),
        Some(terminal) => Ok((filters, terminal)),
        // Envoy accepts a chain without filters and closes its connections at once.
        None => Ok((filters, Terminal::DirectResponse(Bytes::new()))),
    }
}

enum Kind {
    Before(NetworkFilter),
    Terminal(Terminal),
}

fn filter(value: listener::Filter, is_last: bool, context: &mut Context<'_>) -> Result<Kind> {
    let listener::Filter { name, config_type } = value;
    let config = match config_type {
        Some(filter::ConfigType::TypedConfig(config)) if !config.type_url.is_empty() => opaque::typed(config)?,
        Some(filter::ConfigType::ConfigDiscovery(source)) => return place(&name, source, is_last, context).within("config_discovery"),
        _ => return Err(Invalid::field("typed_config", format!("is missing for {name}"))),
    };
    typed(&name, &config, context)
}

fn place(name: &str, source: core::ExtensionConfigSource, is_last: bool, context: &mut Context<'_>) -> Result<Kind> {
    if is_last {
        let place = extension::place(name, source, Place::Terminal, context, discovered_terminal)?;
        Ok(Kind::Terminal(Terminal::Discovered(Arc::new(place))))
    } else {
        let place = extension::place(name, source, Place::Network, context, discovered)?;
        Ok(Kind::Before(NetworkFilter::Discovered(Arc::new(place))))
    }
}

/// What is discovered for a place before the last.
pub(crate) fn discovered(name: &str, config: &Any, context: &mut Context<'_>) -> Result<NetworkFilter> {
    match typed(name, config, context)? {
        Kind::Before(filter) => Ok(filter),
        Kind::Terminal(_) => Err(Invalid::new(format!("{name}: must be the last filter of the chain"))),
    }
}

/// What is discovered for the last place. A connection manager refers to routes and keys that a listener has to wait for.
pub(crate) fn discovered_terminal(name: &str, config: &Any, context: &mut Context<'_>) -> Result<Terminal> {
    if any::is::<proto::http_connection_manager::v3::HttpConnectionManager>(config) {
        return Err(Invalid::new("an http_connection_manager is not discovered; give it in the listener"));
    }
    match typed(name, config, context)? {
        Kind::Terminal(terminal) => Ok(terminal),
        Kind::Before(_) => Err(Invalid::new(format!("{name}: the last filter must consume the connection"))),
    }
}

fn typed(name: &str, config: &Any, context: &mut Context<'_>) -> Result<Kind> {
    if any::is::<proto::http_connection_manager::v3::HttpConnectionManager>(config) {
        Ok(Kind::Terminal(Terminal::Http(Arc::new(hcm::manager(config, context)?))))
    } else if any::is::<tcp::TcpProxy>(config) {
        Ok(Kind::Terminal(Terminal::Tcp(Arc::new(tcp_proxy::tcp_proxy(open(config)?, context)?))))
    } else if any::is::<proto::direct_response::v3::Config>(config) {
        let proto::direct_response::v3::Config { response } = open(config)?;
        let bytes = response.map_or_else(|| Ok(Vec::new()), data).within("response")?;
        Ok(Kind::Terminal(Terminal::DirectResponse(bytes.into())))
    } else if any::name_of(&config.type_url) == "envoy.extensions.filters.network.echo.v3.Echo" {
        Ok(Kind::Terminal(Terminal::Echo))
    } else if any::is::<proto::rbac::v3::Rbac>(config) {
        Ok(Kind::Before(NetworkFilter::Rbac(Arc::new(network_rbac(open(config)?)?))))
    } else if any::is::<proto::sni_cluster::v3::SniCluster>(config) {
        Ok(Kind::Before(NetworkFilter::SniCluster))
    } else if any::is::<proto::local_ratelimit::v3::LocalRateLimit>(config) {
        let proto::local_ratelimit::v3::LocalRateLimit { stat_prefix, token_bucket, runtime_enabled, share_key } = open(config)?;
        refuse!(share_key);
        let limit = local_ratelimit::connections(stat_prefix, token_bucket, runtime_enabled)?;
        // One that is switched off never counts: nothing set is nothing done.
        Ok(Kind::Before(limit.map_or_else(|| NetworkFilter::SetState(Arc::from([])), |l| NetworkFilter::LocalRateLimit(Arc::new(l)))))
    } else if any::is::<proto::ext_authz::v3::ExtAuthz>(config) {
        Ok(Kind::Before(NetworkFilter::ExtAuthz(Arc::new(connection_services::authorization(open(config)?, context)?))))
    } else if any::is::<proto::ratelimit::v3::RateLimit>(config) {
        Ok(Kind::Before(NetworkFilter::RateLimit(Arc::new(connection_services::quota(open(config)?, context)?))))
    } else if any::is::<proto::set_filter_state::v3::Config>(config) {
        set_filter_state::filter(open(config)?).map(Kind::Before)
    } else if any::is::<proto::sni_dynamic_forward_proxy::v3::FilterConfig>(config) {
        let (cache, port) = dns_cache::sni_filter(open(config)?, context)?;
        Ok(Kind::Before(NetworkFilter::SniDynamicForwardProxy(cache, port)))
    } else if any::is::<proto::connection_limit::v3::ConnectionLimit>(config) {
        connection_limit(open(config)?).map(Kind::Before)
    } else {
        match istio::type_name(config).as_str() {
            istio::METADATA_EXCHANGE => {
                if any::is::<MetadataExchange>(config) {
                    let MetadataExchange { protocol, enable_discovery, additional_labels } = open(config)?;
                    harmless!(protocol, enable_discovery, additional_labels);
                }
                Ok(Kind::Before(NetworkFilter::MetadataExchange))
            }
            "stats.PluginConfig" => Ok(Kind::Before(NetworkFilter::IstioStats(Arc::new(istio::istio_stats(config, context.source)?)))),
            other => Err(Invalid::new(format!("{name} ({other}) is not supported; supported are {SUPPORTED}"))),
        }
    }
}

fn network_rbac(value: proto::rbac::v3::Rbac) -> Result<crate::matcher::Rbac> {
    let proto::rbac::v3::Rbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        stat_prefix,
        enforcement_type,
        delay_deny,
    } = value;
    // Who is let in is judged when the connection comes, before a byte of it is read.
    harmless!(enforcement_type);
    // A refused connection is closed at once.
    refuse!(delay_deny);
    rbac::filter(rbac::Parts {
        judged: rbac::Judged::Connections,
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        stat_prefix,
        shadow_stat_prefix: shadow_rules_stat_prefix,
        tracks_policies: false,
    })
}

fn connection_limit(value: proto::connection_limit::v3::ConnectionLimit) -> Result<NetworkFilter> {
    let proto::connection_limit::v3::ConnectionLimit { stat_prefix, max_connections, delay, runtime_enabled } = value;
    // A refused connection is closed at once, and the switch cannot be thrown while we run.
    refuse!(delay, runtime_enabled);
    let max = max_connections.ok_or_else(|| Invalid::field("max_connections", "is missing"))?;
    if max == 0 {
        return Err(Invalid::field("max_connections", "must be at least 1"));
    }
    Ok(NetworkFilter::ConnectionLimit(Arc::new(ConnectionLimit::new(stat_prefix.into(), max))))
}
