//! The hosts of clusters: what they take from their endpoints and how they live on.
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use lateen_balance::host::{FAILED_ACTIVE_HC, FAILED_OUTLIER, PENDING_REMOVAL};
use lateen_balance::outlier::{self, Outcome};
use lateen_balance::{Balancer, Choice, Context, Locality};

use super::*;
use crate::cluster::Cluster;
use crate::explain::Call;

#[test]
fn hosts_and_breakers_live_on_through_updates() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1", "10.0.0.2"])], &[], now));
    let first = compiler.snapshot();
    let before = first.cluster_named("c").unwrap().1.clone();
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.2", "10.0.0.3"])], &[], now));
    let changed = EDS.replace("type: EDS", "type: EDS, connect_timeout: 1s, circuit_breakers: {thresholds: [{max_requests: 7}]}");
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&changed)], &[], now));
    let second = compiler.snapshot();
    let after = second.cluster_named("c").unwrap().1.clone();
    let at = |c: &Cluster, n: usize| c.hosts.hosts().nth(n).unwrap().clone();
    assert!(Arc::ptr_eq(&at(&before, 1), &at(&after, 0)));
    assert!(Arc::ptr_eq(&before.live, &after.live));
    assert_eq!((after.config.connect_timeout, after.live.breakers[0].requests.limit()), (Duration::from_secs(1), 7));
}

/// A request that began before an update may be what finds a host failing: whoever has chosen among the new members hears of it.
#[test]
fn a_failure_found_with_earlier_members_counts_with_the_members_of_now() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let detects = "type: EDS, outlier_detection: {consecutive_5xx: 1, max_ejection_percent: 100, detect_degraded_hosts: true}";
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&EDS.replace("type: EDS", detects))], &[], now));
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1", "10.0.0.2"])], &[], now));
    let earlier = hosts(&mut compiler, "c");
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1", "10.0.0.2", "10.0.0.3"])], &[], now));
    let other = EDS.replace("type: EDS", &format!("connect_timeout: 1s, {detects}"));
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&other)], &[], now));
    let cluster = compiler.snapshot().cluster_named("c").unwrap().1.clone();
    assert!(!Arc::ptr_eq(&earlier, &cluster.hosts));
    let mut balancer = Balancer::new(cluster.hosts.clone(), None, &cluster.config.balance, 1);
    let mut chosen = || {
        let mut all: Vec<String> = (0..60)
            .filter_map(|_| match balancer.choose(&Context::default()) {
                Choice::Host(host) => Some(host.address.to_string()),
                Choice::NoHealthyHost => None,
            })
            .collect();
        all.sort();
        all.dedup();
        all
    };
    assert_eq!(chosen(), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    let (settings, failing) = (cluster.config.outlier.as_ref().unwrap(), earlier.hosts().next().unwrap());
    assert!(outlier::report(settings, &earlier, failing, Outcome::Response(500), 0, 0).is_some());
    assert_eq!(chosen(), ["10.0.0.2:80", "10.0.0.3:80"]);
    let before = cluster.hosts.health_epoch();
    assert!(outlier::degraded(settings, &earlier, earlier.hosts().nth(1).unwrap(), 0));
    assert_ne!(cluster.hosts.health_epoch(), before);
}

#[test]
fn endpoints_choose_their_transport_socket_by_metadata() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let tls =
        "{name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: x}}";
    let text = EDS.replace("type: EDS", &format!("type: EDS, transport_socket_matches: [{{name: mtls, match: {{tlsMode: istio}}, transport_socket: {tls}}}, {{name: plain, match: {{}}, transport_socket: {{name: raw, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}}}]"));
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], now));
    let assignment = "{cluster_name: s, endpoints: [{lb_endpoints: [
        {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 1}}}, metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}}}},
        {endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 1}}}, health_status: UNHEALTHY}]}]}";
    accepted(compiler.apply(ENDPOINT, vec![update::<EndpointProto>(assignment)], &[], now));
    let snapshot = compiler.snapshot();
    let (_, cluster) = snapshot.cluster_named("c").unwrap();
    let hosts: Vec<_> = cluster.hosts.hosts().map(|h| (h.transport, h.is_healthy())).collect();
    assert_eq!(hosts, [(0, true), (1, false)]);
    assert!(cluster.config.transports[0].tls.is_some() && cluster.config.transports[1].tls.is_none());
}

