//! Chains that are the same in the next version of their listener.
use lateen_identity::WorkloadSecrets;

use super::certificates::{MTLS, identity, sds_grpc};
use super::*;
use crate::Listener;
use crate::listener::FilterChain;

fn listener(fields: &str, chains: &[&str], default: &str) -> Update {
    let default = if default.is_empty() { String::new() } else { format!(", default_filter_chain: {default}") };
    update::<ListenerProto>(&format!("{{name: l, address: {ANY_80}, {fields}filter_chains: [{}]{default}}}", chains.join(", ")))
}

fn chain(name: &str, port: u16, more: &str) -> String {
    format!("{{name: {name}, filter_chain_match: {{destination_port: {port}}}, {more}filters: [{}]}}", tcp(name))
}

fn apply(compiler: &mut Compiler, update: Update) -> Arc<Listener> {
    accepted(compiler.apply(LISTENER, vec![update], &[], Instant::now()));
    compiler.snapshot().listeners[0].clone()
}

fn same(a: &Arc<FilterChain>, b: &Arc<FilterChain>) -> bool {
    Arc::ptr_eq(a, b)
}

#[test]
fn chains_that_are_the_same_are_shared_wherever_they_stand() {
    let mut compiler = Compiler::new();
    let (a, b, c) = (chain("a", 1, ""), chain("b", 2, ""), chain("c", 3, ""));
    let plain = |name: &str| format!("{{name: {name}, filters: [{}]}}", tcp(name));
    let first = apply(&mut compiler, listener("", &[&a, &b], &plain("d")));
    let next = apply(&mut compiler, listener("", &[&c, &chain("b", 4, ""), &a], &plain("d")));
    assert!(Arc::ptr_eq(&first.lineage, &next.lineage));
    assert!(same(&next.chains[2], &first.chains[0]) && same(next.default_chain.as_ref().unwrap(), first.default_chain.as_ref().unwrap()));
    assert!(!same(&next.chains[1], &first.chains[1]) && &*next.chains[0].name == "c");
    assert_eq!(next.chains[1].criteria.destination_port, Some(4));
    // A default that becomes one of the others is the same chain, as for Envoy.
    let moved = apply(&mut compiler, listener("", &[&plain("d"), &a], ""));
    assert!(same(&moved.chains[0], next.default_chain.as_ref().unwrap()) && moved.default_chain.is_none());
}

#[test]
fn a_listener_that_changes_itself_has_chains_of_its_own() {
    let mut compiler = Compiler::new();
    let a = chain("a", 1, "");
    let first = apply(&mut compiler, listener("", &[&a], ""));
    for fields in ["transparent: true, ", "traffic_direction: OUTBOUND, ", "listener_filters_timeout: 1s, "] {
        let next = apply(&mut compiler, listener(fields, &[&a], ""));
        assert!(!Arc::ptr_eq(&first.lineage, &next.lineage) && !same(&first.chains[0], &next.chains[0]), "{fields}");
    }
}

#[test]
fn a_chain_that_stays_takes_rotated_certificates() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let source = sds_grpc();
    let rotate = |compiler: &mut Compiler, to: &str| {
        let secrets: WorkloadSecrets = identity(to);
        compiler.set_identity(&source, &secrets, now).unwrap();
    };
    let secured = chain("a", 1, &format!("{MTLS}, "));
    accepted(compiler.apply(LISTENER, vec![listener("", &[&secured], "")], &[], now));
    rotate(&mut compiler, "a");
    let first = compiler.snapshot().listeners[0].clone();
    let next = apply(&mut compiler, listener("", &[&secured, &chain("b", 2, "")], ""));
    assert!(same(&first.chains[0], &next.chains[0]));
    drop(first);
    assert_eq!(compiler.wanted().secrets.iter().count(), 2);
    let before = next.chains[0].tls.as_ref().unwrap().config.get().unwrap();
    rotate(&mut compiler, "b");
    assert!(!Arc::ptr_eq(&before, &next.chains[0].tls.as_ref().unwrap().config.get().unwrap()));
}
