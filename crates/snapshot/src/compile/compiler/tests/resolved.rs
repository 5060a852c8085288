//! Clusters whose hosts are names.
use std::time::Duration;

use lateen_balance::host::{FAILED_ACTIVE_HC, FAILED_OUTLIER};

use super::*;
use crate::cluster::Discovery;

fn ips(texts: &[&str]) -> Vec<std::net::IpAddr> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

const BY_NAME: &str = "{name: d, type: STRICT_DNS, load_assignment: {cluster_name: d, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.example, port_value: 7}}}}]}]}}";

#[test]
fn dns_clusters_wait_for_their_first_answer_and_keep_the_last() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(BY_NAME)], &[], now));
    assert!(compiler.snapshot().cluster_named("d").is_none());
    compiler.set_resolved("d", "a.example", 7, ips(&["10.0.0.1", "10.0.0.2"]), now);
    let first = compiler.snapshot();
    assert_eq!(first.cluster_named("d").unwrap().1.hosts.len(), 2);
    compiler.set_resolved("d", "a.example", 7, ips(&["10.0.0.2", "10.0.0.1"]), now);
    compiler.set_unresolved("d", "a.example", 7, now);
    assert!(Arc::ptr_eq(&first, &compiler.snapshot()), "neither another order nor a failure changes anything");
    compiler.set_resolved("d", "a.example", 7, Vec::new(), now);
    assert!(compiler.snapshot().cluster_named("d").unwrap().1.hosts.is_empty(), "the name has no addresses any more");
}

#[test]
fn a_name_that_cannot_be_looked_up_holds_nobody_up() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(BY_NAME)], &[], now));
    compiler.set_unresolved("d", "a.example", 7, now);
    assert!(compiler.snapshot().cluster_named("d").unwrap().1.hosts.is_empty());
}

#[test]
fn a_cluster_that_was_removed_and_comes_back_has_no_answer() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let name = Arc::from("a.example");
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(BY_NAME)], &[], now));
    assert!(!compiler.has_answer("d", &name, 7));
    compiler.set_unresolved("d", &name, 7, now);
    assert!(compiler.has_answer("d", &name, 7));
    accepted(compiler.apply(CLUSTER, Vec::new(), &["d".to_owned()], now));
    // Two lookups were under way.
    compiler.set_resolved("d", &name, 7, ips(&["10.0.0.1"]), now);
    compiler.set_unresolved("d", &name, 7, now);
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(BY_NAME)], &[], now));
    assert!(!compiler.has_answer("d", &name, 7) && compiler.snapshot().cluster_named("d").is_none());
}

#[test]
fn a_logical_dns_cluster_has_one_host_that_stays_while_its_name_has_its_address() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&BY_NAME.replace("STRICT_DNS", "LOGICAL_DNS"))], &[], now));
    let mut resolve = |texts: &[&str]| {
        compiler.set_resolved("d", "a.example", 7, ips(texts), now);
        let snapshot = compiler.snapshot();
        let hosts: Vec<_> = snapshot.cluster_named("d").unwrap().1.hosts.hosts().cloned().collect();
        assert_eq!(hosts.len(), 1);
        let all: Vec<String> = hosts[0].addresses.iter().map(|a| a.ip().to_string()).collect();
        (hosts[0].address.to_string(), all.join(" "))
    };
    assert_eq!(resolve(&["10.0.0.2", "10.0.0.1", "fd00::1"]), ("10.0.0.2:7".to_owned(), "10.0.0.2 fd00::1 10.0.0.1".to_owned()));
    assert_eq!(resolve(&["10.0.0.1", "10.0.0.2"]).0, "10.0.0.2:7");
    assert_eq!(resolve(&[]).0, "10.0.0.2:7", "the last address stays when the name has none");
    assert_eq!(resolve(&["10.0.0.3"]), ("10.0.0.3:7".to_owned(), String::new()));
}

#[test]
fn the_host_of_a_logical_dns_cluster_goes_on_at_another_address() {
    let logical = "{name: d, type: LOGICAL_DNS, health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, tcp_health_check: {}}], \
                   load_assignment: {cluster_name: d, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.example, port_value: 7}}}}]}]}}";
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(logical)], &[], now));
    compiler.set_resolved("d", "a.example", 7, ips(&["10.0.0.1"]), now);
    let first = hosts(&mut compiler, "d").hosts().next().cloned().unwrap();
    assert_eq!(first.flags(), FAILED_ACTIVE_HC);
    first.set_flag(FAILED_ACTIVE_HC, false);
    first.set_flag(FAILED_OUTLIER, true);
    compiler.set_resolved("d", "a.example", 7, ips(&["10.0.0.2"]), now);
    let second = hosts(&mut compiler, "d").hosts().next().cloned().unwrap();
    assert_eq!((second.address.to_string().as_str(), second.flags()), ("10.0.0.2:7", FAILED_OUTLIER));
}

#[test]
fn names_are_resolved_as_the_cluster_says() {
    use crate::dns::{Backoff, DnsFamily, DnsResolver};
    let settings = |fields: &str| {
        let mut compiler = Compiler::new();
        let kind = if fields.contains("cluster_type") { "" } else { "type: STRICT_DNS, " };
        let text = BY_NAME.replace("type: STRICT_DNS, ", &format!("{kind}{fields}, "));
        accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], Instant::now()));
        let mut found = None;
        compiler.each_cluster(|c| match &c.discovery {
            Discovery::StrictDns(dns) => found = Some(("strict", dns.settings.as_ref().clone())),
            Discovery::LogicalDns(dns) => found = Some(("logical", dns.settings.as_ref().clone())),
            _ => {}
        });
        found.unwrap()
    };
    let second = Duration::from_secs(1);
    let (_, old) = settings(
        "dns_refresh_rate: 3s, dns_jitter: 1s, respect_dns_ttl: true, dns_lookup_family: V4_PREFERRED, dns_failure_refresh_rate: {base_interval: 2s}, \
         dns_resolution_config: {resolvers: [{socket_address: {address: 10.0.0.1, port_value: 5353}}], dns_resolver_options: {use_tcp_for_dns_lookups: true}}",
    );
    assert_eq!((old.refresh, old.jitter, old.respect_ttl, old.family), (3 * second, second, true, DnsFamily::V4Preferred));
    assert_eq!(old.failure, Some(Backoff { base: 2 * second, max: 20 * second }));
    let Some(DnsResolver::Stub(stub)) = old.resolver else { panic!("no resolver of its own") };
    assert_eq!((stub.servers, stub.tcp, stub.no_search), (vec!["10.0.0.1:5353".parse().unwrap()], true, false));
    let (kind, new) = settings(
        "cluster_type: {name: envoy.clusters.dns, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, \
         all_addresses_in_single_endpoint: true, respect_dns_ttl: true, dns_min_refresh_rate: 10s, dns_lookup_family: ALL, typed_dns_resolver_config: {name: x, typed_config: \
         {'@type': type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, query_tries: 2, query_timeout_seconds: 1, rotate_nameservers: true}}}}",
    );
    assert_eq!((kind, new.min_refresh, new.family, new.refresh), ("logical", 10 * second, DnsFamily::All, 5 * second));
    let Some(DnsResolver::Stub(stub)) = new.resolver else { panic!("no resolver of its own") };
    assert_eq!((stub.tries, stub.timeout, stub.rotate, stub.servers), (2, second, true, vec![]));
    assert_eq!(settings("dns_jitter: 0s").1.resolver, None, "the bootstrap's");
}
