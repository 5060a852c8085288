//! Endpoints: the members of a cluster, with live hosts carried over by address.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use lateen_balance::host::{
    CheckedAt, DEGRADED_ACTIVE_HC, DEGRADED_EDS, DRAINING_EDS, EXCLUDED_VIA_IMMEDIATE_HC_FAIL, FAILED_ACTIVE_HC, FAILED_EDS,
    OVERPROVISIONING_PERCENT, PENDING_ACTIVE_HC, PENDING_REMOVAL, TIMEOUT_EDS,
};
use lateen_balance::subset::Labels;
use lateen_balance::subsets::{Labelled, Subsets};
use lateen_balance::{Address, Host, HostSet, Locality, LocalityHosts, Priority, SubsetSettings};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::endpoint::v3::cluster_load_assignment::policy::DropOverload;
use lateen_proto::envoy::config::endpoint::v3::{self as proto, lb_endpoint, locality_lb_endpoints};

use super::common::{Place, fraction, metadata_text, place, port, shared};
use super::invalid::{Invalid, Result, Within, each, harmless, refuse};
use super::subset;
use crate::cluster::AssignmentPolicy;
use crate::matcher::Fraction;

/// More priorities than this are a mistake: each is a list of its own.
const MAX_PRIORITIES: u32 = 128;

/// A load assignment, checked, but not yet bound to a cluster's transport sockets.
#[derive(Debug, Default)]
pub(crate) struct Assignment {
    pub(crate) localities: Vec<AssignedLocality>,
    pub(crate) policy: AssignmentPolicy,
}

#[derive(Debug)]
pub(crate) struct AssignedLocality {
    pub(crate) locality: Locality,
    pub(crate) weight: u32,
    pub(crate) priority: u32,
    pub(crate) endpoints: Vec<AssignedEndpoint>,
    /// Its `envoy.transport_socket_match`.
    pub(crate) transport_match: Option<prost_types::Struct>,
}

#[derive(Debug)]
pub(crate) struct AssignedEndpoint {
    pub(crate) at: EndpointAddress,
    /// All addresses, when there are several.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) hostname: Arc<str>,
    pub(crate) weight: u32,
    pub(crate) flags: u32,
    pub(crate) checked_at: Option<Arc<CheckedAt>>,
    pub(crate) workload: Option<Arc<str>>,
    /// `envoy.lb` metadata.
    pub(crate) labels: Option<Arc<Labels>>,
    /// What hash policies place it by; empty for its address.
    pub(crate) hash_key: Arc<str>,
    /// Its `envoy.transport_socket_match`.
    pub(crate) transport_match: Option<prost_types::Struct>,
}

#[derive(Debug)]
pub(crate) enum EndpointAddress {
    Fixed(Address),
    /// To be resolved: DNS clusters only.
    Name(Arc<str>, u16),
}

pub(crate) fn assignment(value: proto::ClusterLoadAssignment) -> Result<Assignment> {
    let proto::ClusterLoadAssignment { cluster_name: _taken, endpoints, named_endpoints, policy } = value;
    refuse!(named_endpoints);
    let policy = policy.map(self::policy).transpose().within("policy")?.unwrap_or_default();
    let localities = each(endpoints, "endpoints", locality)?;
    Ok(Assignment { localities, policy })
}

fn policy(value: proto::cluster_load_assignment::Policy) -> Result<AssignmentPolicy> {
    let proto::cluster_load_assignment::Policy { drop_overloads, overprovisioning_factor, endpoint_stale_after, weighted_priority_health } =
        value;
    refuse!(endpoint_stale_after);
    let dropped_per_million = dropped(drop_overloads).within("drop_overloads")?;
    match overprovisioning_factor {
        Some(0) => Err(Invalid::field("overprovisioning_factor", "must be above zero")),
        factor => Ok(AssignmentPolicy {
            overprovisioning_percent: factor.unwrap_or(OVERPROVISIONING_PERCENT),
            weighted_priority_health,
            dropped_per_million,
        }),
    }
}

/// Of a million requests, how many are dropped. Envoy takes one category as well; its name is for load reports.
fn dropped(values: Vec<DropOverload>) -> Result<u32> {
    let mut values = values.into_iter();
    let Some(DropOverload { category: _, drop_percentage }) = values.next() else { return Ok(0) };
    if values.next().is_some() {
        return Err(Invalid::new("has more than one category; add them up in one"));
    }
    let share = drop_percentage.map(fraction).transpose().within("drop_percentage")?.unwrap_or(Fraction::NONE);
    if share.numerator > share.denominator {
        return Err(Invalid::field("drop_percentage", format!("{} of {} is more than all", share.numerator, share.denominator)));
    }
    Ok(share.numerator * (1_000_000 / share.denominator))
}

