//! How clusters balance, in either form that it is said in.
use super::refusals::refused_cluster;
use super::*;

#[test]
fn what_cannot_be_balanced_as_asked_is_refused_by_its_field() {
    let refused = |fields: &str| refused_cluster(&format!("{{name: c, type: STATIC, {fields}}}"));
    let policy = |name: &str, fields: &str| {
        refused(&format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.load_balancing_policies.{name}, {fields}}}}}}}]}}"
        ))
    };
    let subset = |fields: &str| refused(&format!("lb_subset_config: {{subset_selectors: [{{keys: [a, b], {fields}}}]}}"));
    for (reason, part) in [
        (subset("fallback_policy: KEYS_SUBSET"), "subset_selectors[0].fallback_keys_subset: must be some"),
        (subset("fallback_policy: KEYS_SUBSET, fallback_keys_subset: [b, a]"), "must be some of the keys"),
        (subset("fallback_policy: KEYS_SUBSET, fallback_keys_subset: [c]"), "must be some of the keys"),
        (subset("fallback_policy: ANY_ENDPOINT, fallback_keys_subset: [a]"), "only for the fallback policy KEYS_SUBSET"),
        (
            refused("round_robin_lb_config: {slow_start_config: {slow_start_window: 5s, aggression: {default_value: 0}}}"),
            "slow_start_config.aggression",
        ),
        (
            refused("lb_policy: RING_HASH, common_lb_config: {consistent_hashing_lb_config: {hash_balance_factor: 99}}"),
            "consistent_hashing_lb_config.hash_balance_factor",
        ),
        (refused("circuit_breakers: {per_host_thresholds: [{max_requests: 1}]}"), "per_host_thresholds[0]: only max_connections"),
        (policy("peak_ewma.v3.PeakEwma", "decay_time: 0s"), "decay_time: must be above zero"),
        (policy("subset.v3.Subset", "subset_selectors: [{keys: [a]}]"), "subset_lb_policy: is missing"),
    ] {
        assert!(reason.contains(part), "{reason:?} does not name {part:?}");
    }
}

#[test]
fn zones_slow_start_and_hashing_are_taken_from_either_form() {
    let settings = |fields: &str| {
        let mut compiler = Compiler::new();
        accepted(compiler.apply(
            CLUSTER,
            vec![update::<ClusterProto>(&format!("{{name: c, type: STATIC, {fields}}}"))],
            &[],
            Instant::now(),
        ));
        compiler.snapshot().cluster_named("c").unwrap().1.config.balance.clone()
    };
    let typed = |name: &str, fields: &str| {
        settings(&format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.load_balancing_policies.{name}, {fields}}}}}}}]}}"
        ))
    };
    let slow = "slow_start_config: {slow_start_window: 60s, aggression: {default_value: 2}, min_weight_percent: {value: 20}}";
    let old = settings(&format!(
        "round_robin_lb_config: {{{slow}}}, common_lb_config: {{zone_aware_lb_config: {{routing_enabled: {{value: 50.9}}, min_cluster_size: 3}}}}"
    ));
    let new = typed(
        "round_robin.v3.RoundRobin",
        &format!("{slow}, locality_lb_config: {{zone_aware_lb_config: {{routing_enabled: {{value: 50}}, min_cluster_size: 3}}}}"),
    );
    assert_eq!(old, new);
    assert_eq!((old.slow_start.unwrap().window_millis, old.zone_aware.routing_enabled, old.zone_aware.min_cluster_size), (60_000, 50, 3));
    let hashing = "consistent_hashing_lb_config: {use_hostname_for_hashing: true, hash_balance_factor: 150}";
    let old = settings(&format!("lb_policy: MAGLEV, common_lb_config: {{{hashing}}}"));
    assert_eq!(old, typed("maglev.v3.Maglev", hashing));
    assert_eq!(old.hashing.balance_factor, Some(150));
    let subset = |name: &str| {
        typed(
            "subset.v3.Subset",
            &format!(
                "subset_selectors: [{{keys: [a]}}], subset_lb_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.{name}}}}}}}]}}"
            ),
        )
    };
    assert_eq!(subset("random.v3.Random"), settings("lb_policy: RANDOM, lb_subset_config: {subset_selectors: [{keys: [a]}]}"));
    assert!(settings("lb_subset_config: {fallback_policy: ANY_ENDPOINT}").subsets.is_none(), "nothing divides the cluster");
}
