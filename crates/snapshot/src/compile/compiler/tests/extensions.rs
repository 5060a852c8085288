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

#[test]
fn a_discovered_limit_of_connections_counts_for_each_chain_and_for_all_who_serve_it() {
    const LIMIT: &str = "type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit";
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let chain = |port: u16| {
        format!("{{filter_chain_match: {{destination_port: {port}}}, filters: [{}, {}]}}", place("limit", &[LIMIT], ""), tcp("c"))
    };
    let listener = format!("{{name: l, address: {ANY_80}, filter_chains: [{}, {}]}}", chain(1), chain(2));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&listener)], &[], now));
    let mut limits = |max: u64| {
        let text = format!("{{name: limit, typed_config: {{'@type': {LIMIT}, stat_prefix: l, max_connections: {max}}}}}");
        accepted(compiler.apply(EXTENSION, vec![update::<TypedExtensionConfig>(&text)], &[], now));
        let snapshot = compiler.snapshot();
        [0, 0, 1].map(|at| {
            let chain = snapshot.listeners[0].chains[at].resolve(|id| snapshot.extension(id).map(|e| &**e), false);
            let NetworkFilter::ConnectionLimit(limit) = &chain.filters[0] else { panic!("{chain:?}") };
            Arc::clone(limit)
        })
    };
    let [one, same, other] = limits(1);
    assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
    assert!(one.take() && !same.take() && other.take());
    let [next, ..] = limits(2);
    assert!(next.take() && next.take() && !next.take(), "another limit");
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
