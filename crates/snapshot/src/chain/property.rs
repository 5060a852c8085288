//! The compiled lookup of chains against the documented rules written down directly, over random chains and connections.
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::ChainIndex;
use crate::listener::{ChainCriteria, ConnectionInfo, FilterChain, SourceType, Terminal};
use crate::matcher::Cidr;

/// What Envoy documents of `FilterChainMatch`: criterion by criterion in a fixed order, of each the most specific value that
/// any chain left has, and no way back.
fn slow(chains: &[Arc<FilterChain>], connection: &ConnectionInfo) -> Option<usize> {
    let mut left: Vec<usize> = (0..chains.len()).collect();
    let of = |at: usize| &chains[at].criteria;
    let port = connection.destination.port();
    keep(&mut left, |at| of(at).destination_port == Some(port), |at| of(at).destination_port.is_none());
    keep_longest(&mut left, connection.destination.ip(), |at| &of(at).prefix_ranges);
    keep_name(&mut left, connection.server_name.as_deref(), |at| &of(at).server_names);
    keep(&mut left, |at| *of(at).transport_protocol == *connection.transport_protocol, |at| of(at).transport_protocol.is_empty());
    let wanted = connection.application_protocols.iter().find(|p| left.iter().any(|at| of(*at).application_protocols.contains(p)));
    match wanted {
        Some(protocol) => left.retain(|at| of(*at).application_protocols.contains(protocol)),
        None => left.retain(|at| of(*at).application_protocols.is_empty()),
    }
    keep_longest(&mut left, connection.direct_source.ip(), |at| &of(at).direct_source_prefix_ranges);
    let source = connection.source.ip();
    let local = source.is_loopback() || source == connection.destination.ip();
    let kind = if local { SourceType::SameIpOrLoopback } else { SourceType::External };
    keep(&mut left, |at| of(at).source_type == kind, |at| of(at).source_type == SourceType::Any);
    keep_longest(&mut left, source, |at| &of(at).source_prefix_ranges);
    let port = connection.source.port();
    keep(&mut left, |at| of(at).source_ports.contains(&port), |at| of(at).source_ports.is_empty());
    assert!(left.len() < 2, "{left:?} cannot be told apart");
    left.first().copied()
}

/// Those that name the value, if any does, else those that name none.
fn keep(left: &mut Vec<usize>, exact: impl Fn(usize) -> bool, any: impl Fn(usize) -> bool) {
    if left.iter().any(|at| exact(*at)) { left.retain(|at| exact(*at)) } else { left.retain(|at| any(*at)) }
}

fn keep_longest<'a>(left: &mut Vec<usize>, address: IpAddr, blocks: impl Fn(usize) -> &'a [Cidr]) {
    let length = |at: usize| blocks(at).iter().filter(|b| b.contains(address)).map(|b| b.length).max();
    let longest = left.iter().filter_map(|at| length(*at)).max();
    match longest {
        Some(longest) => left.retain(|at| blocks(*at).iter().any(|b| b.length == longest && b.contains(address))),
        None => left.retain(|at| blocks(*at).is_empty()),
    }
}

/// The name itself, else `*.` and the longest rest of it behind a dot, else no name.
fn keep_name<'a>(left: &mut Vec<usize>, name: Option<&str>, names: impl Fn(usize) -> &'a [Arc<str>]) {
    let labels: Vec<&str> = name.unwrap_or_default().split('.').collect();
    let wildcards = (1..labels.len()).map(|at| format!("*.{}", labels[at..].join(".")));
    let candidates = name.map(str::to_owned).into_iter().chain(wildcards);
    let found = candidates.into_iter().find(|text| left.iter().any(|at| names(*at).iter().any(|n| **n == **text)));
    match found {
        Some(text) => left.retain(|at| names(*at).iter().any(|n| **n == *text)),
        None => left.retain(|at| names(*at).is_empty()),
    }
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        Just([10, 0, 0, 1].into()),
        Just([10, 0, 1, 1].into()),
        Just([127, 0, 0, 1].into()),
        Just([192, 168, 0, 9].into()),
        Just("fd00::1".parse().unwrap()),
        Just("::1".parse().unwrap()),
    ]
}