#[test]
fn the_addresses_of_a_host_come_in_the_clusters_order() {
    let text = EDS.replace(
        "type: EDS",
        "type: EDS, upstream_connection_options: {happy_eyeballs_config: {first_address_family_version: V6, first_address_family_count: 2}}",
    );
    let address = |ip: &str| format!("{{address: {{socket_address: {{address: '{ip}', port_value: 1}}}}}}");
    let more = ["::1", "10.0.0.2", "::2", "::3"].map(address).join(", ");
    let endpoints = format!(
        "{{cluster_name: s, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: 1}}}}, additional_addresses: [{more}]}}}}]}}]}}"
    );
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], now));
    accepted(compiler.apply(ENDPOINT, vec![update::<EndpointProto>(&endpoints)], &[], now));
    let snapshot = compiler.snapshot();
    let (_, cluster) = snapshot.cluster_named("c").unwrap();
    let sorted: Vec<String> = cluster.hosts.hosts().flat_map(|h| &h.addresses).map(|a| a.ip().to_string()).collect();
    assert_eq!(sorted, ["::1", "::2", "10.0.0.1", "::3", "10.0.0.2"]);
}

#[test]
fn a_source_address_of_each_family_is_kept() {
    // A dual-stack sidecar that connected to its own pod without ::6 would be captured as a caller, for ever again.
    let text = "{name: c, type: STATIC, load_assignment: {cluster_name: c}, upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}, \
                extra_source_addresses: [{address: {address: '::6', port_value: 0}}]}}";
    let mut compiler = Compiler::new();
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(text)], &[], Instant::now()));
    let snapshot = compiler.snapshot();
    let sources: Vec<String> = snapshot.cluster_named("c").unwrap().1.config.bind.sources.iter().map(|s| s.address.to_string()).collect();
    assert_eq!(sources, ["127.0.0.6:0", "[::6]:0"]);
}

#[test]
fn a_host_that_discovery_takes_away_stays_while_it_passes_its_checks() {
    let checks = "health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, tcp_health_check: {}}]";
    let (both, one) = (endpoints(&["10.0.0.1", "10.0.0.2"]), endpoints(&["10.0.0.1"]));
    let now = Instant::now();
    let addresses = |compiler: &mut Compiler| {
        let snapshot = compiler.snapshot();
        let hosts = snapshot.cluster_named("c").unwrap().1.hosts.hosts().cloned().collect::<Vec<_>>();
        hosts.iter().map(|h| (h.address.to_string(), h.flags() & PENDING_REMOVAL != 0)).collect::<Vec<_>>()
    };
    let second = |compiler: &mut Compiler| compiler.snapshot().cluster_named("c").unwrap().1.hosts.hosts().nth(1).cloned().unwrap();
    let at = |ip: &str, leaving: bool| (format!("{ip}:80"), leaving);
    for (more, kept) in
        [(checks.to_owned(), true), (format!("{checks}, ignore_health_on_host_removal: true"), false), (String::new(), false)]
    {
        let mut compiler = Compiler::new();
        let text = EDS.replace("type: EDS", &format!("type: EDS{}{more}", if more.is_empty() { "" } else { ", " }));
        accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], now));
        accepted(compiler.apply(ENDPOINT, vec![both.clone()], &[], now));
        let host = second(&mut compiler);
        host.set_flag(FAILED_ACTIVE_HC, false);
        accepted(compiler.apply(ENDPOINT, vec![one.clone()], &[], now));
        let expected = if kept { vec![at("10.0.0.1", false), at("10.0.0.2", true)] } else { vec![at("10.0.0.1", false)] };
        assert_eq!(addresses(&mut compiler), expected, "{more}");
        if kept {
            accepted(compiler.apply(ENDPOINT, vec![both.clone()], &[], now));
            assert!(Arc::ptr_eq(&host, &second(&mut compiler)), "it is the same host again");
            assert_eq!(addresses(&mut compiler), [at("10.0.0.1", false), at("10.0.0.2", false)]);
            accepted(compiler.apply(ENDPOINT, vec![one.clone()], &[], now));
            host.set_flag(FAILED_ACTIVE_HC, true);
            compiler.drop_failed("c", now);
            assert_eq!(addresses(&mut compiler), [at("10.0.0.1", false)]);
        }
    }
}

