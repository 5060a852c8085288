//! What waits for what, and how long.
use std::time::Duration;

use super::*;
use crate::compile::source::SecretSource;
use crate::compile::warming::FETCH_TIMEOUT;
use crate::explain::{Call, Outcome};

#[test]
fn a_listener_serves_only_when_its_routes_clusters_and_endpoints_are_there() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    assert!(compiler.wanted().endpoints.contains("s"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&rds_listener())], &[], now));
    assert!(compiler.wanted().routes.contains("r"));
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
    // The routes name a cluster without endpoints.
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    assert!(!compiler.is_settled());
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], now));
    let snapshot = compiler.snapshot();
    assert!(compiler.is_settled());
    let explanation = snapshot.explain(&Call::http("10.1.1.1:80".parse().unwrap(), "any", "/"));
    assert_eq!((explanation.route(), explanation.cluster()), (Some("first"), Some("c")), "{explanation}");
}

#[test]
fn what_never_arrives_is_waited_for_only_so_long() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&rds_listener())], &[], now));
    compiler.settle(now + FETCH_TIMEOUT - Duration::from_millis(1));
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    assert_eq!(compiler.deadline(), Some(now + FETCH_TIMEOUT));
    compiler.settle(now + FETCH_TIMEOUT);
    let snapshot = compiler.snapshot();
    assert_eq!((snapshot.listeners.len(), snapshot.cluster_named("c").is_some()), (1, true));
    let explanation = snapshot.explain(&Call::http("10.1.1.1:80".parse().unwrap(), "any", "/"));
    assert!(matches!(explanation.outcome, Outcome::Answered { status: 404, .. }), "{explanation}");
}

#[test]
fn routes_to_a_new_cluster_wait_for_it_while_the_old_ones_serve() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let old = "{name: old, type: STATIC, load_assignment: {cluster_name: old, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.9, port_value: 1}}}}]}]}}";
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(old)], &[], now));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&rds_listener())], &[], now));
    accepted(compiler.apply(ROUTE, vec![routes("old")], &[], now));
    let call = Call::http("10.1.1.1:80".parse().unwrap(), "any", "/");
    assert_eq!(compiler.snapshot().explain(&call).cluster(), Some("old"));
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
    assert_eq!(compiler.snapshot().explain(&call).cluster(), Some("old"));
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], now));
    assert_eq!(compiler.snapshot().explain(&call).cluster(), Some("c"));
}

#[test]
fn endpoints_that_discovery_removes_stay_as_long_as_their_cluster_and_the_answer_ends_waiting() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let gone = ["s".to_owned()];
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    assert!(!compiler.is_settled());
    accepted(compiler.apply(ENDPOINT, Vec::new(), &gone, now));
    assert!(compiler.is_settled() && compiler.snapshot().cluster_named("c").is_some(), "that there are none is an answer");
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], now));
    accepted(compiler.apply(ENDPOINT, Vec::new(), &gone, now));
    assert_eq!(hosts(&mut compiler, "c").len(), 1);
    // The next one of that name asks anew.
    accepted(compiler.apply(CLUSTER, Vec::new(), &["c".to_owned()], now));
    accepted(compiler.apply(ENDPOINT, Vec::new(), &gone, now));
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    assert!(!compiler.is_settled() && compiler.snapshot().cluster_named("c").is_none());
}

/// The text with another `initial_fetch_timeout` in each `ads` source.
fn fetched_within(text: &str, timeout: &str) -> String {
    text.replace("{ads: {}}", &format!("{{ads: {{}}, initial_fetch_timeout: {timeout}}}"))
}

