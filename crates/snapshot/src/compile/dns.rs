//! How a cluster's names are resolved: from its own fields, or from the newer `DnsCluster`.
use std::net::SocketAddr;
use std::time::Duration;

use lateen_proto::any;
use lateen_proto::envoy::config::cluster::v3::cluster;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::clusters::dns::v3 as dns;
use lateen_proto::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use lateen_proto::envoy::extensions::network::dns_resolver::getaddrinfo::v3::GetAddrInfoDnsResolverConfig;

use super::common::{Place, duration, duration_or, open, place};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use crate::dns::{Backoff, DnsFamily, DnsResolver, DnsSettings, StubResolver};

/// The fields of a cluster that say how its names are resolved.
pub(crate) struct Fields {
    pub(crate) dns_refresh_rate: Option<lateen_proto::Duration>,
    pub(crate) dns_failure_refresh_rate: Option<cluster::RefreshRate>,
    pub(crate) dns_jitter: Option<lateen_proto::Duration>,
    pub(crate) respect_dns_ttl: bool,
    pub(crate) dns_lookup_family: i32,
    pub(crate) use_tcp_for_dns_lookups: bool,
    pub(crate) dns_resolution_config: Option<core::DnsResolutionConfig>,
    pub(crate) typed_dns_resolver_config: Option<core::TypedExtensionConfig>,
}

pub(crate) fn settings(value: Fields) -> Result<DnsSettings> {
    let Fields { dns_refresh_rate, dns_failure_refresh_rate, dns_jitter, respect_dns_ttl, .. } = value;
    let failure = dns_failure_refresh_rate.map(|cluster::RefreshRate { base_interval, max_interval }| (base_interval, max_interval));
    Ok(DnsSettings {
        family: family(value.dns_lookup_family)?,
        resolver: resolver(value.typed_dns_resolver_config, value.dns_resolution_config, value.use_tcp_for_dns_lookups)?,
        refresh: rate(dns_refresh_rate.as_ref(), Duration::from_secs(5), "dns_refresh_rate")?,
        respect_ttl: respect_dns_ttl,
        min_refresh: Duration::ZERO,
        jitter: duration_or(dns_jitter.as_ref(), Duration::ZERO, "dns_jitter")?,
        failure: failure.map(backoff).transpose().within("dns_failure_refresh_rate")?,
    })
}

/// The settings of the newer form, and whether all addresses make one endpoint.
pub(crate) fn dns_cluster(value: dns::DnsCluster) -> Result<(DnsSettings, bool)> {
    use lateen_proto::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as New;
    let dns::DnsCluster {
        dns_refresh_rate,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_jitter,
        typed_dns_resolver_config,
        dns_lookup_family,
        all_addresses_in_single_endpoint,
        dns_min_refresh_rate,
    } = value;
    let family = match New::try_from(dns_lookup_family) {
        Ok(New::Unspecified | New::Auto) => DnsFamily::Auto,
        Ok(New::V4Only) => DnsFamily::V4Only,
        Ok(New::V6Only) => DnsFamily::V6Only,
        Ok(New::V4Preferred) => DnsFamily::V4Preferred,
        Ok(New::All) => DnsFamily::All,
        Err(_) => return Err(Invalid::field("dns_lookup_family", "is not known")),
    };
    let failure =
        dns_failure_refresh_rate.map(|dns::dns_cluster::RefreshRate { base_interval, max_interval }| (base_interval, max_interval));
    let settings = DnsSettings {
        family,
        resolver: resolver(typed_dns_resolver_config, None, false)?,
        refresh: rate(dns_refresh_rate.as_ref(), Duration::from_secs(5), "dns_refresh_rate")?,
        respect_ttl: respect_dns_ttl,
        min_refresh: duration_or(dns_min_refresh_rate.as_ref(), Duration::ZERO, "dns_min_refresh_rate")?,
        jitter: duration_or(dns_jitter.as_ref(), Duration::ZERO, "dns_jitter")?,
        failure: failure.map(backoff).transpose().within("dns_failure_refresh_rate")?,
    };
    Ok((settings, all_addresses_in_single_endpoint))
}

/// A rate of refreshing, which must not be so small that nothing else gets done.
pub(crate) fn rate(value: Option<&lateen_proto::Duration>, default: Duration, field: &str) -> Result<Duration> {
    let rate = duration_or(value, default, field)?;
    if rate < Duration::from_millis(1) { Err(Invalid::field(field, "must be at least 1ms")) } else { Ok(rate) }
}

/// The first and the longest pause; the longest is ten times the first where it is not given.
pub(crate) fn backoff((base, max): (Option<lateen_proto::Duration>, Option<lateen_proto::Duration>)) -> Result<Backoff> {
    let base = base.ok_or_else(|| Invalid::field("base_interval", "is missing"))?;
    let base = duration(&base).within("base_interval")?;
    if base < Duration::from_millis(1) {
        return Err(Invalid::field("base_interval", "must be at least 1ms"));
    }
    let max = duration_or(max.as_ref(), base.saturating_mul(10), "max_interval")?;
    if max < base {
        return Err(Invalid::field("max_interval", "must not be below base_interval"));
    }
    Ok(Backoff { base, max })
}