#[test]
fn an_explanation_names_the_endpoints_of_the_subset_alone() {
    let endpoint = |port: u16, v: &str| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {port}}}}}}}, metadata: {{filter_metadata: {{envoy.lb: {{v: {v}}}}}}}}}"
        )
    };
    let cluster = format!(
        "{{name: c, type: STATIC, lb_subset_config: {{subset_selectors: [{{keys: [v]}}]}}, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}, {}]}}]}}}}",
        endpoint(1, "one"),
        endpoint(2, "two")
    );
    let route = "{name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [\
                 {match: {prefix: /two}, route: {cluster: c, metadata_match: {filter_metadata: {envoy.lb: {v: two}}}}}, {match: {prefix: /}, route: {cluster: c}}]}]}";
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&cluster)], &[], now));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&rds_listener())], &[], now));
    accepted(compiler.apply(ROUTE, vec![update::<RouteProto>(route)], &[], now));
    let snapshot = compiler.snapshot();
    let explain = |path: &str| snapshot.explain(&Call::http("10.1.1.1:80".parse().unwrap(), "any", path)).to_string();
    let two = explain("/two");
    assert!(two.contains("10.0.0.1:2") && !two.contains("10.0.0.1:1"), "{two}");
    let none = explain("/");
    assert!(none.contains("503") && !none.contains("10.0.0.1:"), "{none}");
}

#[test]
fn a_host_lives_on_when_its_weight_or_its_labels_change() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let cluster = EDS.replace("name: c", "name: c, lb_subset_config: {subset_selectors: [{keys: [v]}]}");
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&cluster)], &[], now));
    let endpoint = |weight: u32, v: &str| {
        update::<EndpointProto>(&format!(
            "{{cluster_name: s, policy: {{overprovisioning_factor: 200, weighted_priority_health: true}}, endpoints: [{{lb_endpoints: [\
             {{endpoint: {{address: {ANY_80}}}, load_balancing_weight: {weight}, metadata: {{filter_metadata: {{envoy.lb: {{v: '{v}'}}}}}}}}]}}]}}"
        ))
    };
    accepted(compiler.apply(ENDPOINT, vec![endpoint(1, "a")], &[], now));
    let before = hosts(&mut compiler, "c");
    assert_eq!((before.overprovisioning_percent, before.weighted_priority_health), (200, true), "discovered endpoints bring their policy");
    accepted(compiler.apply(ENDPOINT, vec![endpoint(7, "b")], &[], now));
    let after = hosts(&mut compiler, "c");
    assert!(Arc::ptr_eq(before.hosts().next().unwrap(), after.hosts().next().unwrap()));
    assert_eq!(after.hosts().next().unwrap().weight(), 7);
    let (before, after) = (before.subsets.as_ref().unwrap(), after.subsets.as_ref().unwrap());
    assert_eq!((before.len(), after.len(), after.beyond(before)), (1, 1, 1));
}

#[test]
fn a_host_that_is_described_anew_goes_on_unless_it_is_checked_elsewhere() {
    let checks = "health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, tcp_health_check: {}}]";
    let endpoint = |locality: &str, endpoint: &str, lb_endpoint: &str| {
        update::<EndpointProto>(&format!(
            "{{cluster_name: s, endpoints: [{{{locality} lb_endpoints: [{{endpoint: {{{endpoint} address: {ANY_80}}} {lb_endpoint}}}]}}]}}"
        ))
    };
    let workload = ", metadata: {filter_metadata: {istio: {workload: 'a;b;c;d;e'}}}";
    let hash_key = ", metadata: {filter_metadata: {envoy.lb: {hash_key: k}}}";
    let check = |what: &str| format!("health_check_config: {{{what}}},");
    for (next, goes_on) in [
        (endpoint("", "", workload), true),
        (endpoint("", "", hash_key), true),
        (endpoint("", "hostname: h,", ""), true),
        (endpoint("locality: {zone: z},", "", ""), true),
        (endpoint("", &check("hostname: h"), ""), true),
        (endpoint("", &check("port_value: 81"), ""), false),
    ] {
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        accepted(compiler.apply(
            CLUSTER,
            vec![update::<ClusterProto>(&EDS.replace("type: EDS", &format!("type: EDS, {checks}")))],
            &[],
            now,
        ));
        accepted(compiler.apply(ENDPOINT, vec![endpoint("", "", "")], &[], now));
        let only = |compiler: &mut Compiler| hosts(compiler, "c").hosts().next().cloned().unwrap();
        let before = only(&mut compiler);
        assert_eq!(before.flags(), FAILED_ACTIVE_HC);
        before.set_flag(FAILED_ACTIVE_HC, false);
        before.set_flag(FAILED_OUTLIER, true);
        before.counters.cx_total.store(7, Relaxed);
        let _request = before.begin_request();
        accepted(compiler.apply(ENDPOINT, vec![next.clone()], &[], now));
        let after = only(&mut compiler);
        assert!(!Arc::ptr_eq(&before, &after));
        let state = (after.flags(), after.counters.cx_total.load(Relaxed), after.active_requests());
        assert_eq!(state, if goes_on { (FAILED_OUTLIER, 7, 1) } else { (FAILED_ACTIVE_HC, 0, 0) }, "{next:?}");
    }
}

