use super::*;
use crate::compile::Compiler;
use crate::test_support::{ANY_80, tcp, update};
use lateen_proto::envoy::config::listener::v3::Listener as Proto;

fn listener(chains: &[(&str, &str)]) -> Result<Arc<Listener>, String> {
    let chains: Vec<String> = chains
        .iter()
        .map(|(name, criteria)| format!("{{name: {name}, filter_chain_match: {criteria}, filters: [{}]}}", tcp("c")))
        .collect();
    let text = format!(
        "{{name: l, address: {ANY_80}, filter_chains: [{}], default_filter_chain: {{name: default, filters: [{}]}}}}",
        chains.join(","),
        tcp("c")
    );
    let mut compiler = Compiler::new();
    compiler.add_static(vec![update::<Proto>(&text).body], std::time::Instant::now()).map_err(|r| r.reason)?;
    Ok(compiler.snapshot().listeners[0].clone())
}

fn connection() -> ConnectionInfo {
    ConnectionInfo {
        destination: "10.0.0.1:80".parse().unwrap(),
        source: "10.9.0.1:4000".parse().unwrap(),
        direct_source: "10.9.0.1:4000".parse().unwrap(),
        server_name: None,
        application_protocols: Vec::new(),
        transport_protocol: "raw_buffer",
    }
}

fn chosen(listener: &Listener, connection: &ConnectionInfo) -> String {
    listener.choose_chain(connection).unwrap().name.to_string()
}

#[test]
fn a_port_with_chains_of_its_own_never_falls_back_to_chains_for_any_port() {
    let l = listener(&[("any", "{}"), ("p80", "{destination_port: 80, transport_protocol: tls}")]).unwrap();
    assert_eq!(chosen(&l, &connection()), "default");
    assert_eq!(chosen(&l, &ConnectionInfo { destination: "10.0.0.1:81".parse().unwrap(), ..connection() }), "any");
    assert_eq!(chosen(&l, &ConnectionInfo { transport_protocol: "tls", ..connection() }), "p80");
}

#[test]
fn the_longest_prefix_wins_and_is_final() {
    let l = listener(&[
        ("wide", "{prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}"),
        ("narrow", "{prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 24}], transport_protocol: tls}"),
        ("six", "{prefix_ranges: [{address_prefix: 'fd00::', prefix_len: 8}]}"),
        ("rest", "{}"),
    ])
    .unwrap();
    let to = |address: &str| ConnectionInfo { destination: address.parse().unwrap(), ..connection() };
    assert_eq!(chosen(&l, &to("10.0.1.1:80")), "wide");
    assert_eq!(chosen(&l, &to("10.0.0.1:80")), "default");
    assert_eq!(chosen(&l, &to("[fd00::1]:80")), "six");
    assert_eq!(chosen(&l, &to("[::ffff:10.0.1.1]:80")), "wide");
    assert_eq!(chosen(&l, &to("192.168.0.1:80")), "rest");
}

#[test]
fn server_names_match_exactly_then_by_the_longest_wildcard() {
    let l = listener(&[
        ("exact", "{server_names: [a.b.com]}"),
        ("wild", "{server_names: ['*.b.com']}"),
        ("wilder", "{server_names: ['*.com']}"),
        ("none", "{transport_protocol: tls}"),
    ])
    .unwrap();
    let named = |name: Option<&str>| ConnectionInfo { server_name: name.map(Into::into), transport_protocol: "tls", ..connection() };
    for (name, expected) in [
        (Some("a.b.com"), "exact"),
        (Some("A.B.com"), "exact"),
        (Some("x.b.com"), "wild"),
        (Some("x.y.b.com"), "wild"),
        (Some("b.com"), "wilder"),
        (Some("com"), "none"),
        (Some(""), "none"),
        (None, "none"),
    ] {
        assert_eq!(chosen(&l, &named(name)), expected, "{name:?}");
    }
}

#[test]
fn the_first_application_protocol_that_has_a_chain_decides() {
    let l = listener(&[
        ("h2", "{application_protocols: [h2, istio-h2]}"),
        ("h1", "{application_protocols: [http/1.1]}"),
        ("mtls", "{transport_protocol: tls, application_protocols: [istio-peer-exchange, istio]}"),
        ("tls", "{transport_protocol: tls}"),
        ("raw", "{}"),
    ])
    .unwrap();
    let offering = |protocols: &[&str], transport: &'static str| ConnectionInfo {
        application_protocols: protocols.iter().map(|p| p.as_bytes().into()).collect(),
        transport_protocol: transport,
        ..connection()
    };
    assert_eq!(chosen(&l, &offering(&["http/1.1", "h2"], "raw_buffer")), "h1");
    assert_eq!(chosen(&l, &offering(&["spdy", "h2"], "raw_buffer")), "h2");
    assert_eq!(chosen(&l, &offering(&["spdy"], "raw_buffer")), "raw");
    assert_eq!(chosen(&l, &offering(&["istio"], "tls")), "mtls");
    // TLS has chains of its own, so the plain ones are out.
    assert_eq!(chosen(&l, &offering(&["h2"], "tls")), "tls");
}

