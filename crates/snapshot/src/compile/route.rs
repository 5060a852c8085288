//! Route configurations: virtual hosts, their domains and routes.
use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::route::v3::{self as proto, redirect_action, route, route_match};
use lateen_proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use lateen_proto::{Any, any, wire};
use lateen_telemetry::istio::CatchAll;
use prost::Message;

use super::common::{data, metadata_text, open, port, runtime_fraction};
use super::context::Context;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::virtual_host::{buffer_limit, one_virtual_host};
use super::{action, filter, header, left_out, matcher, metadata, shared, tracing};
use crate::http::HeaderChanges;
use crate::path_template::PathTemplate;
use crate::route::{Action, DirectResponse, Domains, PathMatch, Redirect, RedirectPath, Route, RouteMatch, RouteTable};

/// Envoy's default for `max_direct_response_body_size_bytes`.
const DIRECT_BODY_BYTES: u32 = 4096;

/// What routes inherit from the table and virtual host around them.
#[derive(Debug, PartialEq)]
pub(crate) struct Inherited {
    pub(crate) mirrors: Vec<proto::route_action::RequestMirrorPolicy>,
    pub(crate) direct_body_limit: usize,
}

impl Inherited {
    pub(crate) fn of(value: &proto::RouteConfiguration) -> Self {
        Self {
            mirrors: value.request_mirror_policies.clone(),
            direct_body_limit: direct_body_limit(value.max_direct_response_body_size_bytes),
        }
    }
}

fn direct_body_limit(given: Option<u32>) -> usize {
    given.unwrap_or(DIRECT_BODY_BYTES) as usize
}

pub(crate) fn table(mut value: proto::RouteConfiguration, context: &mut Context<'_>) -> Result<RouteTable> {
    let hosts = std::mem::take(&mut value.virtual_hosts);
    build(value, hosts.into_iter().map(Ok), context)
}

/// A route configuration as it was sent: its virtual hosts are decoded one by one. Decoded, thousands of them take twenty times
/// their bytes, and what is made of them meanwhile would lie between their remains and keep that memory with the process.
pub(crate) struct Sent<'a> {
    pub(crate) rest: proto::RouteConfiguration,
    pub(crate) hosts: Vec<&'a [u8]>,
}

impl<'a> Sent<'a> {
    pub(crate) fn open(body: &'a Any) -> Result<Self> {
        any::check::<proto::RouteConfiguration>(body).map_err(|e| Invalid::new(e.to_string()))?;
        let mut hosts = Vec::new();
        // RouteConfiguration.virtual_hosts
        let rest = wire::take_out(&body.value, &[2], &mut hosts);
        let rest = proto::RouteConfiguration::decode(rest.as_slice()).map_err(|e| Invalid::new(e.to_string()))?;
        Ok(Self { rest, hosts })
    }

    pub(crate) fn table(self, context: &mut Context<'_>) -> Result<RouteTable> {
        let decoded = |bytes: &[u8]| proto::VirtualHost::decode(bytes).map_err(|e| Invalid::new(e.to_string()));
        build(self.rest, self.hosts.into_iter().map(decoded), context)
    }
}

