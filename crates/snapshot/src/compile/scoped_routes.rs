//! Scoped routes: how a request's key is made, and the scopes, listed in the listener or discovered (SRDS).
use std::sync::Arc;

use lateen_proto::envoy::config::route::v3 as route_proto;
use lateen_proto::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use lateen_proto::{Any, any, wire};
use prost::Message;
use proto::scoped_routes::{self, scope_key_builder, scope_key_builder::fragment_builder as builder};
use route_proto::scoped_route_configuration as scope_proto;

use super::context::{Context, ScopesUse};
use super::invalid::{Invalid, Result, Within, each, refuse};
use super::warming::FetchTimeout;
use super::{file_names, matcher, route, source};
use crate::scopes::{BETWEEN, Element, HeaderFragment, RouteTarget, ScopeKeyBuilder, ScopedRoutes, Scopes};
use crate::{RouteTable, RouteTableId};

pub(crate) fn routes(value: proto::ScopedRoutes, context: &mut Context<'_>) -> Result<ScopedRoutes> {
    let proto::ScopedRoutes { name, scope_key_builder, rds_config_source, config_specifier } = value;
    if name.is_empty() {
        return Err(Invalid::field("name", "is empty"));
    }
    let key = scope_key_builder.ok_or_else(|| Invalid::new("is missing")).and_then(key_builder).within("scope_key_builder")?;
    let routes = match rds_config_source {
        Some(source) => source::ads_only(Some(source)).within("rds_config_source")?,
        None => FetchTimeout::default(),
    };
    let listed = match config_specifier {
        Some(scoped_routes::ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
            Some(Arc::new(listed(list, routes, context).within("scoped_route_configurations_list")?))
        }
        Some(scoped_routes::ConfigSpecifier::ScopedRds(discovered)) => {
            let proto::ScopedRds { scoped_rds_config_source, srds_resources_locator } = discovered;
            refuse!(srds_resources_locator);
            let scopes = source::ads_only(scoped_rds_config_source).within("scoped_rds.scoped_rds_config_source")?;
            context.uses.wait_for_scopes(ScopesUse { scopes, routes });
            None
        }
        None => return Err(Invalid::new("has no scopes; give scoped_route_configurations_list or scoped_rds")),
    };
    Ok(ScopedRoutes { key, listed })
}

fn key_builder(value: scoped_routes::ScopeKeyBuilder) -> Result<ScopeKeyBuilder> {
    let scoped_routes::ScopeKeyBuilder { fragments } = value;
    if fragments.is_empty() {
        return Err(Invalid::field("fragments", "is empty"));
    }
    Ok(ScopeKeyBuilder { fragments: each(fragments, "fragments", fragment)? })
}

fn fragment(value: scope_key_builder::FragmentBuilder) -> Result<HeaderFragment> {
    let scope_key_builder::FragmentBuilder { r#type } = value;
    match r#type {
        Some(scope_key_builder::fragment_builder::Type::HeaderValueExtractor(value)) => extractor(value).within("header_value_extractor"),
        None => Err(Invalid::field("header_value_extractor", "is missing")),
    }
}

fn extractor(value: builder::HeaderValueExtractor) -> Result<HeaderFragment> {
    let builder::HeaderValueExtractor { name, element_separator, extract_type } = value;
    let element = match extract_type {
        Some(builder::header_value_extractor::ExtractType::Index(index)) => {
            if index > 0 && element_separator.is_empty() {
                return Err(Invalid::field("index", "must be 0 without an element_separator"));
            }
            Element::At(index as usize)
        }
        Some(builder::header_value_extractor::ExtractType::Element(element)) => {
            let builder::header_value_extractor::KvElement { separator, key } = element;
            if separator.is_empty() || key.is_empty() {
                return Err(Invalid::field("element", "needs a separator and a key"));
            }
            Element::Value { key: key.into(), separator: separator.into() }
        }
        None => return Err(Invalid::new("says of no element; give index or element")),
    };
    Ok(HeaderFragment { name: matcher::header_name(&name).within("name")?, separator: element_separator.into(), element })
}

fn listed(value: proto::ScopedRouteConfigurationsList, routes: FetchTimeout, context: &mut Context<'_>) -> Result<Scopes> {
    let proto::ScopedRouteConfigurationsList { scoped_route_configurations } = value;
    let field = "scoped_route_configurations";
    let mut scopes = Scopes::default();
    for (index, value) in scoped_route_configurations.into_iter().enumerate() {
        let Scope { key, target, on_demand } = scope(value, context, route::table).within_item(field, index)?;
        if let (RouteTarget::Discovered(id, _), false) = (&target, on_demand) {
            context.uses_route_table(*id, routes);
        }
        if scopes.insert(key, target).is_some() {
            return Err(Invalid::field("key", "is that of another scope")).within_item(field, index);
        }
    }
    Ok(scopes)
}

/// A scope as it was sent: virtual hosts of its own routes are decoded one by one, as in [`route::Sent`].
pub(crate) struct Sent<'a> {
    pub(crate) rest: route_proto::ScopedRouteConfiguration,
    hosts: Vec<&'a [u8]>,
}

impl<'a> Sent<'a> {
    pub(crate) fn open(body: &'a Any) -> Result<Self> {
        any::check::<route_proto::ScopedRouteConfiguration>(body).map_err(|e| Invalid::new(e.to_string()))?;
        let mut hosts = Vec::new();
        // ScopedRouteConfiguration.route_configuration, RouteConfiguration.virtual_hosts
        let rest = wire::take_out(&body.value, &[5, 2], &mut hosts);
        let rest = route_proto::ScopedRouteConfiguration::decode(rest.as_slice()).map_err(|e| Invalid::new(e.to_string()))?;
        Ok(Self { rest, hosts })
    }

