//! Filters that are discovered: waited for, defaulted, refused.
use lateen_proto::any::pack;
use lateen_proto::envoy::config::core::v3::TypedExtensionConfig;
use lateen_proto::envoy::extensions::filters::http::{cors::v3::Cors, fault::v3::HttpFault, router::v3::Router};

use super::refusals::refused_listener;
use super::*;
use crate::compile::warming::FETCH_TIMEOUT;
use crate::compile::{Outcome, Reload};
use crate::http::HttpFilter;
use crate::listener::{NetworkFilter, Terminal};
use crate::ratelimit::Verdict;
use crate::test_support::filtered;

const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";

fn listener(more: &str) -> Update {
    let filter = format!(
        "{{name: extra, config_discovery: {{config_source: {{ads: {{}}}}, {more} \
         type_urls: [type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors, \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router]}}}}"
    );
    update::<ListenerProto>(&rds_listener().replace("http_filters: [", &format!("http_filters: [{filter}, ")))
}

fn extension(config: Any) -> Update {
    let body = pack(&TypedExtensionConfig { name: "extra".to_owned(), typed_config: Some(config) });
    Update { name: "extra".to_owned(), version: "1".to_owned(), body }
}

fn with_routes() -> (Compiler, Instant) {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let cluster = "{name: c, type: STATIC, load_assignment: {cluster_name: c}}";
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(cluster)], &[], now));
    (compiler, now)
}

/// What stands in the place of the discovered filter.
fn filter(compiler: &mut Compiler) -> Option<HttpFilter> {
    let snapshot = compiler.snapshot();
    let listener = snapshot.listeners.first()?;
    let Terminal::Http(manager) = &listener.chains.first()?.terminal else { panic!("no HTTP") };
    let HttpFilter::Discovered(discovered) = &manager.filters[0] else { panic!("{:?}", manager.filters) };
    discovered.resolve(snapshot.extension(discovered.id).map(|e| &**e), false)
}

#[test]
fn a_listener_waits_for_its_filters_and_keeps_the_last_good_one() {
    let (mut compiler, now) = with_routes();
    accepted(compiler.apply(LISTENER, vec![listener("")], &[], now));
    accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
    assert!(compiler.wanted().extensions.contains("extra"));
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    accepted(compiler.apply(EXTENSION, vec![extension(pack(&Cors::default()))], &[], now));
    let version = compiler.snapshot().version;
    assert!(matches!(filter(&mut compiler), Some(HttpFilter::Cors)));
    for (config, why) in [(pack(&HttpFault::default()), "not in type_urls"), (pack(&Router::default()), "router is not discovered")] {
        let rejected = compiler.apply(EXTENSION, vec![extension(config)], &[], now);
        assert!(rejected[0].reason.contains(why), "{rejected:?}");
    }
    assert_eq!(compiler.snapshot().version, version, "nothing changed");
    accepted(compiler.apply(EXTENSION, Vec::new(), &["extra".to_owned()], now));
    assert!(filter(&mut compiler).is_none(), "it has no default");
    let outcomes: Vec<Outcome> = compiler.take_reloads().into_iter().map(|reload| reload.outcome).collect();
    assert_eq!(outcomes, [Outcome::Awaited, Outcome::Reloaded, Outcome::Failed, Outcome::Failed, Outcome::Reloaded]);
    accepted(compiler.apply(EXTENSION, vec![extension(pack(&Cors::default()))], &[], now));
    let narrow = rds_listener().replace(
        "http_filters: [",
        "http_filters: [{name: extra, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.router.v3.Router]}}, ",
    );
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&narrow)], &[], now));
    let conflict = Reload { place: "http_filter", name: "extra".into(), outcome: Outcome::Conflicting };
    assert_eq!(compiler.take_reloads().last(), Some(&conflict));
    accepted(compiler.apply(LISTENER, Vec::new(), &["l".to_owned()], now));
    assert!(compiler.wanted().extensions.is_empty() && compiler.list(Kind::Extension).is_empty());
}

#[test]
fn a_default_serves_until_then_at_once_or_when_waiting_is_over() {
    let default = "default_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors},";
    for (more, at_once) in [(default.to_owned(), false), (format!("{default} apply_default_config_without_warming: true,"), true)] {
        let (mut compiler, now) = with_routes();
        accepted(compiler.apply(LISTENER, vec![listener(&more)], &[], now));
        accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
        assert_eq!(compiler.snapshot().listeners.len(), usize::from(at_once));
        compiler.settle(now + FETCH_TIMEOUT);
        assert!(matches!(filter(&mut compiler), Some(HttpFilter::Cors)));
    }
    let (mut compiler, now) = with_routes();
    accepted(compiler.apply(LISTENER, vec![listener("")], &[], now));
    accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
    compiler.settle(now + FETCH_TIMEOUT);
    assert!(filter(&mut compiler).is_none(), "nothing came, and there is no default");
}