fn build(
    value: proto::RouteConfiguration,
    hosts: impl ExactSizeIterator<Item = Result<proto::VirtualHost>>,
    context: &mut Context<'_>,
) -> Result<RouteTable> {
    let proto::RouteConfiguration {
        name,
        virtual_hosts: _taken,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata,
        route_specifiers,
    } = value;
    // A route to an unknown cluster answers 503 (or as configured) whether clusters are validated or not.
    harmless!(validate_clusters, metadata);
    refuse!(cluster_specifier_plugins, route_specifiers);
    if vhds.is_some() {
        return Err(Invalid::field("vhds", "is for routes that are discovered themselves; give rds"));
    }
    let by_header = (!vhost_header.is_empty()).then(|| matcher::header_name(&vhost_header)).transpose().within("vhost_header")?;
    let internal_only_headers = internal_only_headers
        .iter()
        .enumerate()
        .map(|(i, name)| matcher::header_name(name).within_item("internal_only_headers", i))
        .collect::<Result<_>>()?;
    let inherited =
        Inherited { mirrors: request_mirror_policies, direct_body_limit: direct_body_limit(max_direct_response_body_size_bytes) };
    let request = header::mutations(request_headers_to_add, request_headers_to_remove, "request")?;
    let response = header::mutations(response_headers_to_add, response_headers_to_remove, "response")?;
    let mut table = RouteTable {
        name: name.into(),
        virtual_hosts: Vec::with_capacity(hosts.len()),
        exact: Domains::with_capacity_and_hasher(hosts.len(), Default::default()),
        suffixes: Vec::new(),
        prefixes: Vec::new(),
        catch_all: None,
        discovers_hosts: None,
        ignore_port_in_host: ignore_port_in_host_matching,
        vhost_header: by_header,
        ignore_path_parameters: ignore_path_parameters_in_path_matching,
        internal_only_headers,
        per_route: filter::per_route(typed_per_filter_config)?,
        headers: HeaderChanges { request, response },
        most_specific_header_mutations_wins,
    };
    let mut names = HashSet::with_capacity(hosts.len());
    for (index, host) in hosts.enumerate() {
        let mut host = host.within_item("virtual_hosts", index)?;
        if !names.insert(host.name.clone()) {
            return Err(Invalid::field("name", format!("`{}` is used by two virtual hosts; names must differ", host.name)))
                .within_item("virtual_hosts", index);
        }
        let domains = std::mem::take(&mut host.domains);
        let id = u32::try_from(index).unwrap_or(u32::MAX);
        add_domains(&mut table, domains, id).within_item("virtual_hosts", index)?;
        let noted = left_out::count();
        let host = one_virtual_host(host, &inherited, context).within_item("virtual_hosts", index)?;
        left_out::within_item(noted, "virtual_hosts", index);
        table.virtual_hosts.push(host);
    }
    table.exact.shrink_to_fit();
    table.sort_wildcards();
    unique(&table.suffixes, |suffix| format!("*{suffix}"))?;
    unique(&table.prefixes, |prefix| format!("{prefix}*"))?;
    Ok(table)
}

/// Wildcards in their order: equal ones stand beside each other.
fn unique(sorted: &[(Box<str>, u32)], shown: impl Fn(&str) -> String) -> Result<()> {
    for pair in sorted.windows(2) {
        if let [(one, _), (other, host)] = pair
            && one == other
        {
            return Err(taken(&shown(other)).inside("domains")).within_item("virtual_hosts", *host as usize);
        }
    }
    Ok(())
}

fn taken(domain: &str) -> Invalid {
    Invalid::new(format!("`{domain}` is already a domain of another virtual host; a domain may occur once"))
}

fn add_domains(table: &mut RouteTable, domains: Vec<String>, id: u32) -> Result<()> {
    if domains.is_empty() {
        return Err(Invalid::field("domains", "is empty; name at least one domain, or `*`"));
    }
    for (index, domain) in domains.into_iter().enumerate() {
        add_domain(table, &domain.to_ascii_lowercase(), id).within_item("domains", index)?;
    }
    Ok(())
}

/// Whether these can be the domains of a virtual host; they are in lower case.
pub(crate) fn check_domains(domains: &[String]) -> Result<()> {
    if domains.is_empty() {
        return Err(Invalid::field("domains", "is empty; name at least one domain, or `*`"));
    }
    let mut seen = HashSet::new();
    for (index, domain) in domains.iter().enumerate() {
        check_domain(domain).within_item("domains", index)?;
        if !seen.insert(domain) {
            return Err(Invalid::new("is given twice")).within_item("domains", index);
        }
    }
    Ok(())
}

fn check_domain(domain: &str) -> Result<()> {
    if domain.is_empty() {
        return Err(Invalid::new("is empty"));
    }
    let rest = domain.strip_prefix('*').or_else(|| domain.strip_suffix('*')).unwrap_or_default();
    if rest.contains('*') {
        return Err(Invalid::new(format!("`{domain}` has two wildcards; one is allowed, at the start or the end")));
    }
    Ok(())
}

pub(crate) fn add_domain(table: &mut RouteTable, domain: &str, id: u32) -> Result<()> {
    check_domain(domain)?;
    if domain == "*" {
        if table.catch_all.is_some() {
            return Err(Invalid::new("only one virtual host may have the domain `*`"));
        }
        table.catch_all = Some(id);
    } else if let Some(suffix) = domain.strip_prefix('*') {
        table.suffixes.push((suffix.into(), id));
    } else if let Some(prefix) = domain.strip_suffix('*') {
        table.prefixes.push((prefix.into(), id));
    } else if table.exact.insert(domain.into(), id).is_some() {
        return Err(taken(domain));
    }
    Ok(())
}