#[test]
fn only_endpoints_that_say_where_they_are_have_a_weight_together() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    for (locality, weight) in [("", 0), ("locality: {}, ", 3), ("locality: {zone: z}, ", 3)] {
        let text = format!(
            "{{cluster_name: s, endpoints: [{{{locality}load_balancing_weight: 3, lb_endpoints: [{{endpoint: {{address: {ANY_80}}}}}]}}]}}"
        );
        accepted(compiler.apply(ENDPOINT, vec![update::<EndpointProto>(&text)], &[], now));
        assert_eq!(hosts(&mut compiler, "c").priorities[0].localities[0].weight, weight, "{locality}");
    }
}

#[test]
fn a_share_of_requests_to_be_dropped_comes_with_endpoints_and_goes_with_them() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    let policy = |drops: &str| update::<EndpointProto>(&format!("{{cluster_name: s, policy: {{drop_overloads: [{drops}]}}}}"));
    accepted(compiler.apply(
        ENDPOINT,
        vec![policy("{category: x, drop_percentage: {numerator: 25, denominator: TEN_THOUSAND}}")],
        &[],
        now,
    ));
    assert_eq!(hosts(&mut compiler, "c").dropped_per_million, 2_500);
    for (drops, why) in [
        ("{category: x}, {category: y}", "policy.drop_overloads: has more than one category; add them up in one"),
        ("{drop_percentage: {numerator: 101}}", "policy.drop_overloads.drop_percentage: 101 of 100 is more than all"),
    ] {
        let rejected = compiler.apply(ENDPOINT, vec![policy(drops)], &[], now);
        assert_eq!(rejected.iter().map(|r| r.reason.as_str()).collect::<Vec<_>>(), [why]);
    }
    accepted(compiler.apply(ENDPOINT, vec![policy("")], &[], now));
    assert_eq!(hosts(&mut compiler, "c").dropped_per_million, 0);
}

#[test]
fn clusters_that_go_by_zones_follow_the_local_cluster_and_keep_their_hosts() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    compiler.set_local_cluster("c", Locality { zone: "z".into(), ..Locality::default() });
    let other = |name: &str, more: &str| {
        update::<ClusterProto>(&format!(
            "{{name: {name}, type: STATIC, {more} load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {ANY_80}}}}}]}}]}}}}"
        ))
    };
    accepted(compiler.apply(CLUSTER, vec![other("o", ""), other("h", "lb_policy: RING_HASH,"), update::<ClusterProto>(EDS)], &[], now));
    let local = |compiler: &mut Compiler, name: &str| compiler.snapshot().cluster_named(name).unwrap().1.local.clone();
    assert!(local(&mut compiler, "o").is_none(), "the local cluster waits for its endpoints");
    let before = hosts(&mut compiler, "o");
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], now));
    let first = local(&mut compiler, "o").unwrap();
    assert_eq!((&*first.locality.zone, first.hosts.len()), ("z", 1));
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1", "10.0.0.2"])], &[], now));
    assert_eq!(local(&mut compiler, "o").unwrap().hosts.len(), 2);
    assert!(Arc::ptr_eq(&before, &hosts(&mut compiler, "o")));
    assert!(local(&mut compiler, "h").is_none(), "hash policies know no zones");
}
