//! Chains that carry bytes: which cluster (or clusters) a TCP or TLS connection goes to.
use std::sync::Arc;

use lateen_core::{Labels, selects};
use lateen_model::kinds::destination_rule::SimpleLb;
use lateen_model::kinds::virtual_service::{L4MatchAttributes, RouteDestination, TlsMatchAttributes};

use super::filters::{self, Class};
use crate::names;
use crate::provenance::Provenance;
use crate::route::Lookup;
use crate::route::action::cluster_of;
use crate::route::matching::{Caller, in_namespace};
use crate::view::ProxyView;
use crate::wire::{self, listener_v3, tcp_v3, type_v3};
use crate::world::World;
use crate::world::destination_rules::Rule;

/// Whether a TCP rule's block can apply to the caller; subnets are left for the connection itself.
pub(crate) fn l4_applies(block: &L4MatchAttributes, caller: Caller<'_>) -> bool {
    applies(block.port, &block.gateways, &block.source_labels, block.source_namespace.as_deref(), caller)
}

/// Whether a TLS rule's block can apply to the caller; SNI and subnets are left for the connection itself.
pub(crate) fn tls_applies(block: &TlsMatchAttributes, caller: Caller<'_>) -> bool {
    applies(block.port, &block.gateways, &block.source_labels, block.source_namespace.as_deref(), caller)
}

fn applies(port: Option<u16>, gateways: &[String], labels: &Labels, namespace: Option<&str>, caller: Caller<'_>) -> bool {
    port.is_none_or(|port| port == 0 || port == caller.port)
        && (gateways.is_empty() || gateways.iter().any(|gateway| gateway == caller.gateway))
        && selects(labels, caller.labels)
        && in_namespace(namespace, caller.namespace)
}

/// The filters of a chain to a rule's destinations.
pub(crate) fn to_destinations(
    world: &World,
    view: &ProxyView,
    class: Class,
    rule: &Provenance,
    routes: &[RouteDestination],
    listener_port: u16,
) -> Vec<listener_v3::Filter> {
    use tcp_v3::tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight};
    let lookup = Lookup { world, namespace: &view.namespace };
    let Some(first) = routes.first() else { return filters::black_hole_chain(view, class) };
    let policy = world.service(&view.namespace, &first.destination.host).and_then(|service| world.rule(&view.namespace, service));
    if let [only] = routes {
        let cluster = cluster_of(&only.destination, &lookup, listener_port);
        let subset = only.destination.subset.as_deref().unwrap_or_default();
        return to_cluster(world, view, class, &cluster, subset, policy);
    }
    let clusters: Vec<ClusterWeight> = routes
        .iter()
        .filter(|to| to.weight > 0)
        .map(|to| ClusterWeight { name: cluster_of(&to.destination, &lookup, listener_port), weight: to.weight, ..Default::default() })
        .collect();
    if clusters.is_empty() {
        return filters::black_hole_chain(view, class);
    }
    let proxy = tcp_v3::TcpProxy {
        stat_prefix: format!("{}.{}", rule.name, rule.namespace),
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters })),
        ..Default::default()
    };
    filters::tcp_chain(&world.mesh, view, class, with_policy(proxy, "", policy))
}

/// The filters of a chain to one cluster.
pub(crate) fn to_cluster(
    world: &World,
    view: &ProxyView,
    class: Class,
    cluster: &str,
    subset: &str,
    rule: Option<&Arc<Rule>>,
) -> Vec<listener_v3::Filter> {
    filters::tcp_chain(&world.mesh, view, class, with_policy(filters::tcp_proxy_to(cluster), subset, rule))
}

/// The settings of a DestinationRule that take effect where the connection is accepted.
fn with_policy(mut proxy: tcp_v3::TcpProxy, subset: &str, rule: Option<&Arc<Rule>>) -> tcp_v3::TcpProxy {
    let Some(policy) = rule.and_then(|rule| rule.spec.traffic_policy.as_ref()) else { return proxy };
    if let Some(tcp) = policy.connection_pool.as_ref().and_then(|pool| pool.tcp.as_ref()) {
        proxy.idle_timeout = tcp.idle_timeout.map(wire::duration);
        proxy.max_downstream_connection_duration = tcp.max_connection_duration.map(wire::duration);
    }
    if hashes_source_ip(rule, subset) {
        let source = type_v3::hash_policy::PolicySpecifier::SourceIp(type_v3::hash_policy::SourceIp::default());
        proxy.hash_policy.push(type_v3::HashPolicy { policy_specifier: Some(source) });
    }
    proxy
}

/// Of all hashes, only the caller's address exists without requests.
fn hashes_source_ip(rule: Option<&Arc<Rule>>, subset: &str) -> bool {
    let Some(rule) = rule else { return false };
    let own = rule.spec.subsets.iter().find(|known| known.name == subset).and_then(|known| known.traffic_policy.as_ref());
    let balancer = own
        .and_then(|policy| policy.load_balancer.as_ref())
        .or_else(|| rule.spec.traffic_policy.as_ref().and_then(|policy| policy.load_balancer.as_ref()));
    balancer.is_some_and(|lb| {
        lb.simple.unwrap_or_default() == SimpleLb::default()
            && lb.consistent_hash.as_ref().is_some_and(|hash| hash.use_source_ip == Some(true))
    })
}

/// The chain of a captured connection that nobody declared.
pub(crate) fn catch_all(world: &World, view: &ProxyView) -> Vec<listener_v3::Filter> {
    let cluster = match world.mesh.outbound {
        crate::world::mesh::OutboundPolicy::AllowAny => names::PASSTHROUGH,
        crate::world::mesh::OutboundPolicy::RegistryOnly => names::BLACK_HOLE,
    };
    filters::tcp_chain(&world.mesh, view, Class::SidecarOutbound, filters::tcp_proxy_to(cluster))
}