#[test]
fn what_cannot_be_discovered_is_refused_with_its_place() {
    let reason = |more: &str| {
        let rejected = Compiler::new().apply(LISTENER, vec![listener(more)], &[], Instant::now());
        rejected.into_iter().next().map(|r| r.reason).unwrap_or_default()
    };
    let early = reason("apply_default_config_without_warming: true,");
    assert!(early.contains("config_discovery.apply_default_config_without_warming: needs a default_config"), "{early}");
    let other = reason("default_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault},");
    assert!(other.contains("config_discovery.default_config: extra has type"), "{other}");
}

const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
const DIRECT: &str = "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config";
const INSPECTOR: &str = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";

fn place(name: &str, types: &[&str], more: &str) -> String {
    format!("{{name: {name}, config_discovery: {{config_source: {{ads: {{}}}}, {more} type_urls: [{}]}}}}", types.join(", "))
}

fn connections(listener_filters: &str, filters: &str) -> String {
    format!("{{name: l, address: {ANY_80}, listener_filters: [{listener_filters}], filter_chains: [{{filters: [{filters}]}}]}}")
}

fn named(name: &str, type_url: &str) -> Update {
    let config = Any { type_url: type_url.to_owned(), value: Vec::new() };
    let body = pack(&TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) });
    Update { name: name.to_owned(), version: "1".to_owned(), body }
}

#[test]
fn filters_of_connections_are_waited_for_and_put_in_their_places() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let filters = format!("{}, {}", place("before", &[RBAC], ""), place("last", &[DIRECT], ""));
    let listener = connections(&place("inspector", &[INSPECTOR], ""), &filters);
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&listener)], &[], now));
    assert!(compiler.wanted().extensions.iter().map(|name| &**name).eq(["before", "inspector", "last"]));
    for (name, type_url) in [("before", RBAC), ("last", DIRECT)] {
        accepted(compiler.apply(EXTENSION, vec![named(name, type_url)], &[], now));
        assert_eq!(compiler.snapshot().listeners.len(), 0, "the rest is still missing");
    }
    accepted(compiler.apply(EXTENSION, vec![named("inspector", INSPECTOR)], &[], now));
    let snapshot = compiler.snapshot();
    let found = |id| snapshot.extension(id).map(|e| &**e);
    let listener = &snapshot.listeners[0];
    let inspectors = listener.inspectors.resolve(found);
    assert!(inspectors.tls.is_some() && inspectors.discovered.is_empty(), "{inspectors:?}");
    let chain = listener.chains[0].resolve(found, false);
    assert!(matches!((&chain.filters[..], &chain.terminal), ([NetworkFilter::Rbac(_)], Terminal::DirectResponse(_))), "{chain:?}");
}

/// Two chains of one listener, and before them an inspection; all that is in braces is what each of them discovers.
fn places(type_url: &str, of_http: bool, inspected: bool) -> [String; 2] {
    let limit = place("limit", &[type_url], "");
    let chain = |port: u16| {
        let filters = match (of_http, inspected) {
            (true, _) => filtered("route_config: {name: r}", &format!("{limit}, ")),
            (_, true) => tcp("c"),
            _ => format!("{limit}, {}", tcp("c")),
        };
        format!("{{filter_chain_match: {{destination_port: {port}}}, filters: [{filters}]}}")
    };
    let listener_filters = if inspected { limit.as_str() } else { "" };
    [("l", 1), ("m", 2)].map(|(name, port)| {
        let address = ANY_80.replace("80", &format!("8{port}"));
        let (first, second) = (chain(port), chain(port + 10));
        format!("{{name: {name}, address: {address}, listener_filters: [{listener_filters}], filter_chains: [{first}, {second}]}}")
    })
}

