//! HTTP filters that may be missing, and what routes say of filters.
use super::refusals::refused_listener;
use super::*;
use crate::http::FilterOverrides;
use crate::test_support::filtered;

const RBAC: &str = "'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
const LUA: &str = "'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute";
const WRAP: &str = "'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig";

fn listener(filter: &str) -> String {
    let manager = filtered("route_config: {name: r}", &format!("{{name: f, {filter}}}, "));
    format!("{{name: l, address: {ANY_80}, filter_chains: [{{filters: [{manager}]}}]}}")
}

#[test]
fn an_optional_filter_may_be_unknown_but_not_wrong() {
    let unknown = "typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}";
    assert!(
        refused_listener(&listener(unknown)).contains("http_filters[0]: f (envoy.extensions.filters.http.lua.v3.Lua) is not supported")
    );
    let mut compiler = Compiler::new();
    let update = update::<ListenerProto>(&listener(&format!("is_optional: true, {unknown}")));
    accepted(compiler.apply(LISTENER, vec![update], &[], Instant::now()));
    for wrong in ["ext_authz.v3.ExtAuthz", "rbac.v3.RBAC, rules: {action: ALLOW, policies: {p: {}}}"] {
        let filter = format!("typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.{wrong}}}");
        let reason = refused_listener(&listener(&filter));
        assert!(reason.contains("http_filters[0]"), "{reason}");
        assert_eq!(refused_listener(&listener(&format!("is_optional: true, {filter}"))), reason);
    }
}

#[test]
fn a_filter_without_configuration_says_so() {
    assert!(refused_listener(&listener("typed_config: {}")).ends_with("http_filters[0].typed_config: is missing for f"));
}

/// What the routes say of filter `f`.
fn overrides(config: &str) -> Result<FilterOverrides, String> {
    let text = format!("{{name: r, virtual_hosts: [{{name: v, domains: ['*'], typed_per_filter_config: {{f: {{{config}}}}}}}]}}");
    let mut compiler = Compiler::new();
    match compiler.add_static(vec![update::<RouteProto>(&text).body], Instant::now()) {
        Ok(()) => Ok(compiler.snapshot().routes.iter().flatten().next().unwrap().virtual_hosts[0].settings.per_route.clone()),
        Err(rejected) => Err(rejected.reason),
    }
}

#[test]
fn a_route_switches_a_filter_on_with_an_empty_configuration() {
    let switched = |config: &str| overrides(&format!("{WRAP}, {config}")).map(|o| (o.disabled[0].1, o.configs.len()));
    assert_eq!(switched("disabled: true"), Ok((true, 0)));
    assert_eq!(switched("config: {}"), Ok((false, 0)));
    assert_eq!(switched(&format!("config: {{{RBAC}}}")), Ok((false, 1)));
    assert_eq!(switched(&format!("is_optional: true, config: {{{LUA}}}")), Ok((false, 0)));
    let at = "virtual_hosts[0].typed_per_filter_config[\"f\"].config";
    for (config, expected) in [
        ("is_optional: true".to_owned(), ": is missing"),
        (format!("config: {{{LUA}}}"), ": f (envoy.extensions.filters.http.lua.v3.LuaPerRoute) is not supported per route"),
        (format!("config: {{{WRAP}, disabled: true}}"), ": f (envoy.config.route.v3.FilterConfig) is not supported per route"),
        (format!("is_optional: true, config: {{{RBAC}, rbac: {{rules: {{policies: {{p: {{}}}}}}}}}}"), ".rbac.rules"),
    ] {
        let reason = switched(&config).unwrap_err();
        assert!(reason.starts_with(&format!("{at}{expected}")), "{reason}");
    }
}