#[test]
fn sources_decide_last() {
    let l = listener(&[
        ("local", "{source_type: SAME_IP_OR_LOOPBACK}"),
        ("port", "{source_type: EXTERNAL, source_prefix_ranges: [{address_prefix: 10.9.0.0, prefix_len: 16}], source_ports: [4000]}"),
        ("block", "{source_type: EXTERNAL, source_prefix_ranges: [{address_prefix: 10.9.0.0, prefix_len: 16}]}"),
        ("external", "{source_type: EXTERNAL}"),
        ("direct", "{direct_source_prefix_ranges: [{address_prefix: 10.8.0.0, prefix_len: 16}]}"),
    ])
    .unwrap();
    let from = |source: &str| ConnectionInfo { source: source.parse().unwrap(), ..connection() };
    assert_eq!(chosen(&l, &from("10.0.0.1:1")), "local");
    assert_eq!(chosen(&l, &from("127.0.0.1:1")), "local");
    assert_eq!(chosen(&l, &from("10.9.0.1:4000")), "port");
    assert_eq!(chosen(&l, &from("10.9.0.1:4001")), "block");
    assert_eq!(chosen(&l, &from("10.7.0.1:1")), "external");
    assert_eq!(chosen(&l, &ConnectionInfo { direct_source: "10.8.0.1:1".parse().unwrap(), ..connection() }), "direct");
}

#[test]
fn chains_that_match_the_same_are_refused_by_name() {
    let error = listener(&[("a", "{server_names: [x.y]}"), ("b", "{server_names: [z, x.y]}")]).unwrap_err();
    assert!(error.contains("filter_chains") && error.contains("(a)") && error.contains("(b)"), "{error}");
}

/// A listener whose chains a tree finds by the destination's port and the caller's address.
fn with_tree(chains: &str) -> Result<Arc<Listener>, String> {
    let input = |name: &str| {
        format!("{{name: i, typed_config: {{'@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.{name}}}}}")
    };
    let to = |chain: &str| {
        format!("{{action: {{name: a, typed_config: {{'@type': type.googleapis.com/google.protobuf.StringValue, value: {chain}}}}}}}")
    };
    let text = format!(
        "{{name: l, address: {ANY_80}, filter_chains: [{chains}], default_filter_chain: {{name: default, filters: [{}]}}, \
         filter_chain_matcher: {{matcher_tree: {{input: {}, exact_match_map: {{map: {{'80': {}, '81': {{matcher: \
         {{matcher_list: {{matchers: [{{predicate: {{single_predicate: {{input: {}, value_match: {{prefix: '10.'}}}}}}, on_match: {}}}]}}}}}}}}}}}}}}}}",
        tcp("c"),
        input("DestinationPortInput"),
        to("one"),
        input("SourceIPInput"),
        to("two"),
    );
    let mut compiler = Compiler::new();
    compiler.add_static(vec![update::<Proto>(&text).body], std::time::Instant::now()).map_err(|r| r.reason)?;
    Ok(compiler.snapshot().listeners[0].clone())
}

#[test]
fn a_tree_of_matchers_stands_instead_of_criteria() {
    let chain = |name: &str, criteria: &str| format!("{{name: {name}, {criteria} filters: [{}]}}", tcp("c"));
    let l = with_tree(&[chain("one", ""), chain("two", "")].join(",")).unwrap();
    let at = |port: u16, source: &str| {
        let destination = format!("10.0.0.1:{port}").parse().unwrap();
        chosen(&l, &ConnectionInfo { destination, source: source.parse().unwrap(), ..connection() })
    };
    assert_eq!(
        [at(80, "192.0.2.1:1"), at(81, "10.1.1.1:1"), at(81, "192.0.2.1:1"), at(82, "10.1.1.1:1")],
        ["one", "two", "default", "default"]
    );
    for (chains, reason) in [
        (chain("one", ""), "`two` is the name of no chain"),
        ([chain("one", ""), chain("one", "")].join(","), "needs a name of its own"),
        ([chain("one", ""), chain("two", "filter_chain_match: {destination_port: 1},")].join(","), "keep one of the two"),
    ] {
        let refused = with_tree(&chains).unwrap_err();
        assert!(refused.contains(reason), "{refused}");
    }
}