/// Takes one, while there is one, of what the place with this number discovered.
fn take(snapshot: &crate::Snapshot, at: usize) -> bool {
    let found = |id| snapshot.extension(id).map(|e| &**e);
    let listener = &snapshot.listeners[at / 2];
    if let [(_, limit)] = &listener.inspectors.resolve(found).rate_limits[..] {
        return limit.bucket.take(0);
    }
    let chain = listener.chains[at % 2].resolve(found, false);
    match (&chain.filters[..], &chain.terminal) {
        ([NetworkFilter::ConnectionLimit(limit)], _) => limit.take(),
        ([NetworkFilter::LocalRateLimit(limit)], _) => limit.bucket.take(0),
        (_, Terminal::Http(manager)) => {
            let HttpFilter::Discovered(place) = &manager.filters[0] else { panic!("{manager:?}") };
            match place.resolve(found(place.id), false) {
                Some(HttpFilter::LocalRateLimit(limit)) => limit.limiter.take(&[], 0).0 == Verdict::Allowed,
                Some(HttpFilter::BandwidthLimit(limit)) => limit.limit.as_ref().unwrap().bucket.take(1024, Instant::now()) == 1024,
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_discovered_limit_counts_for_each_place_and_for_all_who_serve_it() {
    let bucket = "token_bucket: {max_tokens: 1, fill_interval: 3600s}";
    let kinds = [
        ("network.connection_limit.v3.ConnectionLimit", "max_connections: 1"),
        ("network.local_ratelimit.v3.LocalRateLimit", bucket),
        ("listener.local_ratelimit.v3.LocalRateLimit", bucket),
        ("http.local_ratelimit.v3.LocalRateLimit", bucket),
        ("http.bandwidth_limit.v3.BandwidthLimit", "enable_mode: REQUEST, limit_kbps: 1"),
    ];
    for (kind, fields) in kinds {
        let type_url = format!("type.googleapis.com/envoy.extensions.filters.{kind}");
        let inspected = kind.starts_with("listener");
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        let listeners = places(&type_url, kind.starts_with("http"), inspected).map(|text| update::<ListenerProto>(&text));
        accepted(compiler.apply(LISTENER, listeners.to_vec(), &[], now));
        let limit = |name: &str, prefix: &str| {
            update::<TypedExtensionConfig>(&format!(
                "{{name: {name}, typed_config: {{'@type': {type_url}, stat_prefix: {prefix}, {fields}}}}}"
            ))
        };
        accepted(compiler.apply(EXTENSION, vec![limit("limit", "a")], &[], now));
        // Chains of one listener have its inspections in common.
        let apart: &[usize] = if inspected { &[0, 2] } else { &[0, 1, 2, 3] };
        let snapshot = compiler.snapshot();
        for at in apart {
            assert_eq!((take(&snapshot, *at), take(&snapshot, *at)), (true, false), "{kind}, place {at}");
        }
        accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>("{name: c, type: STATIC}")], &[], now));
        accepted(compiler.apply(EXTENSION, vec![limit("other", "a"), limit("limit", "a")], &[], now));
        assert!(!take(&compiler.snapshot(), 0), "{kind}: others changed");
        accepted(compiler.apply(EXTENSION, vec![limit("limit", "b")], &[], now));
        let (before, snapshot) = (snapshot, compiler.snapshot());
        assert!(apart.iter().all(|at| take(&snapshot, *at) && !take(&before, *at) && !take(&snapshot, *at)), "{kind}: another limit");
    }
}

#[test]
fn a_filter_of_connections_that_does_not_fit_its_place_is_refused() {
    let refused = |listener_filters: &str, filters: &str| refused_listener(&connections(listener_filters, filters));
    let direct = place("x", &[DIRECT], &format!("default_config: {{'@type': {DIRECT}}},"));
    let reason = refused("", &format!("{direct}, {}", tcp("c")));
    assert!(reason.starts_with("filter_chains[0].filters[0].config_discovery.default_config: x: must be the last"), "{reason}");
    let reason = refused("", &place("x", &[RBAC], &format!("default_config: {{'@type': {RBAC}}},")));
    assert!(reason.starts_with("filter_chains[0].filters[0].config_discovery.default_config: x: the last filter must"), "{reason}");
    let reason = refused(&place("x", &[], ""), &tcp("c"));
    assert!(reason.starts_with("listener_filters[0].config_discovery.type_urls: is empty"), "{reason}");
    let elsewhere = place("x", &[DIRECT], "").replace("ads: {}", "path: f");
    let reason = refused("", &elsewhere);
    assert!(reason.starts_with("filter_chains[0].filters[0].config_discovery.config_source: is not supported"), "{reason}");
    // What comes later is judged by the places it is wanted for.
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let listener = connections("", &place("x", &[RBAC, DIRECT, manager], ""));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&listener)], &[], now));
    for (type_url, why) in [(RBAC, "must consume the connection"), (manager, "not discovered"), (INSPECTOR, "not in type_urls")] {
        let rejected = compiler.apply(EXTENSION, vec![named("x", type_url)], &[], now);
        assert!(rejected[0].reason.contains(why), "{rejected:?}");
    }
}

#[test]
fn a_refused_first_answer_ends_the_wait_for_filters() {
    let (mut compiler, now) = with_routes();
    accepted(compiler.apply(LISTENER, vec![listener("")], &[], now));
    accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
    assert_eq!((compiler.apply(EXTENSION, vec![extension(pack(&HttpFault::default()))], &[], now).len()), 1);
    assert!(compiler.is_settled() && compiler.snapshot().listeners.len() == 1 && filter(&mut compiler).is_none());
}