fn locality(value: proto::LocalityLbEndpoints) -> Result<AssignedLocality> {
    let proto::LocalityLbEndpoints { locality, metadata, lb_endpoints, load_balancing_weight, priority, proximity, lb_config } = value;
    harmless!(proximity);
    if priority > MAX_PRIORITIES {
        return Err(Invalid::field("priority", format!("{priority} is more than {MAX_PRIORITIES}")));
    }
    let endpoints = match lb_config {
        None => lb_endpoints,
        Some(locality_lb_endpoints::LbConfig::LoadBalancerEndpoints(list)) => list.lb_endpoints,
        Some(locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(_)) => {
            return Err(Invalid::unsupported("leds_cluster_locality_config"));
        }
    };
    let endpoints = each(endpoints, "lb_endpoints", endpoint)?;
    // One that does not say where it is has no weight, as in Envoy.
    let weight = load_balancing_weight.filter(|_| locality.is_some()).unwrap_or(0);
    let core::Locality { region, zone, sub_zone } = locality.unwrap_or_default();
    Ok(AssignedLocality {
        locality: Locality { region: shared(region), zone: shared(zone), sub_zone: shared(sub_zone) },
        weight,
        priority,
        endpoints,
        transport_match: transport_match(metadata.as_ref()),
    })
}

fn transport_match(metadata: Option<&core::Metadata>) -> Option<prost_types::Struct> {
    metadata?.filter_metadata.get("envoy.transport_socket_match").cloned()
}

fn endpoint(value: proto::LbEndpoint) -> Result<AssignedEndpoint> {
    let proto::LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier } = value;
    let endpoint = match host_identifier {
        Some(lb_endpoint::HostIdentifier::Endpoint(e)) => e,
        Some(lb_endpoint::HostIdentifier::EndpointName(_)) => return Err(Invalid::unsupported("endpoint_name")),
        None => return Err(Invalid::field("endpoint", "is missing")),
    };
    let proto::Endpoint { address, health_check_config, hostname, additional_addresses, observability_name } = endpoint;
    harmless!(observability_name);
    let proto::endpoint::HealthCheckConfig { port_value, hostname: check_hostname, address: check_address, disable_active_health_check } =
        health_check_config.unwrap_or_default();
    let at = match place(address).within("endpoint.address")? {
        Place::Socket(socket) => EndpointAddress::Fixed(Address::Socket(socket)),
        Place::Pipe(path) => EndpointAddress::Fixed(Address::Pipe(path.into())),
        Place::Name(name, port) => EndpointAddress::Name(name.into(), port),
    };
    let checked_at =
        checked_at(&at, check_address, port_value, check_hostname, disable_active_health_check).within("endpoint.health_check_config")?;
    let addresses = addresses(&at, additional_addresses).within("endpoint")?;
    if load_balancing_weight == Some(0) {
        return Err(Invalid::field("load_balancing_weight", "must be at least 1"));
    }
    let flags = match core::HealthStatus::try_from(health_status) {
        Ok(core::HealthStatus::Unknown | core::HealthStatus::Healthy) => 0,
        Ok(core::HealthStatus::Unhealthy) => FAILED_EDS,
        Ok(core::HealthStatus::Draining) => FAILED_EDS | DRAINING_EDS,
        Ok(core::HealthStatus::Timeout) => FAILED_EDS | TIMEOUT_EDS,
        Ok(core::HealthStatus::Degraded) => DEGRADED_EDS,
        Err(_) => return Err(Invalid::field("health_status", format!("{health_status} is not known"))),
    };
    Ok(AssignedEndpoint {
        at,
        addresses,
        hostname: shared(hostname),
        weight: load_balancing_weight.unwrap_or(1),
        flags,
        checked_at,
        workload: metadata_text(metadata.as_ref(), "istio", "workload").map(Into::into),
        labels: subset::labels(metadata.as_ref()),
        hash_key: metadata_text(metadata.as_ref(), crate::subset::NAMESPACE, "hash_key").unwrap_or_default().into(),
        transport_match: transport_match(metadata.as_ref()),
    })
}

