//! Zone-aware routing: traffic stays in its own zone as far as the zone can carry it (Envoy's documentation,
//! "zone aware routing").
use std::sync::Arc;

use crate::host::{Host, HostSet, Locality, LocalityHosts, Priority};

/// Envoy `ZoneAwareLbConfig`. Its defaults are in force wherever there is a local cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneAware {
    /// Percent of the requests.
    pub routing_enabled: u32,
    /// Healthy hosts that a cluster needs.
    pub min_cluster_size: u64,
    /// No host is chosen where health would be ignored.
    pub fail_traffic_on_panic: bool,
    /// Everything stays in the own zone while it has a host that serves.
    pub force_locality_direct_routing: bool,
    /// Everything stays in the own zone while it has so many healthy hosts (`force_local_zone`).
    pub force_local_zone_min_size: Option<u32>,
    /// Zones are compared by the weight of their hosts, not by their number (`HEALTHY_HOSTS_WEIGHT`).
    pub by_weight: bool,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self {
            routing_enabled: 100,
            min_cluster_size: 6,
            fail_traffic_on_panic: false,
            force_locality_direct_routing: false,
            force_local_zone_min_size: None,
            by_weight: false,
        }
    }
}

/// The cluster that this process itself is a member of, and where this process stands.
#[derive(Debug)]
pub struct LocalCluster {
    pub hosts: Arc<HostSet>,
    pub locality: Locality,
}

/// How requests go to zones; numbers are those of the cluster's zones in [`Zoning::order`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Routing {
    /// To the own zone, which is the first.
    Direct,
    /// So many of ten thousand to the own zone, the others in proportion to what each zone has left: cumulative.
    Residual { local: u64, capacity: Vec<u64> },
}

/// Why zones play no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoZones {
    /// Fewer than two on one side.
    One,
    /// The local cluster has no host in our own zone.
    LocalNotOk,
    TooSmall,
}

/// Where requests go, and the positions of localities in the order that the routing counts by: our own first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Zoning {
    pub(crate) routing: Routing,
    pub(crate) order: Vec<usize>,
}

/// Computes the routing among the localities of a cluster's first priority.
pub(crate) fn zoning(upstream: &Priority, local: &LocalCluster, zone: &ZoneAware) -> Result<Zoning, NoZones> {
    let ours = |l: &LocalityHosts| l.locality == local.locality;
    let locals = local.hosts.priorities.first().map_or(&[][..], |p| &p.localities);
    let forced = zone.force_locality_direct_routing || zone.force_local_zone_min_size.is_some();
    if upstream.localities.len() < 2 || (locals.len() < 2 && !forced) {
        return Err(NoZones::One);
    }
    if !locals.iter().any(|l| ours(l) && !l.hosts.is_empty()) {
        return Err(NoZones::LocalNotOk);
    }
    let healthy = |l: &LocalityHosts| l.hosts.iter().filter(|h| serves(h)).count() as u64;
    if upstream.localities.iter().map(healthy).sum::<u64>() < zone.min_cluster_size {
        return Err(NoZones::TooSmall);
    }
    let mut order: Vec<usize> = (0..upstream.localities.len()).collect();
    order.sort_by_key(|i| upstream.localities.get(*i).map(|l| (!ours(l), l.locality.clone())));
    let zones: Vec<&LocalityHosts> = order.iter().filter_map(|i| upstream.localities.get(*i)).collect();
    let shares = shares(&zones, locals, zone.by_weight);
    let own = zones.first().copied().filter(|l| ours(l));
    Ok(Zoning { routing: routing(own, &shares, zone), order })
}

fn routing(own: Option<&LocalityHosts>, shares: &[Shares], zone: &ZoneAware) -> Routing {
    let first = shares.first().copied().unwrap_or_default();
    if let Some(own) = own {
        let healthy = own.hosts.iter().filter(|h| serves(h)).count();
        let enough = zone.force_local_zone_min_size.is_some_and(|min| healthy >= min as usize);
        let direct = zone.force_locality_direct_routing && healthy > 0;
        if direct || enough || (first.upstream > 0 && first.upstream >= first.local) {
            return Routing::Direct;
        }
    }
    let local = match first.local {
        share @ 1.. if own.is_some() => first.upstream * 10_000 / share,
        _ => 0,
    };
    let mut sum = 0;
    let left = |(index, s): (usize, &Shares)| {
        if index > 0 || own.is_none() {
            sum += s.upstream.saturating_sub(s.local);
        }
        sum
    };
    let capacity = shares.iter().enumerate().map(left).collect();
    Routing::Residual { local, capacity }
}

/// Parts of ten thousand that a zone has of the callers and of the hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shares {
    local: u64,
    upstream: u64,
}

