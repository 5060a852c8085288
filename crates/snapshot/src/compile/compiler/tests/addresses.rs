//! Listeners that want the same address.
use super::*;

fn listener(name: &str, fields: &str) -> Update {
    update::<ListenerProto>(&format!("{{name: {name}, {fields}, filter_chains: [{{filters: [{}]}}]}}", tcp("c")))
}

fn at(address: &str, port: u16) -> String {
    format!("address: {{socket_address: {{address: {address}, port_value: {port}}}}}")
}

#[test]
fn an_address_is_one_listeners_whether_it_binds_or_not() {
    let more = |port| format!("{}, additional_addresses: [{{{}}}]", at("127.0.0.1", 81), at("127.0.0.1", port));
    let hidden = |port| format!("{}, bind_to_port: false", at("127.0.0.1", port));
    let cases = [
        (at("127.0.0.1", 80), at("127.0.0.1", 80), false),
        (at("127.0.0.1", 80), at("127.0.0.2", 80), true),
        (at("127.0.0.1", 80), hidden(80), false),
        (hidden(80), hidden(80), false),
        (more(80), at("127.0.0.1", 80), false),
        (at("127.0.0.1", 80), more(80), false),
        (at("127.0.0.1", 0), at("127.0.0.1", 0), true),
        (hidden(0), hidden(0), false),
    ];
    for (first, second, fine) in cases {
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        let rejected = compiler.apply(LISTENER, vec![listener("a", &first), listener("b", &second)], &[], now);
        assert_eq!(rejected.is_empty(), fine, "{first} and {second}: {rejected:?}");
        assert!(fine || (rejected[0].name == "b" && rejected[0].reason.contains("duplicate address 127.0.0.1:")), "{rejected:?}");
        assert_eq!(compiler.snapshot().listeners.len(), if fine { 2 } else { 1 });
        let bodies = vec![listener("a", &first).body, listener("b", &second).body];
        assert_eq!(Compiler::new().add_static(bodies, now).is_ok(), fine);
    }
}

#[test]
fn an_address_that_is_given_up_is_free_in_the_same_answer() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let (one, two, three) = (at("127.0.0.1", 1), at("127.0.0.1", 2), at("127.0.0.1", 3));
    accepted(compiler.apply(LISTENER, vec![listener("a", &one), listener("b", &two)], &[], now));
    // Its own is no other's.
    accepted(compiler.apply(LISTENER, vec![listener("a", &format!("{one}, stat_prefix: x"))], &[], now));
    // What moves makes room, and what is removed.
    accepted(compiler.apply(LISTENER, vec![listener("a", &three), listener("b", &one)], &[], now));
    accepted(compiler.apply(LISTENER, vec![listener("c", &one)], &["b".into()], now));
    let addresses = compiler.snapshot().listeners.iter().map(|l| (l.name.to_string(), l.addresses[0].port())).collect::<Vec<_>>();
    assert_eq!(addresses, [("a".to_owned(), 3), ("c".to_owned(), 1)]);
    // What was refused has taken nothing.
    assert_eq!(compiler.apply(LISTENER, vec![listener("d", &format!("{two}, additional_addresses: [{{{one}}}]"))], &[], now).len(), 1);
    accepted(compiler.apply(LISTENER, vec![listener("e", &two)], &[], now));
}
