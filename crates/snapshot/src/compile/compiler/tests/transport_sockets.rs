//! Which transport socket an endpoint has.
use super::refusals::refused_cluster;
use super::*;

const PLAIN: &str = "{name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}";
const INPUTS: &str = "type.googleapis.com/envoy.extensions.matching.common_inputs.transport_socket.v3";

/// The sockets of the endpoints of `c`, by index.
fn sockets(compiler: &mut Compiler) -> Vec<u32> {
    compiler.snapshot().cluster_named("c").unwrap().1.hosts.hosts().map(|h| h.transport).collect()
}

/// Endpoints 10.0.0.1, 10.0.0.2 … of one locality, with metadata.
fn with_metadata(locality: &str, endpoints: &[&str]) -> Update {
    let endpoint = |(n, metadata): (usize, &&str)| {
        let metadata = if metadata.is_empty() { String::new() } else { format!("metadata: {{filter_metadata: {metadata}}}, ") };
        format!("{{{metadata}endpoint: {{address: {{socket_address: {{address: 10.0.0.{}, port_value: 1}}}}}}}}", n + 1)
    };
    let all: Vec<String> = endpoints.iter().enumerate().map(endpoint).collect();
    update::<EndpointProto>(&format!(
        "{{cluster_name: s, endpoints: [{{metadata: {{filter_metadata: {locality}}}, lb_endpoints: [{}]}}]}}",
        all.join(", ")
    ))
}

fn action(name: &str) -> String {
    format!("{{action: {{name: a, typed_config: {{'@type': {INPUTS}.TransportSocketNameAction, name: {name}}}}}}}")
}

fn input(of: &str, path: &str) -> String {
    format!("{{name: i, typed_config: {{'@type': {INPUTS}.{of}MetadataInput, {path}}}}}")
}

fn matched(tree: &str) -> String {
    EDS.replace(
        "type: EDS",
        &format!(
            "type: EDS, transport_socket_matches: [{{name: one, transport_socket: {PLAIN}}}, {{name: two, transport_socket: {PLAIN}}}], \
             transport_socket_matcher: {tree}"
        ),
    )
}

#[test]
fn a_locality_s_metadata_counts_where_the_endpoint_s_own_fits_nowhere() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let socket = |n: u32| format!("{{name: s{n}, match: {{n: {n}}}, transport_socket: {PLAIN}}}");
    let text = EDS.replace("type: EDS", &format!("type: EDS, transport_socket_matches: [{}, {}]", socket(0), socket(1)));
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], now));
    let of = |n: u32| format!("{{envoy.transport_socket_match: {{n: {n}}}}}");
    accepted(compiler.apply(ENDPOINT, vec![with_metadata(&of(0), &[&of(1), &of(7), "", &of(0)])], &[], now));
    assert_eq!(sockets(&mut compiler), [1, 0, 0, 0]);
}

#[test]
fn a_tree_names_the_socket_of_each_endpoint_whenever_it_or_they_change() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let by_list = format!(
        "{{matcher_list: {{matchers: [\
         {{predicate: {{single_predicate: {{input: {}, value_match: {{exact: '1'}}}}}}, on_match: {}}}, \
         {{predicate: {{single_predicate: {{input: {}, value_match: {{prefix: 'in'}}}}}}, on_match: {}}}]}}}}",
        input("Endpoint", "path: [{key: n}]"),
        action("one"),
        input("Locality", "filter: x, path: [{key: a}, {key: b}]"),
        action("two"),
    );
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&matched(&by_list))], &[], now));
    let inside = "{x: {a: {b: inside}}}";
    let endpoints = ["{envoy.lb: {n: 1}}", "{envoy.lb: {n: '2'}}", ""];
    accepted(compiler.apply(ENDPOINT, vec![with_metadata(inside, &endpoints)], &[], now));
    assert_eq!(sockets(&mut compiler), [0, 1, 1], "a number is compared as it is written");
    accepted(compiler.apply(ENDPOINT, vec![with_metadata("{x: {a: inside}}", &endpoints)], &[], now));
    assert_eq!(sockets(&mut compiler), [0, 2, 2], "nothing fits: the default");
    // Metadata without the value has a null there; no metadata has nothing.
    let by_map = format!(
        "{{matcher_tree: {{input: {}, exact_match_map: {{map: {{'null': {}, '2': {}}}}}}}, on_no_match: {}}}",
        input("Endpoint", "path: [{key: n}]"),
        action("one"),
        action("nobody"),
        action("two"),
    );
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&matched(&by_map))], &[], now));
    assert_eq!(sockets(&mut compiler), [1, 2, 1]);
    accepted(compiler.apply(
        ENDPOINT,
        vec![with_metadata("{}", &["{envoy.lb: {m: 1}}", "{other: {n: 2}}", "{envoy.lb: {n: ''}}"])],
        &[],
        now,
    ));
    assert_eq!(sockets(&mut compiler), [0, 0, 1]);
}