    pub(crate) fn scope(self, context: &mut Context<'_>) -> Result<Scope> {
        let Self { rest, hosts } = self;
        scope(rest, context, |rest, context| route::Sent { rest, hosts }.table(context))
    }
}

/// One scope.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) key: Box<str>,
    pub(crate) target: RouteTarget,
    /// Its routes are discovered when a request wants them.
    pub(crate) on_demand: bool,
}

impl Scope {
    /// The routes that the scope waits for.
    pub(crate) fn waits_for(&self) -> Option<RouteTableId> {
        match self.target {
            RouteTarget::Discovered(id, _) if !self.on_demand => Some(id),
            _ => None,
        }
    }
}

fn scope<'c>(
    value: route_proto::ScopedRouteConfiguration,
    context: &mut Context<'c>,
    compile: impl FnOnce(route_proto::RouteConfiguration, &mut Context<'c>) -> Result<RouteTable>,
) -> Result<Scope> {
    let route_proto::ScopedRouteConfiguration { on_demand, name, route_configuration_name, route_configuration, key } = value;
    if name.is_empty() {
        return Err(Invalid::field("name", "is empty"));
    }
    let key = key.ok_or_else(|| Invalid::new("is missing")).and_then(key_of).within("key")?;
    let target = match (route_configuration, route_configuration_name.as_str()) {
        (Some(table), "") => RouteTarget::Inline(Arc::new(compile(table, context).within("route_configuration")?)),
        (None, name) if !name.is_empty() => {
            file_names::check(name).within("route_configuration_name")?;
            RouteTarget::Discovered(context.names.route_table(name), name.into())
        }
        (None, _) => return Err(Invalid::field("route_configuration_name", "is missing; give it or route_configuration")),
        (Some(_), _) => return Err(Invalid::field("route_configuration", "and route_configuration_name exclude each other")),
    };
    Ok(Scope { key, target, on_demand })
}

fn key_of(value: scope_proto::Key) -> Result<Box<str>> {
    let scope_proto::Key { fragments } = value;
    if fragments.is_empty() {
        return Err(Invalid::field("fragments", "is empty"));
    }
    let parts = each(fragments, "fragments", |scope_proto::key::Fragment { r#type }| match r#type {
        Some(scope_proto::key::fragment::Type::StringKey(text)) if !text.contains(BETWEEN) => Ok(text),
        Some(_) => Err(Invalid::field("string_key", "holds a character that no header does")),
        None => Err(Invalid::field("string_key", "is missing")),
    })?;
    Ok(parts.join("\0").into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crate::compile::Compiler;
    use crate::test_support::{ANY_80, LISTENER, manager, update};

    #[test]
    fn what_is_no_scope_is_refused_by_its_field() {
        let builder = "scope_key_builder: {fragments: [{header_value_extractor: {name: x, index: 0}}]}";
        let list = |scopes: &str| format!("{builder}, scoped_route_configurations_list: {{scoped_route_configurations: [{scopes}]}}");
        let scope = |more: &str| format!("{{name: a, key: {{fragments: [{{string_key: k}}]}}, {more}}}");
        let at = "scope_key_builder.fragments[0].header_value_extractor";
        let extractor = |text: &str| format!("scope_key_builder: {{fragments: [{{header_value_extractor: {{{text}}}}}]}}");
        let in_list = |index: u32| format!("scoped_route_configurations_list.scoped_route_configurations[{index}]");
        let cases = [
            ("scope_key_builder: {fragments: []}".to_owned(), "scope_key_builder.fragments: is empty".to_owned()),
            (extractor("name: x"), format!("{at}: says of no element")),
            (extractor("name: x, index: 1"), format!("{at}.index: must be 0")),
            (extractor("name: 'a b', index: 0"), format!("{at}.name: ")),
            (extractor("name: x, element: {separator: '='}"), format!("{at}.element: needs a separator and a key")),
            (builder.to_owned(), "has no scopes".to_owned()),
            (
                format!("{builder}, scoped_rds: {{scoped_rds_config_source: {{path: f}}}}"),
                "scoped_rds.scoped_rds_config_source: ".to_owned(),
            ),
            (list(&scope("on_demand: false")), format!("{}.route_configuration_name: is missing", in_list(0))),
            (list(&scope("route_configuration_name: \"f\\0r\"")), format!("{}.route_configuration_name: holds a zero byte", in_list(0))),
            (list("{name: a, key: {}, route_configuration_name: r}"), format!("{}.key.fragments: is empty", in_list(0))),
            (
                list(&[scope("route_configuration_name: r"), scope("route_configuration_name: s")].join(", ")),
                format!("{}.key: is that of another scope", in_list(1)),
            ),
            (
                list(&scope("route_configuration: {name: r, virtual_hosts: [{name: v, domains: [a, a]}]}")),
                format!("{}.route_configuration.virtual_hosts[0].domains[1]: `a` is already", in_list(0)),
            ),
        ];
        for (text, expected) in cases {
            let hcm = manager(&format!("scoped_routes: {{name: s, {text}}}"));
            let listener = format!("{{name: l, address: {ANY_80}, filter_chains: [{{filters: [{hcm}]}}]}}");
            let listener = update::<lateen_proto::envoy::config::listener::v3::Listener>(&listener);
            let rejected = Compiler::new().apply(LISTENER, vec![listener], &[], Instant::now());
            let expected = format!(
                "filter_chains[0].filters[0].scoped_routes{}{expected}",
                if expected.contains(": ") && !expected.starts_with("has") { "." } else { ": " }
            );
            assert!(rejected.first().is_some_and(|r| r.reason.starts_with(&expected)), "{rejected:?}\nexpected {expected}");
        }
    }
}