fn blocks() -> impl Strategy<Value = Vec<Cidr>> {
    let block = (address(), prop_oneof![Just(8), Just(16), Just(24), Just(32)]).prop_map(|(address, length)| Cidr::new(address, length));
    prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(block, 1..3)]
}

fn few<T: Clone + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![3 => Just(Vec::new()), 1 => proptest::sample::subsequence(all, 1..=2)]
}

fn criteria() -> impl Strategy<Value = ChainCriteria> {
    const NAMES: &[&str] = &["a.b.c", "x.b.c", "*.b.c", "*.c", "c"];
    const PROTOCOLS: &[&str] = &["h2", "http/1.1", "istio"];
    let port = prop_oneof![4 => Just(None), 1 => Just(Some(80)), 1 => Just(Some(443))];
    let transport = prop_oneof![3 => Just(""), 1 => Just("tls"), 1 => Just("raw_buffer")];
    let kind = prop_oneof![4 => Just(SourceType::Any), 1 => Just(SourceType::SameIpOrLoopback), 1 => Just(SourceType::External)];
    (port, blocks(), few(NAMES), transport, few(PROTOCOLS), blocks(), kind, blocks(), few(&[1000u16, 2000])).prop_map(
        |(destination_port, prefix_ranges, names, transport, protocols, direct, source_type, sources, source_ports)| ChainCriteria {
            destination_port,
            prefix_ranges,
            server_names: names.into_iter().map(Arc::from).collect(),
            transport_protocol: transport.into(),
            application_protocols: protocols.into_iter().map(|p| Arc::from(p.as_bytes())).collect(),
            direct_source_prefix_ranges: direct,
            source_type,
            source_prefix_ranges: sources,
            source_ports,
        },
    )
}

fn connection() -> impl Strategy<Value = ConnectionInfo> {
    let name = prop_oneof![Just(None), Just(Some("a.b.c")), Just(Some("z.b.c")), Just(Some("z.y.b.c")), Just(Some("q.c")), Just(Some("c"))];
    let protocols = proptest::sample::subsequence(&["h2", "http/1.1", "other"][..], 0..=3).prop_shuffle();
    let port = |a, b, c| prop_oneof![Just(a), Just(b), Just(c)];
    let of = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip, port);
    let destination = (address(), port(80, 443, 9999)).prop_map(of);
    let source = (address(), port(1000, 2000, 3000)).prop_map(of);
    let direct = (address(), Just(4000)).prop_map(of);
    (destination, source, direct, name, protocols, any::<bool>()).prop_map(|(destination, source, direct_source, name, protocols, tls)| {
        ConnectionInfo {
            destination,
            source,
            direct_source,
            server_name: name.map(Arc::from),
            application_protocols: protocols.into_iter().map(|p| Arc::from(p.as_bytes())).collect(),
            transport_protocol: if tls { "tls" } else { "raw_buffer" },
        }
    })
}

fn chain(criteria: ChainCriteria) -> Arc<FilterChain> {
    let terminal = Terminal::DirectResponse(Bytes::new());
    Arc::new(FilterChain { name: "".into(), criteria, tls: None, transport_connect_timeout: None, filters: Vec::new(), terminal })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_index_finds_what_the_rules_say(
        all in proptest::collection::vec(criteria(), 1..20),
        connections in proptest::collection::vec(connection(), 1..8),
    ) {
        // Those that could not be told from one before are refused; the others are a listener.
        let mut chains: Vec<Arc<FilterChain>> = Vec::new();
        for criteria in all {
            chains.push(chain(criteria));
            if ChainIndex::build(&chains).is_err() {
                chains.pop();
            }
        }
        let index = ChainIndex::build(&chains).unwrap();
        for connection in &connections {
            prop_assert_eq!(index.find(connection), slow(&chains, connection), "{:?} among {:#?}", connection, chains);
        }
    }
}