#[test]
fn each_source_says_how_long_it_is_waited_for() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let after = |seconds| now + Duration::from_secs(seconds);
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&fetched_within(EDS, "20s"))], &[], now));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&fetched_within(&rds_listener(), "2s"))], &[], now));
    assert_eq!(compiler.deadline(), Some(after(2)));
    compiler.settle(after(2));
    assert_eq!((compiler.snapshot().listeners.len(), compiler.deadline()), (1, Some(after(20))));
    compiler.settle(after(19));
    assert!(!compiler.is_settled() && compiler.snapshot().cluster_named("c").is_none());
    compiler.settle(after(20));
    assert!(compiler.is_settled() && compiler.snapshot().cluster_named("c").is_some());
}

#[test]
fn zero_is_to_wait_without_end() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&fetched_within(EDS, "0s"))], &[], now));
    let text = fetched_within(&rds_listener(), "0s");
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
    let much_later = now + Duration::from_secs(86_400);
    compiler.settle(much_later);
    assert!(!compiler.is_settled() && compiler.deadline().is_none());
    assert_eq!((compiler.snapshot().listeners.len(), compiler.snapshot().cluster_named("c").is_none()), (0, true));
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], much_later));
    accepted(compiler.apply(ROUTE, vec![routes("c")], &[], much_later));
    assert!(compiler.is_settled() && compiler.snapshot().listeners.len() == 1);
}

#[test]
fn a_certificate_is_waited_for_as_long_as_its_source_says() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let chain = certificates::MTLS.replacen("sds_config: {", "sds_config: {initial_fetch_timeout: 3s, ", 2);
    let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{chain}, filters: [{}]}}]}}", tcp("c"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
    assert_eq!(compiler.deadline(), Some(now + Duration::from_secs(3)));
    compiler.settle(now + Duration::from_secs(3));
    assert_eq!(compiler.snapshot().listeners.len(), 1);
}

#[test]
fn a_refused_first_answer_ends_the_wait_for_certificates() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let chain = certificates::MTLS.replacen("sds_config: {", "sds_config: {initial_fetch_timeout: 0s, ", 2);
    let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{chain}, filters: [{}]}}]}}", tcp("c"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
    let mut refused = |update: Update| {
        assert_eq!(compiler.apply_from(&certificates::sds_grpc(), SECRET, vec![update], &[], now).len(), 1);
        compiler.snapshot().listeners.len()
    };
    assert_eq!(refused(update::<SecretProto>("{name: default}")), 0, "the other is still to come");
    assert_eq!(refused(update::<SecretProto>("{name: ROOTCA}")), 1);
}

#[test]
fn refused_endpoints_end_the_wait_for_the_first() {
    let now = Instant::now();
    let waiting = || {
        let mut compiler = Compiler::new();
        accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&fetched_within(EDS, "0s"))], &[], now));
        assert!(!compiler.is_settled());
        compiler
    };
    let goes_on = |compiler: &mut Compiler| compiler.is_settled() && compiler.snapshot().cluster_named("c").is_some();
    let mut told = waiting();
    told.refuse(&SecretSource::Ads, ENDPOINT, &["s".to_owned()], now);
    assert!(goes_on(&mut told), "nothing more is known of them than their name");
    let mut large = endpoints(&["10.0.0.1"]);
    large.body.value.resize(crate::compile::compiler::MAX_RESOURCE_BYTES + 1, 0);
    let mut filled = waiting();
    assert_eq!(filled.apply(ENDPOINT, vec![large], &[], now).len(), 1);
    assert!(goes_on(&mut filled), "more than is read");
    accepted(told.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], now));
    assert_eq!(hosts(&mut told, "c").len(), 1);
    told.refuse(&SecretSource::Ads, ENDPOINT, &["s".to_owned()], now);
    assert_eq!(hosts(&mut told, "c").len(), 1, "the last good ones serve on");
    // Who comes again waits again.
    accepted(told.apply(CLUSTER, Vec::new(), &["c".to_owned()], now));
    accepted(told.apply(CLUSTER, vec![update::<ClusterProto>(&fetched_within(EDS, "0s"))], &[], now));
    assert!(!told.is_settled());
}