/// A route, or the same one as elsewhere in the table.
pub(super) fn shared_route(value: proto::Route, inherited: &Inherited, context: &mut Context<'_>) -> Result<Arc<Route>> {
    if !inherited.mirrors.is_empty() || !shared::is_shareable(&value) {
        return one_route(value, inherited, context).map(Arc::new);
    }
    match context.shared.routes.get(&value) {
        Ok(known) => {
            // What is compiled now may be another virtual host than the one that it was seen in, with uses of its own.
            context.uses.clusters.extend(shared::clusters(&known));
            Ok(known)
        }
        Err(key) => {
            let route = one_route(value, inherited, context)?;
            Ok(context.shared.routes.keep(key, route))
        }
    }
}

fn one_route(value: proto::Route, inherited: &Inherited, context: &mut Context<'_>) -> Result<Route> {
    let proto::Route {
        name,
        r#match,
        metadata,
        decorator,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        stat_prefix,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = value;
    harmless!(stat_prefix);
    refuse!(route_specifiers);
    let request = header::mutations(request_headers_to_add, request_headers_to_remove, "request")?;
    let response = header::mutations(response_headers_to_add, response_headers_to_remove, "response")?;
    let matches = r#match.ok_or_else(|| Invalid::field("match", "is missing; use `prefix: /` for everything"))?;
    let matches = match context.shared.matches.get(&matches) {
        Ok(known) => known,
        Err(key) => context.shared.matches.keep(key, route_match(matches).within("match")?),
    };
    let action = match action {
        Some(route::Action::Route(a)) => Action::Forward(Box::new(action::forward(*a, &matches, inherited, context).within("route")?)),
        Some(route::Action::Redirect(r)) => Action::Redirect(Box::new(redirect(r).within("redirect")?)),
        Some(route::Action::DirectResponse(r)) => {
            Action::Direct(Box::new(direct(r, inherited.direct_body_limit).within("direct_response")?))
        }
        Some(route::Action::NonForwardingAction(_)) => Action::NonForwarding,
        Some(route::Action::FilterAction(_)) => return Err(Invalid::unsupported("filter_action")),
        None => return Err(Invalid::new("has no action; give route, redirect or direct_response")),
    };
    let proto::Decorator { operation, propagate } = decorator.unwrap_or_default();
    let decorator = (!operation.is_empty()).then(|| operation.into());
    let provenance = metadata_text(metadata.as_ref(), "istio", "config").map(Into::into);
    Ok(Route {
        catch_all: CatchAll::of_route(&name),
        name: name.into(),
        matches,
        action,
        headers: HeaderChanges { request, response },
        per_route: filter::per_route(typed_per_filter_config)?,
        buffer_limit: buffer_limit(per_request_buffer_limit_bytes, request_body_buffer_limit)?,
        decorator,
        decorator_propagates: propagate.unwrap_or(true),
        tracing: tracing.map(|t| tracing::of_route(t).map(Box::new)).transpose().within("tracing")?,
        provenance,
    })
}

pub(crate) fn route_match(value: proto::RouteMatch) -> Result<RouteMatch> {
    use route_match::PathSpecifier;
    let proto::RouteMatch {
        case_sensitive,
        runtime_fraction: fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = value;
    refuse!(tls_context, filter_state);
    let case_sensitive = case_sensitive.unwrap_or(true);
    let fold = |text: String| if case_sensitive { text } else { text.to_ascii_lowercase() }.into_boxed_str();
    let path = match path_specifier {
        Some(PathSpecifier::Prefix(text)) => PathMatch::Prefix(fold(text)),
        Some(PathSpecifier::Path(text)) => PathMatch::Exact(fold(text)),
        Some(PathSpecifier::SafeRegex(r)) => PathMatch::Regex(matcher::whole(r).within("safe_regex")?),
        Some(PathSpecifier::ConnectMatcher(_)) => PathMatch::Connect,
        Some(PathSpecifier::PathSeparatedPrefix(text)) => PathMatch::PathSeparatedPrefix(separated(fold(text))?),
        Some(PathSpecifier::PathMatchPolicy(policy)) => PathMatch::Template(uri_template(policy).within("path_match_policy")?),
        None => return Err(Invalid::new("has no path; use `prefix: /` for everything")),
    };
    Ok(RouteMatch {
        path,
        case_sensitive,
        headers: matcher::headers(headers, "headers")?,
        query: matcher::queries(query_parameters, "query_parameters")?,
        cookies: matcher::cookies(cookies, "cookies")?,
        metadata: dynamic_metadata
            .into_iter()
            .enumerate()
            .map(|(i, m)| metadata::matcher(m).within_item("dynamic_metadata", i))
            .collect::<Result<_>>()?,
        grpc_only: grpc.is_some(),
        fraction: fraction.map(runtime_fraction).transpose().within("runtime_fraction")?,
    })
}

/// The only policy there is: a template.
pub(crate) fn uri_template(value: core::TypedExtensionConfig) -> Result<PathTemplate> {
    let core::TypedExtensionConfig { name, typed_config } = value;
    match typed_config {
        Some(config) if any::is::<UriTemplateMatchConfig>(&config) => {
            let UriTemplateMatchConfig { path_template } = open(&config)?;
            PathTemplate::compile(&path_template)
                .map_err(|why| Invalid::field("typed_config.path_template", format!("`{path_template}`: {why}")))
        }
        _ => Err(Invalid::new(format!("{name} is not supported; envoy.path.match.uri_template.uri_template_matcher is"))),
    }
}

fn separated(text: Box<str>) -> Result<Box<str>> {
    if text.len() > 1 && text.starts_with('/') && !text.ends_with('/') && !text.contains(['?', '#']) {
        return Ok(text);
    }
    Err(Invalid::field("path_separated_prefix", format!("`{text}` must begin with a slash, end without one, and hold no `?` or `#`")))
}

fn redirect(value: proto::RedirectAction) -> Result<Redirect> {
    use redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let proto::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = value;
    let (https, scheme) = match scheme_rewrite_specifier {
        None => (false, None),
        Some(SchemeRewriteSpecifier::HttpsRedirect(https)) => (https, None),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if scheme.is_empty() => (false, None),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => (false, Some(scheme.to_ascii_lowercase().into_boxed_str())),
    };
    let path = match path_rewrite_specifier {
        None => RedirectPath::Same,
        Some(PathRewriteSpecifier::PathRedirect(path) | PathRewriteSpecifier::PrefixRewrite(path)) if path.is_empty() => RedirectPath::Same,
        Some(PathRewriteSpecifier::PathRedirect(path)) => RedirectPath::Full(clean(path, "path_redirect")?),
        Some(PathRewriteSpecifier::PrefixRewrite(path)) => RedirectPath::Prefix(clean(path, "prefix_rewrite")?),
        Some(PathRewriteSpecifier::RegexRewrite(r)) => {
            let (pattern, substitution) = matcher::substitution(r).within("regex_rewrite")?;
            RedirectPath::Regex { pattern, substitution }
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => return Err(Invalid::unsupported("path_rewrite")),
    };
    let status = match RedirectResponseCode::try_from(response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => return Err(Invalid::field("response_code", format!("{response_code} is not known"))),
    };
    let host = (!host_redirect.is_empty()).then(|| clean(host_redirect, "host_redirect")).transpose()?;
    let port = (port_redirect != 0).then(|| port(port_redirect).within("port_redirect")).transpose()?;
    Ok(Redirect { https, scheme, host, port, path, status, strip_query })
}

/// Text that becomes part of a header or request line must not end it.
pub(crate) fn clean(text: String, field: &str) -> Result<Box<str>> {
    if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err(Invalid::field(field, "holds a control character"));
    }
    Ok(text.into_boxed_str())
}

fn direct(value: proto::DirectResponseAction, limit: usize) -> Result<DirectResponse> {
    let proto::DirectResponseAction { status, body, body_format } = value;
    refuse!(body_format);
    let status = u16::try_from(status)
        .ok()
        .filter(|s| (200..600).contains(s))
        .and_then(|s| StatusCode::from_u16(s).ok())
        .ok_or_else(|| Invalid::field("status", format!("{status} is not between 200 and 599")))?;
    let body = match body {
        None | Some(core::DataSource { specifier: None, .. }) => Bytes::new(),
        Some(source) => Bytes::from(data(source).within("body")?),
    };
    if body.len() > limit {
        let reason = format!("has {} bytes, more than the {limit} of max_direct_response_body_size_bytes", body.len());
        return Err(Invalid::field("body", reason));
    }
    Ok(DirectResponse { status, body })
}
