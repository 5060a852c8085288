//! How the members of a cluster become known: given, discovered, resolved, or the original destination.
use std::time::Duration;

use lateen_balance::Locality;
use lateen_proto::any;
use lateen_proto::envoy::config::cluster::v3::cluster;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::clusters::dns::v3 as dns;

use super::common::{duration_or, open};
use super::endpoint::{Assignment, EndpointAddress};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::source;
use crate::cluster::{Discovery, DnsFamily, DnsTarget, DnsTargets};

pub(crate) struct Dns {
    pub(crate) rate: Option<lateen_proto::Duration>,
    pub(crate) respect_ttl: bool,
    pub(crate) family: i32,
}

pub(crate) fn kind(value: Option<cluster::ClusterDiscoveryType>, dns: Dns) -> Result<(cluster::DiscoveryType, Dns)> {
    match value {
        None => Ok((cluster::DiscoveryType::Static, dns)),
        Some(cluster::ClusterDiscoveryType::Type(number)) => match cluster::DiscoveryType::try_from(number) {
            Ok(kind) => Ok((kind, dns)),
            Err(_) => Err(Invalid::field("type", format!("{number} is not known"))),
        },
        Some(cluster::ClusterDiscoveryType::ClusterType(cluster::CustomClusterType { name, typed_config })) => match typed_config {
            Some(config) if any::is::<dns::DnsCluster>(&config) => {
                dns_cluster(open(&config).within("cluster_type")?).within("cluster_type")
            }
            _ => Err(Invalid::field("cluster_type", format!("{name} is not supported"))),
        },
    }
}

fn dns_cluster(value: dns::DnsCluster) -> Result<(cluster::DiscoveryType, Dns)> {
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
    harmless!(dns_failure_refresh_rate, dns_jitter, dns_min_refresh_rate);
    resolver(None, typed_dns_resolver_config)?;
    let family = match New::try_from(dns_lookup_family) {
        Ok(New::Unspecified | New::Auto) => cluster::DnsLookupFamily::Auto,
        Ok(New::V4Only) => cluster::DnsLookupFamily::V4Only,
        Ok(New::V6Only) => cluster::DnsLookupFamily::V6Only,
        Ok(New::V4Preferred) => cluster::DnsLookupFamily::V4Preferred,
        Ok(New::All) => cluster::DnsLookupFamily::All,
        Err(_) => return Err(Invalid::field("dns_lookup_family", "is not known")),
    };
    let kind = if all_addresses_in_single_endpoint { cluster::DiscoveryType::LogicalDns } else { cluster::DiscoveryType::StrictDns };
    Ok((kind, Dns { rate: dns_refresh_rate, respect_ttl: respect_dns_ttl, family: family as i32 }))
}

pub(crate) fn original_dst(value: &cluster::OriginalDstLbConfig) -> Result<bool> {
    let cluster::OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override, metadata_key } = value;
    refuse!(http_header_name, upstream_port_override, metadata_key);
    Ok(*use_http_header)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn discovery(
    kind: cluster::DiscoveryType,
    name: &str,
    eds: Option<cluster::EdsClusterConfig>,
    members: &Assignment,
    dns: &Dns,
    use_header: bool,
    default_transport: u32,
    matches: &[prost_types::Struct],
) -> Result<Discovery> {
    use cluster::DiscoveryType;
    let named = members.localities.iter().flat_map(|l| &l.endpoints).find_map(|e| match &e.at {
        EndpointAddress::Name(name, _) => Some(name),
        EndpointAddress::Fixed(_) => None,
    });
    match kind {
        DiscoveryType::Static => match named {
            Some(host) => Err(Invalid::field("load_assignment", format!("`{host}` is not an IP address; use type STRICT_DNS for names"))),
            None => Ok(Discovery::Static),
        },
        DiscoveryType::Eds => {
            let cluster::EdsClusterConfig { eds_config, service_name } =
                eds.ok_or_else(|| Invalid::field("eds_cluster_config", "is missing"))?;
            source::ads_only(eds_config).within("eds_cluster_config.eds_config")?;
            Ok(Discovery::Eds(if service_name.is_empty() { name.into() } else { service_name.into() }))
        }
        DiscoveryType::OriginalDst => Ok(Discovery::OriginalDst { use_header }),
        DiscoveryType::StrictDns => Ok(Discovery::StrictDns(targets(members, dns, default_transport, matches)?)),
        DiscoveryType::LogicalDns => {
            let targets = targets(members, dns, default_transport, matches)?;
            if targets.targets.len() == 1 {
                Ok(Discovery::LogicalDns(targets))
            } else {
                Err(Invalid::field("load_assignment", "a LOGICAL_DNS cluster has exactly one endpoint"))
            }
        }
    }
}