fn shares(zones: &[&LocalityHosts], locals: &[LocalityHosts], by_weight: bool) -> Vec<Shares> {
    let size = |l: &LocalityHosts| -> u64 {
        l.hosts.iter().filter(|h| serves(h)).map(|h| if by_weight { u64::from(h.weight()) } else { 1 }).sum()
    };
    let (callers, hosts) = (locals.iter().map(size).sum::<u64>(), zones.iter().map(|l| size(l)).sum::<u64>());
    let part = |some: u64, all: u64| (10_000 * some).checked_div(all).unwrap_or(0);
    let share = |zone: &&LocalityHosts| match size(zone) {
        // Nobody is sent there, whoever calls from there.
        0 => Shares::default(),
        some => {
            let here = locals.iter().find(|l| l.locality == zone.locality).map_or(0, size);
            Shares { local: part(here, callers), upstream: part(some, hosts) }
        }
    };
    zones.iter().map(share).collect()
}

fn serves(host: &Host) -> bool {
    host.is_healthy() && !host.is_degraded()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Address, FAILED_EDS};

    fn locality(zone: &str) -> Locality {
        Locality { zone: zone.into(), ..Locality::default() }
    }

    /// Zones with (healthy, unhealthy) hosts.
    fn set(zones: &[(&str, u16, u16)]) -> HostSet {
        let mut port = 0;
        let mut host = |up: bool| {
            port += 1;
            let host = Host::new(Address::Socket(([10, 0, 0, 1], port).into()));
            host.set_flag(FAILED_EDS, !up);
            Arc::new(host)
        };
        let localities = zones.iter().map(|(zone, up, down)| LocalityHosts {
            locality: locality(zone),
            weight: 0,
            hosts: (0..*up).map(|_| true).chain((0..*down).map(|_| false)).map(&mut host).collect(),
        });
        HostSet::new(vec![Priority { localities: localities.collect() }])
    }

    fn zoned(upstream: &[(&str, u16, u16)], local: &[(&str, u16, u16)], zone: ZoneAware) -> Result<Zoning, NoZones> {
        let local = LocalCluster { hosts: Arc::new(set(local)), locality: locality("a") };
        zoning(&set(upstream).priorities[0], &local, &zone)
    }

    #[test]
    fn a_zone_with_enough_hosts_keeps_its_traffic() {
        let all = ZoneAware::default();
        let zoning = zoned(&[("b", 4, 0), ("a", 4, 0)], &[("a", 1, 0), ("b", 1, 0)], all).unwrap();
        assert_eq!(zoning, Zoning { routing: Routing::Direct, order: vec![1, 0] });
        let zoning = zoned(&[("a", 1, 0), ("b", 9, 0)], &[("a", 1, 0), ("b", 1, 0)], all).unwrap();
        assert_eq!(zoning.routing, Routing::Residual { local: 2_000, capacity: vec![0, 4_000] });
        let forced = ZoneAware { force_locality_direct_routing: true, ..all };
        assert_eq!(zoned(&[("a", 1, 0), ("b", 9, 0)], &[("a", 1, 0)], forced).unwrap().routing, Routing::Direct);
        let two = ZoneAware { force_local_zone_min_size: Some(2), ..all };
        assert!(matches!(zoned(&[("a", 1, 0), ("b", 9, 0)], &[("a", 1, 0)], two).unwrap().routing, Routing::Residual { .. }));
    }

    #[test]
    fn residual_capacity_is_that_of_envoys_example() {
        // local 40 40 20 percent, upstream 25 50 25 percent.
        let zoning =
            zoned(&[("a", 5, 0), ("b", 10, 0), ("c", 5, 0)], &[("a", 4, 0), ("b", 4, 0), ("c", 2, 0)], ZoneAware::default()).unwrap();
        assert_eq!(zoning.routing, Routing::Residual { local: 6_250, capacity: vec![0, 1_000, 1_500] });
    }

    #[test]
    fn zones_play_no_part_in_small_clusters_or_without_callers_here() {
        let all = ZoneAware::default();
        assert_eq!(zoned(&[("a", 2, 0), ("b", 3, 0)], &[("a", 1, 0), ("b", 1, 0)], all), Err(NoZones::TooSmall));
        assert_eq!(zoned(&[("a", 2, 9), ("b", 3, 9)], &[("a", 1, 0), ("b", 1, 0)], all), Err(NoZones::TooSmall));
        assert_eq!(zoned(&[("a", 6, 0)], &[("a", 1, 0), ("b", 1, 0)], all), Err(NoZones::One));
        assert_eq!(zoned(&[("a", 6, 0), ("b", 6, 0)], &[("a", 1, 0)], all), Err(NoZones::One));
        assert_eq!(zoned(&[("a", 6, 0), ("b", 6, 0)], &[("b", 1, 0), ("c", 1, 0)], all), Err(NoZones::LocalNotOk));
    }

    #[test]
    fn a_zone_without_healthy_hosts_gets_nothing() {
        let zoning = zoned(&[("a", 0, 3), ("b", 6, 0)], &[("a", 1, 0), ("b", 1, 0)], ZoneAware::default()).unwrap();
        assert_eq!(zoning.routing, Routing::Residual { local: 0, capacity: vec![0, 5_000] });
    }
}