/// All addresses of an endpoint that has several, as they are given.
fn addresses(at: &EndpointAddress, more: Vec<proto::endpoint::AdditionalAddress>) -> Result<Vec<SocketAddr>> {
    if more.is_empty() {
        return Ok(Vec::new());
    }
    let EndpointAddress::Fixed(Address::Socket(first)) = at else {
        return Err(Invalid::field("additional_addresses", "need a first address that is an IP address"));
    };
    let mut all = vec![*first];
    for (index, proto::endpoint::AdditionalAddress { address }) in more.into_iter().enumerate() {
        let Place::Socket(socket) = place(address).within("address").within_item("additional_addresses", index)? else {
            return Err(Invalid::new("must be an IP address")).within_item("additional_addresses", index);
        };
        all.push(socket);
    }
    Ok(all)
}

/// Where the endpoint is checked; `None` when like a request.
fn checked_at(
    at: &EndpointAddress,
    address: Option<core::Address>,
    port_value: u32,
    hostname: String,
    disabled: bool,
) -> Result<Option<Arc<CheckedAt>>> {
    let address = match (address, at) {
        (Some(address), _) => match place(Some(address)).within("address")? {
            Place::Socket(socket) => Some(Address::Socket(socket)),
            Place::Pipe(path) => Some(Address::Pipe(path.into())),
            Place::Name(..) => return Err(Invalid::field("address", "must be an IP address")),
        },
        (None, _) if port_value == 0 => None,
        (None, EndpointAddress::Fixed(Address::Socket(socket))) => {
            Some(Address::Socket(SocketAddr::new(socket.ip(), port(port_value).within("port_value")?)))
        }
        (None, _) => return Err(Invalid::field("port_value", "needs an endpoint with an IP address")),
    };
    let checked_at = CheckedAt { address, hostname: shared(hostname), disabled };
    Ok((checked_at != CheckedAt::default()).then(|| Arc::new(checked_at)))
}

/// A member as it should be; [`host`] finds or makes the live one.
pub(crate) struct Member {
    pub(crate) address: Address,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) hostname: Arc<str>,
    pub(crate) weight: u32,
    pub(crate) locality: Locality,
    pub(crate) transport: u32,
    pub(crate) workload: Option<Arc<str>>,
    pub(crate) labels: Option<Arc<Labels>>,
    pub(crate) hash_key: Arc<str>,
    pub(crate) flags: u32,
    pub(crate) checked_at: Option<Arc<CheckedAt>>,
    /// What a new host starts with where the cluster has active health checks.
    pub(crate) unchecked: Option<u32>,
    /// It is the same host wherever it is.
    pub(crate) moves: bool,
}

/// The host that lives at the member's address already, if nothing fixed about it changed; else a new one. That takes its
/// place, so that load, health and ejection go on, unless it is to be checked elsewhere.
fn host(member: Member, living: &HashMap<&Address, &Arc<Host>>) -> Arc<Host> {
    let Member { address, addresses, hostname, weight, locality, transport, workload, labels: _, hash_key, .. } = member;
    let Member { flags, checked_at, unchecked, moves, .. } = member;
    let unchecked = unchecked.filter(|_| !checked_at.as_ref().is_some_and(|c| c.disabled));
    let only = || living.values().next().filter(|_| moves && living.len() == 1);
    let before = living.get(&address).or_else(only).copied();
    let same = |h: &Host| {
        h.address == address
            && h.addresses == addresses
            && h.hostname == hostname
            && h.hash_key == hash_key
            && h.locality == locality
            && h.transport == transport
            && h.workload == workload
            && h.checked_at == checked_at
    };
    let host = match before {
        Some(host) if same(host) => Arc::clone(host),
        _ => {
            let before = before.filter(|h| unchecked.is_none() || is_checked_alike(h.checked_at.as_deref(), checked_at.as_deref()));
            let mut host = match before {
                Some(before) => Host::in_place_of(before, address),
                None => Host::new(address),
            };
            host.addresses = addresses;
            host.hostname = hostname;
            host.hash_key = hash_key;
            host.locality = locality;
            host.transport = transport;
            host.workload = workload;
            host.checked_at = checked_at;
            if before.is_none() {
                // Nobody is sent there before its first check passed.
                host.set_flag(unchecked.unwrap_or(0), true);
            }
            Arc::new(host)
        }
    };
    if unchecked.is_none() {
        host.set_flag(FAILED_ACTIVE_HC | DEGRADED_ACTIVE_HC | PENDING_ACTIVE_HC | EXCLUDED_VIA_IMMEDIATE_HC_FAIL, false);
    }
    host.set_flag(PENDING_REMOVAL, false);
    host.set_weight(weight);
    for flag in [FAILED_EDS, DEGRADED_EDS, DRAINING_EDS, TIMEOUT_EDS] {
        host.set_flag(flag, flags & flag != 0);
    }
    host
}

