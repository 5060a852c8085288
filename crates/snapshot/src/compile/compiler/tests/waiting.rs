//! What waits for what, and how long.
use std::time::Duration;

use super::*;
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