#[test]
fn what_was_given_up_and_is_wanted_again_is_to_be_asked_for_anew() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let other = EDS.replace("name: c,", "name: d,").replace("service_name: s", "service_name: t");
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS), update::<ClusterProto>(&other)], &[], now));
    accepted(compiler.apply(ENDPOINT, vec![endpoints(&["10.0.0.1"])], &[], now));
    let before = compiler.wanted();
    accepted(compiler.apply(CLUSTER, Vec::new(), &["c".to_owned()], now));
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(EDS)], &[], now));
    let after = compiler.wanted();
    assert!(before.endpoints.iter().eq(after.endpoints.iter()), "the same names");
    assert!(after.endpoints.beside(&before.endpoints).map(|name| &**name).eq(["s"]));
    assert!(compiler.snapshot().cluster_named("c").is_none(), "nothing is known of it any more");
}

#[test]
fn a_refused_first_answer_ends_the_wait_for_routes() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&fetched_within(&rds_listener(), "0s"))], &[], now));
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    let bad = |name: &str| Update { name: name.into(), version: "1".into(), body: Any { type_url: ROUTE.into(), value: vec![0xff; 9] } };
    assert_eq!(compiler.apply(ROUTE, vec![bad("other")], &[], now).len(), 1);
    assert_eq!(compiler.snapshot().listeners.len(), 0, "that is about others");
    assert_eq!(compiler.apply(ROUTE, vec![bad("r")], &[], now).len(), 1);
    let explained = |compiler: &mut Compiler| compiler.snapshot().explain(&Call::http("10.1.1.1:80".parse().unwrap(), "any", "/"));
    assert!(compiler.is_settled());
    let explanation = explained(&mut compiler);
    assert!(matches!(explanation.outcome, Outcome::Answered { status: 404, .. }), "{explanation}");
    accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
    assert_eq!(explained(&mut compiler).route(), Some("first"));
    // Who comes again waits again.
    accepted(compiler.apply(LISTENER, Vec::new(), &["l".to_owned()], now));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&fetched_within(&rds_listener(), "0s"))], &[], now));
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    compiler.refuse(&SecretSource::Ads, ROUTE, &["r".to_owned()], now);
    assert_eq!(compiler.snapshot().listeners.len(), 1, "nothing more is known of it than its name");
}

#[test]
fn a_cluster_holds_others_up_only_so_long_however_often_they_change() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let after = |seconds| now + Duration::from_secs(seconds);
    let cluster = |timeout: &str| {
        update::<ClusterProto>(&format!(
            "{{name: c, type: EDS, connect_timeout: {timeout}, \
             eds_cluster_config: {{eds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}, service_name: s}}}}"
        ))
    };
    let routes = |route: &str| {
        update::<RouteProto>(&format!(
            "{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{name: {route}, match: {{prefix: /}}, route: {{cluster: c}}}}]}}]}}"
        ))
    };
    let found = |compiler: &mut Compiler| {
        let explanation = compiler.snapshot().explain(&Call::http("10.1.1.1:80".parse().unwrap(), "any", "/"));
        explanation.route().map(str::to_owned)
    };
    accepted(compiler.apply(CLUSTER, vec![cluster("1s")], &[], now));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&fetched_within(&rds_listener(), "0s"))], &[], now));
    accepted(compiler.apply(ROUTE, vec![routes("first")], &[], now));
    accepted(compiler.apply(CLUSTER, vec![cluster("2s")], &[], after(5)));
    accepted(compiler.apply(ROUTE, vec![routes("second")], &[], after(10)));
    assert_eq!((found(&mut compiler), compiler.deadline()), (None, Some(after(15))));
    compiler.settle(after(15));
    assert_eq!(found(&mut compiler).as_deref(), Some("second"));
    accepted(compiler.apply(ROUTE, vec![routes("third")], &[], after(20)));
    assert_eq!((found(&mut compiler).as_deref(), compiler.deadline()), (Some("third"), None));
    assert!(compiler.snapshot().cluster_named("c").is_none(), "it waits on itself");
}