#[test]
fn endpoints_given_with_the_cluster_have_theirs_from_the_tree_as_well() {
    let tree = format!(
        "{{matcher_tree: {{input: {}, exact_match_map: {{map: {{x: {}}}}}}}}}",
        input("Endpoint", "filter: f, path: [{key: k}]"),
        action("two")
    );
    for (kind, address) in [("STATIC", "10.0.0.1"), ("STRICT_DNS", "10.0.0.1")] {
        let given = format!(
            "type: {kind}, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [\
             {{metadata: {{filter_metadata: {{f: {{k: x}}}}}}, endpoint: {{address: {{socket_address: {{address: {address}, port_value: 1}}}}}}}}, \
             {{endpoint: {{address: {{socket_address: {{address: {address}, port_value: 2}}}}}}}}]}}]}}"
        );
        let text =
            matched(&tree).replace("type: EDS", &given).replace(", eds_cluster_config: {eds_config: {ads: {}}, service_name: s}", "");
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], now));
        assert_eq!(sockets(&mut compiler), [1, 2], "{kind}");
    }
}

#[test]
fn a_tree_that_cannot_be_settled_beforehand_is_refused() {
    let on = |input: &str, action: &str| format!("{{matcher_tree: {{input: {input}, exact_match_map: {{map: {{x: {action}}}}}}}}}");
    let known = input("Endpoint", "path: [{key: n}]");
    let state = format!("{{name: i, typed_config: {{'@type': {INPUTS}.FilterStateInput, key: k}}}}");
    let other = "{action: {name: a, typed_config: {'@type': type.googleapis.com/google.protobuf.StringValue, value: one}}}";
    let good = matched(&on(&known, &action("one")));
    let check = "type: EDS, health_checks: [{timeout: 1s, interval: 1s, tcp_health_check: {}, transport_socket_match_criteria: {a: b}}]";
    for (text, expected) in [
        (
            matched(&on(&state, &action("one"))),
            "transport_socket_matcher.matcher_tree.input: i (envoy.extensions.matching.common_inputs.transport_socket.v3.FilterStateInput) is not supported",
        ),
        (matched(&on(&input("Endpoint", ""), &action("one"))), "transport_socket_matcher.matcher_tree.input.typed_config.path: needs keys"),
        (
            matched(&on(&known, other)),
            "transport_socket_matcher.matcher_tree.exact_match_map.map[\"x\"].action: a (google.protobuf.StringValue) is not supported",
        ),
        (good.replace("name: two", "name: one"), "transport_socket_matches[1].name: `one` must be a name of its own"),
        (good.replace("{name: one, transport", "{transport"), "transport_socket_matches[0].name: `` must be a name of its own"),
        (
            good.replace("type: EDS", check),
            "health_checks[0].transport_socket_match_criteria: is not supported beside transport_socket_matcher",
        ),
    ] {
        let reason = refused_cluster(&text);
        assert!(reason.starts_with(expected), "{reason}\nexpected {expected}");
    }
}