/// Whether what checks found out about one holds for the other.
fn is_checked_alike(before: Option<&CheckedAt>, now: Option<&CheckedAt>) -> bool {
    let at = |checked: Option<&CheckedAt>| checked.map(|c| (c.address.clone(), c.disabled)).unwrap_or_default();
    at(before) == at(now)
}

/// Collects members by priority and locality.
#[derive(Default)]
pub(crate) struct Members {
    priorities: Vec<Priority>,
    seen: std::collections::HashSet<Address, foldhash::fast::RandomState>,
    divided: bool,
    /// Where each stands, for what divides the cluster.
    placed: Vec<Placed>,
}

struct Placed {
    priority: usize,
    locality: usize,
    host: Arc<Host>,
    labels: Option<Arc<Labels>>,
}

impl Placed {
    fn labelled(&self) -> Labelled<'_> {
        Labelled { priority: self.priority, locality: self.locality, host: &self.host, labels: self.labels.as_deref() }
    }
}

impl Members {
    /// For a cluster that may be divided by what its members are labelled with.
    pub(crate) fn new(divided: bool) -> Self {
        Self { divided, ..Self::default() }
    }

    pub(crate) fn add(&mut self, priority: u32, locality: &Locality, weight: u32, member: Member, living: &HashMap<&Address, &Arc<Host>>) {
        // The same address twice would count one host's load double; the first one named wins.
        if !self.seen.insert(member.address.clone()) {
            return;
        }
        let labels = member.labels.clone();
        self.place(priority as usize, locality, weight, host(member, living), labels);
    }

    /// Keeps hosts that are gone from discovery and pass their active health checks (Envoy `updateDynamicHostList`).
    pub(crate) fn keep_healthy(&mut self, before: &HostSet) {
        for (level, priority) in before.priorities.iter().enumerate() {
            for LocalityHosts { locality, weight, hosts } in &priority.localities {
                for host in hosts {
                    let checked = !host.checked_at.as_ref().is_some_and(|c| c.disabled);
                    let passes = checked && host.flags() & (FAILED_ACTIVE_HC | FAILED_EDS) == 0;
                    if passes && self.seen.insert(host.address.clone()) {
                        host.set_flag(PENDING_REMOVAL, true);
                        self.place(level, locality, *weight, Arc::clone(host), before.labels_of(host).cloned());
                    }
                }
            }
        }
    }

    fn place(&mut self, level: usize, locality: &Locality, weight: u32, host: Arc<Host>, labels: Option<Arc<Labels>>) {
        if self.priorities.len() <= level {
            self.priorities.resize_with(level + 1, Priority::default);
        }
        let Some(priority) = self.priorities.get_mut(level) else { return };
        let at = match priority.localities.iter().position(|l| l.locality == *locality) {
            Some(at) => at,
            None => {
                priority.localities.push(LocalityHosts { locality: locality.clone(), weight, hosts: Vec::new() });
                priority.localities.len() - 1
            }
        };
        if let Some(entry) = priority.localities.get_mut(at) {
            entry.hosts.push(Arc::clone(&host));
        }
        if self.divided || labels.is_some() {
            self.placed.push(Placed { priority: level, locality: at, host, labels });
        }
    }

    pub(crate) fn build(mut self, policy: AssignmentPolicy, subsets: Option<&SubsetSettings>) -> HostSet {
        for priority in &mut self.priorities {
            priority.localities.iter_mut().for_each(|l| l.hosts.shrink_to_fit());
            priority.localities.shrink_to_fit();
        }
        let subsets = subsets.map(|s| Box::new(Subsets::new(s, &self.priorities, self.placed.iter().map(Placed::labelled))));
        let labels = self.placed.into_iter().filter_map(|placed| Some((placed.host, placed.labels?)));
        let mut set = HostSet::new(self.priorities);
        set.overprovisioning_percent = policy.overprovisioning_percent;
        set.weighted_priority_health = policy.weighted_priority_health;
        set.dropped_per_million = policy.dropped_per_million;
        set.subsets = subsets;
        set.set_labels(labels);
        set
    }
}
