//! How the members of a cluster become known: given, discovered, resolved, or the original destination.
use std::sync::Arc;

use lateen_balance::Locality;
use lateen_proto::any;
use lateen_proto::envoy::config::cluster::v3::cluster;
use lateen_proto::envoy::extensions::clusters::{
    aggregate, dns::v3::DnsCluster, dynamic_forward_proxy, original_dst::v3::OriginalDstCluster,
};

use super::cluster::Given;
use super::common::{open, port};
use super::context::Context;
use super::endpoint::EndpointAddress;
use super::invalid::{Invalid, Result, Within};
use super::{dns, dns_cache, file_names, source};
use crate::ClusterId;
use crate::cluster::{Discovery, DnsTarget, DnsTargets, OriginalDst};
use crate::dns::DnsSettings;
use crate::dns::cache::DnsCache;

/// How members become known, with the settings of that way.
pub(crate) enum Kind {
    Static,
    Eds,
    StrictDns(DnsSettings),
    LogicalDns(DnsSettings),
    OriginalDst(OriginalDst),
    Aggregate(Arc<[ClusterId]>),
    /// With `true` names in certificates need not be checked.
    DynamicForwardProxy(Arc<DnsCache>, bool),
}

impl Kind {
    /// Whether the kind itself chooses among hosts, so that no other policy can.
    pub(crate) fn balances(&self) -> bool {
        matches!(self, Self::OriginalDst(_) | Self::Aggregate(_) | Self::DynamicForwardProxy(..))
    }
}

pub(crate) fn kind(value: Option<cluster::ClusterDiscoveryType>, fields: dns::Fields, context: &mut Context<'_>) -> Result<Kind> {
    use cluster::DiscoveryType;
    match value {
        None => Ok(Kind::Static),
        Some(cluster::ClusterDiscoveryType::Type(number)) => match DiscoveryType::try_from(number) {
            Ok(DiscoveryType::Static) => Ok(Kind::Static),
            Ok(DiscoveryType::Eds) => Ok(Kind::Eds),
            Ok(DiscoveryType::StrictDns) => Ok(Kind::StrictDns(dns::settings(fields)?)),
            Ok(DiscoveryType::LogicalDns) => Ok(Kind::LogicalDns(dns::settings(fields)?)),
            Ok(DiscoveryType::OriginalDst) => Ok(Kind::OriginalDst(OriginalDst::default())),
            Err(_) => Err(Invalid::field("type", format!("{number} is not known"))),
        },
        Some(cluster::ClusterDiscoveryType::ClusterType(custom)) => extension(custom, context).within("cluster_type"),
    }
}

fn extension(value: cluster::CustomClusterType, context: &mut Context<'_>) -> Result<Kind> {
    let cluster::CustomClusterType { name, typed_config } = value;
    let Some(config) = typed_config else { return Err(Invalid::field("typed_config", format!("is missing for {name}"))) };
    if any::is::<DnsCluster>(&config) {
        let (settings, single) = dns::dns_cluster(open(&config)?)?;
        Ok(if single { Kind::LogicalDns(settings) } else { Kind::StrictDns(settings) })
    } else if any::is::<OriginalDstCluster>(&config) {
        let OriginalDstCluster { use_http_header, http_header_name, upstream_port_override, metadata_key } = open(&config)?;
        let same = cluster::OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override, metadata_key };
        Ok(Kind::OriginalDst(original_dst(same)?))
    } else if any::is::<aggregate::v3::ClusterConfig>(&config) {
        let aggregate::v3::ClusterConfig { clusters } = open(&config)?;
        if clusters.is_empty() {
            return Err(Invalid::field("clusters", "is empty"));
        }
        Ok(Kind::Aggregate(clusters.iter().map(|name| context.names.cluster(name)).collect()))
    } else if any::is::<dynamic_forward_proxy::v3::ClusterConfig>(&config) {
        let (cache, insecure) = dns_cache::cluster(open(&config)?, context)?;
        Ok(Kind::DynamicForwardProxy(cache, insecure))
    } else {
        Err(Invalid::new(format!("{name} ({}) is not supported", any::name_of(&config.type_url))))
    }
}