pub(crate) fn family(value: i32) -> Result<DnsFamily> {
    match cluster::DnsLookupFamily::try_from(value) {
        Ok(cluster::DnsLookupFamily::Auto) => Ok(DnsFamily::Auto),
        Ok(cluster::DnsLookupFamily::V4Only) => Ok(DnsFamily::V4Only),
        Ok(cluster::DnsLookupFamily::V6Only) => Ok(DnsFamily::V6Only),
        Ok(cluster::DnsLookupFamily::V4Preferred) => Ok(DnsFamily::V4Preferred),
        Ok(cluster::DnsLookupFamily::All) => Ok(DnsFamily::All),
        Err(_) => Err(Invalid::field("dns_lookup_family", format!("{value} is not known"))),
    }
}

/// The typed configuration counts before the older one, and that before the oldest, as in Envoy. `None` where nothing is said.
pub(crate) fn resolver(
    typed: Option<core::TypedExtensionConfig>,
    old: Option<core::DnsResolutionConfig>,
    use_tcp_for_dns_lookups: bool,
) -> Result<Option<DnsResolver>> {
    if let Some(core::TypedExtensionConfig { name, typed_config }) = typed {
        return typed_resolver(&name, typed_config.as_ref()).within("typed_dns_resolver_config").map(Some);
    }
    if let Some(core::DnsResolutionConfig { resolvers, dns_resolver_options }) = old {
        let servers = servers(resolvers).within("dns_resolution_config")?;
        let core::DnsResolverOptions { use_tcp_for_dns_lookups, no_default_search_domain } = dns_resolver_options.unwrap_or_default();
        let (tcp, no_search) = (use_tcp_for_dns_lookups, no_default_search_domain);
        return Ok(Some(DnsResolver::Stub(StubResolver { servers, tcp, no_search, ..StubResolver::default() })));
    }
    Ok(use_tcp_for_dns_lookups.then(|| DnsResolver::Stub(StubResolver { tcp: true, ..StubResolver::default() })))
}

fn typed_resolver(name: &str, config: Option<&lateen_proto::Any>) -> Result<DnsResolver> {
    match config {
        None => Ok(DnsResolver::default()),
        Some(config) if any::is::<CaresDnsResolverConfig>(config) => cares(open(config)?).map(DnsResolver::Stub).within("typed_config"),
        Some(config) if any::is::<GetAddrInfoDnsResolverConfig>(config) => {
            let GetAddrInfoDnsResolverConfig { num_retries, num_resolver_threads } = open(config)?;
            refuse!(num_retries);
            harmless!(num_resolver_threads);
            Ok(DnsResolver::System)
        }
        Some(config) => Err(Invalid::field(
            "typed_config",
            format!("{name} ({}) is not supported; the resolvers cares and getaddrinfo are", any::name_of(&config.type_url)),
        )),
    }
}

fn cares(value: CaresDnsResolverConfig) -> Result<StubResolver> {
    let CaresDnsResolverConfig {
        resolvers,
        use_resolvers_as_fallback,
        filter_unroutable_families,
        dns_resolver_options,
        udp_max_queries,
        query_timeout_seconds,
        query_tries,
        rotate_nameservers,
        edns0_max_payload_size,
        max_udp_channel_duration,
        reinit_channel_on_timeout,
        qcache_max_ttl,
    } = value;
    // Each question has a socket and a port of its own, so nothing grows stale. No answer is kept beside the clusters.
    harmless!(udp_max_queries, max_udp_channel_duration, reinit_channel_on_timeout);
    let qcache_max_ttl = qcache_max_ttl.filter(|n| *n > 0);
    refuse!(qcache_max_ttl);
    let core::DnsResolverOptions { use_tcp_for_dns_lookups, no_default_search_domain } = dns_resolver_options.unwrap_or_default();
    let default = StubResolver::default();
    let payload = edns0_max_payload_size.unwrap_or(default.payload.into());
    let tries = query_tries.unwrap_or(default.tries);
    let timeout = query_timeout_seconds.map_or(default.timeout, Duration::from_secs);
    if tries == 0 || timeout.is_zero() {
        return Err(Invalid::field("query_tries", "and query_timeout_seconds must be at least 1"));
    }
    Ok(StubResolver {
        servers: servers(resolvers)?,
        servers_as_fallback: use_resolvers_as_fallback,
        tcp: use_tcp_for_dns_lookups,
        no_search: no_default_search_domain,
        filter_unroutable: filter_unroutable_families,
        timeout,
        tries,
        rotate: rotate_nameservers,
        payload: match u16::try_from(payload) {
            Ok(payload @ 512..=4096) => payload,
            _ => return Err(Invalid::field("edns0_max_payload_size", format!("{payload} is not between 512 and 4096"))),
        },
    })
}

fn servers(values: Vec<core::Address>) -> Result<Vec<SocketAddr>> {
    let server = |(index, value)| match place(Some(value)).within_item("resolvers", index)? {
        Place::Socket(address) if address.port() == 0 => Ok(SocketAddr::new(address.ip(), 53)),
        Place::Socket(address) => Ok(address),
        _ => Err(Invalid::new("must be an IP address")).within_item("resolvers", index),
    };
    values.into_iter().enumerate().map(server).collect()
}
