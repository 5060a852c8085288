//! Parts of route tables that are the same in many places, kept once: thousands of virtual hosts then share what stays in the
//! processor's caches, where a copy each would be fetched from memory for every request to another host.
use std::collections::HashMap;
use std::sync::Arc;

use lateen_proto::envoy::config::route::v3::{self as proto, route, route_action};
use prost::Message;

use crate::ClusterId;
use crate::route::{Action, ClusterChoice, HostSettings, NamedCluster, RetryPolicy, Route, RouteMatch};

/// The parts of one resource.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) retries: Seen<RetryPolicy>,
    pub(crate) matches: Seen<RouteMatch>,
    pub(crate) routes: Seen<Route>,
    pub(crate) hosts: Seen<HostSettings>,
}

/// What was compiled, by its message as it was sent.
pub(crate) struct Seen<T>(HashMap<Vec<u8>, Arc<T>, foldhash::fast::RandomState>);

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

/// A message that was not seen before.
pub(crate) struct Unseen(Vec<u8>);

impl<T> Seen<T> {
    /// What such a message was compiled to, or what to keep it by.
    pub(crate) fn get(&self, sent: &impl Message) -> Result<Arc<T>, Unseen> {
        let sent = sent.encode_to_vec();
        self.0.get(&sent).cloned().ok_or(Unseen(sent))
    }

    pub(crate) fn keep(&mut self, key: Unseen, compiled: T) -> Arc<T> {
        Arc::clone(self.0.entry(key.0).or_insert_with(|| Arc::new(compiled)))
    }
}

/// Whether an equal route elsewhere may be the same one. Settings of filters may hold something of their own, like the
/// tokens of a local rate limit.
pub(crate) fn is_shareable(route: &proto::Route) -> bool {
    let weighted = match &route.action {
        Some(route::Action::Route(action)) => match &action.cluster_specifier {
            Some(route_action::ClusterSpecifier::WeightedClusters(weighted)) => weighted.clusters.as_slice(),
            _ => &[],
        },
        _ => &[],
    };
    route.typed_per_filter_config.is_empty() && weighted.iter().all(|cluster| cluster.typed_per_filter_config.is_empty())
}

/// The clusters that a route goes to.
pub(crate) fn clusters(route: &Route) -> Vec<ClusterId> {
    let Action::Forward(forward) = &route.action else { return Vec::new() };
    let (one, several) = match &forward.cluster {
        ClusterChoice::One(id) => (Some(*id), [].as_slice()),
        ClusterChoice::Weighted(weighted) => (None, weighted.entries.as_slice()),
        ClusterChoice::Header(_) => (None, [].as_slice()),
    };
    let named = several.iter().map(|entry| &entry.cluster).chain(forward.mirrors.iter().map(|mirror| &mirror.cluster));
    let fixed = named.filter_map(|cluster| match cluster {
        NamedCluster::Fixed(id) => Some(*id),
        NamedCluster::Header(_) => None,
    });
    one.into_iter().chain(fixed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::route_table;

    #[test]
    fn equal_routes_of_a_table_are_one() {
        let limit = "typed_per_filter_config: {l: {'@type': type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: l, token_bucket: {max_tokens: 1, fill_interval: 1s}}}";
        let host = |name: &str, cluster: &str, more: &str| {
            format!(
                "{{name: {name}, domains: [{name}], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}, retry_policy: {{retry_on: 5xx}}}}, {more}}}]}}"
            )
        };
        let hosts = [host("a", "x", ""), host("b", "x", ""), host("c", "y", ""), host("d", "x", limit), host("e", "x", limit)];
        let table = route_table(&format!("{{name: r, virtual_hosts: [{}]}}", hosts.join(", ")));
        let route = |index: usize| &table.virtual_hosts[index].routes[0];
        assert!(Arc::ptr_eq(route(0), route(1)));
        assert!(!Arc::ptr_eq(route(0), route(2)));
        assert!(Arc::ptr_eq(&route(0).matches, &route(2).matches));
        // A bucket each.
        assert!(!Arc::ptr_eq(route(3), route(4)));
    }

    #[test]
    fn what_virtual_hosts_say_alike_is_kept_once() {
        let limit = "typed_per_filter_config: {l: {'@type': type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: l, token_bucket: {max_tokens: 1, fill_interval: 1s}}}";
        let host = |name: &str, more: &str| format!("{{name: {name}, domains: [{name}], {more}}}");
        let counted = "include_request_attempt_count: true, retry_policy: {retry_on: 5xx}";
        let hosts = [host("a", counted), host("b", counted), host("c", "require_tls: ALL"), host("d", limit), host("e", limit)];
        let table = route_table(&format!("{{name: r, virtual_hosts: [{}]}}", hosts.join(", ")));
        let settings = |index: usize| &table.virtual_hosts[index].settings;
        assert!(Arc::ptr_eq(settings(0), settings(1)));
        assert!(settings(0).include_request_attempt_count && settings(0).retry.is_some());
        assert!(!Arc::ptr_eq(settings(0), settings(2)));
        assert!(!Arc::ptr_eq(settings(3), settings(4)), "a bucket each");
        // What is left of a host for itself lies in one line of a cache.
        assert!(size_of::<crate::route::VirtualHost>() <= 40);
    }
}