fn targets(members: &Assignment, dns: &Dns, default_transport: u32, matches: &[prost_types::Struct]) -> Result<DnsTargets> {
    let rate = duration_or(dns.rate.as_ref(), Duration::from_secs(5), "dns_refresh_rate")?;
    if rate < Duration::from_millis(1) {
        return Err(Invalid::field("dns_refresh_rate", "must be above zero"));
    }
    let family = match cluster::DnsLookupFamily::try_from(dns.family) {
        Ok(cluster::DnsLookupFamily::Auto) => DnsFamily::Auto,
        Ok(cluster::DnsLookupFamily::V4Only) => DnsFamily::V4Only,
        Ok(cluster::DnsLookupFamily::V6Only) => DnsFamily::V6Only,
        Ok(cluster::DnsLookupFamily::V4Preferred) => DnsFamily::V4Preferred,
        Ok(cluster::DnsLookupFamily::All) => DnsFamily::All,
        Err(_) => return Err(Invalid::field("dns_lookup_family", format!("{} is not known", dns.family))),
    };
    let mut targets = Vec::new();
    for locality in &members.localities {
        for endpoint in &locality.endpoints {
            let (name, port) = match &endpoint.at {
                EndpointAddress::Name(name, port) => (name.clone(), *port),
                EndpointAddress::Fixed(lateen_balance::Address::Socket(address)) => (address.ip().to_string().into(), address.port()),
                EndpointAddress::Fixed(lateen_balance::Address::Pipe(_)) => {
                    return Err(Invalid::field("load_assignment", "a DNS cluster cannot have a pipe as endpoint"));
                }
            };
            let matched = matches.iter().position(|wanted| {
                wanted.fields.iter().all(|(k, v)| endpoint.transport_match.as_ref().and_then(|m| m.fields.get(k)) == Some(v))
            });
            targets.push(DnsTarget {
                name,
                port,
                weight: endpoint.weight,
                priority: locality.priority,
                locality: Locality::clone(&locality.locality),
                locality_weight: locality.weight,
                transport: matched.and_then(|m| u32::try_from(m).ok()).unwrap_or(default_transport),
                labels: endpoint.labels.clone(),
                hash_key: endpoint.hash_key.clone(),
            });
        }
    }
    Ok(DnsTargets { targets, refresh: rate, respect_ttl: dns.respect_ttl, family, policy: members.policy })
}

/// Names are looked up by the system's resolver, which is what the default resolver extensions do as well.
pub(crate) fn resolver(dns_resolution_config: Option<core::DnsResolutionConfig>, typed: Option<core::TypedExtensionConfig>) -> Result<()> {
    refuse!(dns_resolution_config);
    let Some(core::TypedExtensionConfig { name, typed_config }) = typed else { return Ok(()) };
    let has_settings = typed_config.as_ref().is_some_and(|c| any::name_of(&c.type_url).contains("cares") && !c.value.is_empty());
    if has_settings {
        return Err(Invalid::field(
            "typed_dns_resolver_config",
            format!("{name}: settings of the resolver are not supported; leave it out"),
        ));
    }
    Ok(())
}