pub(crate) fn original_dst(value: cluster::OriginalDstLbConfig) -> Result<OriginalDst> {
    let cluster::OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override, metadata_key } = value;
    let name = if http_header_name.is_empty() { "x-envoy-original-dst-host".to_owned() } else { http_header_name };
    let header = name.parse().map_err(|_| Invalid::field("http_header_name", format!("`{name}` is not a header name")))?;
    Ok(OriginalDst {
        header: use_http_header.then_some(header),
        metadata: metadata_key.map(super::metadata::key).transpose().within("metadata_key")?,
        port: upstream_port_override.map(port).transpose().within("upstream_port_override")?,
    })
}

pub(crate) fn discovery(
    kind: Kind,
    name: &str,
    eds: Option<cluster::EdsClusterConfig>,
    given: &Given,
    context: &mut Context<'_>,
) -> Result<Discovery> {
    let members = &given.assignment;
    let named = members.localities.iter().flat_map(|l| &l.endpoints).find_map(|e| match &e.at {
        EndpointAddress::Name(name, _) => Some(name),
        EndpointAddress::Fixed(_) => None,
    });
    match kind {
        Kind::Static => match named {
            Some(host) => Err(Invalid::field("load_assignment", format!("`{host}` is not an IP address; use type STRICT_DNS for names"))),
            None => Ok(Discovery::Static),
        },
        Kind::Eds => {
            let cluster::EdsClusterConfig { eds_config, service_name } =
                eds.ok_or_else(|| Invalid::field("eds_cluster_config", "is missing"))?;
            let service = if service_name.is_empty() { name } else { &service_name };
            file_names::check(service).within("eds_cluster_config.service_name")?;
            let (key, timeout) = source::ads_or_file(eds_config, service).within("eds_cluster_config.eds_config")?;
            context.uses.endpoints = timeout;
            Ok(Discovery::Eds(key.into()))
        }
        Kind::OriginalDst(settings) => Ok(Discovery::OriginalDst(Arc::new(settings))),
        Kind::StrictDns(settings) => Ok(Discovery::StrictDns(targets(given, settings)?)),
        Kind::LogicalDns(settings) => {
            let targets = targets(given, settings)?;
            if targets.targets.len() == 1 {
                Ok(Discovery::LogicalDns(targets))
            } else {
                Err(Invalid::field("load_assignment", "a LOGICAL_DNS cluster has exactly one endpoint"))
            }
        }
        Kind::DynamicForwardProxy(cache, _) if members.localities.iter().all(|l| l.endpoints.is_empty()) => {
            Ok(Discovery::DynamicForwardProxy(cache))
        }
        Kind::Aggregate(all) if members.localities.iter().all(|l| l.endpoints.is_empty()) => Ok(Discovery::Aggregate(all)),
        Kind::Aggregate(_) => Err(Invalid::field("load_assignment", "has no meaning here: the hosts are those of the clusters named")),
        Kind::DynamicForwardProxy(..) => {
            Err(Invalid::field("load_assignment", "has no meaning here: the hosts are those that requests name"))
        }
    }
}

fn targets(given: &Given, dns: DnsSettings) -> Result<DnsTargets> {
    let mut transports = given.transports.iter().copied();
    let mut targets = Vec::new();
    for locality in &given.assignment.localities {
        for (endpoint, transport) in locality.endpoints.iter().zip(&mut transports) {
            let (name, port) = match &endpoint.at {
                EndpointAddress::Name(name, port) => (name.clone(), *port),
                EndpointAddress::Fixed(lateen_balance::Address::Socket(address)) => (address.ip().to_string().into(), address.port()),
                EndpointAddress::Fixed(lateen_balance::Address::Pipe(_)) => {
                    return Err(Invalid::field("load_assignment", "a DNS cluster cannot have a pipe as endpoint"));
                }
            };
            targets.push(DnsTarget {
                hostname: if endpoint.hostname.is_empty() { name.clone() } else { endpoint.hostname.clone() },
                name,
                port,
                weight: endpoint.weight,
                priority: locality.priority,
                locality: Locality::clone(&locality.locality),
                locality_weight: locality.weight,
                transport,
                labels: endpoint.labels.clone(),
                hash_key: endpoint.hash_key.clone(),
                workload: endpoint.workload.clone(),
                flags: endpoint.flags,
                checked_at: endpoint.checked_at.clone(),
            });
        }
    }
    Ok(DnsTargets { targets, settings: Arc::new(dns), policy: given.assignment.policy })
}
