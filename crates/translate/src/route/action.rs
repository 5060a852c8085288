//! From a VirtualService's route to what is done with a request: destinations, rewrites, retries, mirrors, faults.
use std::collections::BTreeMap;
use std::time::Duration;

use lateen_core::framing::is_framing;
use lateen_model::kinds::destination_rule::ConsistentHashLb;
use lateen_model::kinds::virtual_service::{
    CorsPolicy, Destination, FaultAbort, FaultDelay, HeaderOperations, Headers, HttpDirectResponse, HttpFaultInjection, HttpMirrorPolicy,
    HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, RedirectPortSelection, UnmatchedPreflights,
};
use lateen_proto::envoy::extensions::filters::common::fault::v3 as fault_common_v3;
use lateen_proto::envoy::extensions::filters::http::cors::v3 as cors_v3;
use lateen_proto::envoy::extensions::filters::http::fault::v3 as fault_v3;
use lateen_proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;

use super::matching::string_matcher;
use crate::names;
use crate::wire::{self, any, core_v3, route_v3, type_v3};
use crate::world::services::Service;

/// How a destination becomes a cluster, and which hash its requests are balanced by.
pub(crate) trait Destinations {
    fn service(&self, host: &str) -> Option<&Service>;
    fn hash(&self, destination: &Destination) -> Option<ConsistentHashLb>;
}

/// The cluster of a destination, for a route of a listener on `listener_port`.
pub(crate) fn cluster_of(destination: &Destination, destinations: &dyn Destinations, listener_port: u16) -> String {
    if destination.host.is_empty() {
        return names::UNKNOWN_SERVICE.to_owned();
    }
    let service = destinations.service(&destination.host);
    let host = service.and_then(|service| service.external_name.as_deref()).unwrap_or(&destination.host);
    let port = match (&destination.port, service) {
        (Some(port), _) => port.number,
        (None, Some(service)) if service.ports.len() == 1 => service.ports[0].number,
        _ => listener_port,
    };
    names::outbound(port, destination.subset.as_deref().unwrap_or_default(), host)
}

/// Header changes of a route or destination; `host` names the new authority, as Envoy cannot set it like a header.
#[derive(Default)]
pub(crate) struct HeaderChanges {
    pub(crate) request_add: Vec<core_v3::HeaderValueOption>,
    pub(crate) request_remove: Vec<String>,
    pub(crate) response_add: Vec<core_v3::HeaderValueOption>,
    pub(crate) response_remove: Vec<String>,
    pub(crate) authority: Option<String>,
}

impl HeaderChanges {
    pub(crate) fn of(headers: Option<&Headers>) -> Self {
        let Some(headers) = headers else { return Self::default() };
        let empty = HeaderOperations::default();
        let request = headers.request.as_ref().unwrap_or(&empty);
        let response = headers.response.as_ref().unwrap_or(&empty);
        Self {
            request_add: additions(request),
            request_remove: removals(request),
            response_add: additions(response),
            response_remove: removals(response),
            authority: authority(&request.set).or_else(|| authority(&request.add)),
        }
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

/// Names that a proxy refuses to change as headers; whoever wrote such a rule was warned.
fn is_internal(name: &str) -> bool {
    name.starts_with(':') || name.eq_ignore_ascii_case("host") || is_framing(name)
}

fn authority(headers: &BTreeMap<String, String>) -> Option<String> {
    headers.iter().rfind(|(name, value)| is_authority(name) && !value.is_empty()).map(|(_, value)| value.clone())
}

fn additions(operations: &HeaderOperations) -> Vec<core_v3::HeaderValueOption> {
    use core_v3::header_value_option::HeaderAppendAction::{AppendIfExistsOrAdd, OverwriteIfExistsOrAdd};
    let option = |action: core_v3::header_value_option::HeaderAppendAction| {
        move |(name, value): (&String, &String)| core_v3::HeaderValueOption {
            header: Some(core_v3::HeaderValue { key: name.clone(), value: value.clone(), ..Default::default() }),
            append_action: action as i32,
            ..Default::default()
        }
    };
    let sets = operations.set.iter().filter(|(name, _)| !is_internal(name)).map(option(OverwriteIfExistsOrAdd));
    sets.chain(operations.add.iter().filter(|(name, _)| !is_internal(name)).map(option(AppendIfExistsOrAdd))).collect()
}

fn removals(operations: &HeaderOperations) -> Vec<String> {
    operations.remove.iter().filter(|name| !is_internal(name)).cloned().collect()
}

/// What a route that forwards does. `route_headers` are the route's own changes, which a single destination adds to.
pub(crate) fn forward(
    route: &HttpRoute,
    destinations: &dyn Destinations,
    listener_port: u16,
    default_retry: Option<&HttpRetry>,
    changes: &mut HeaderChanges,
) -> route_v3::RouteAction {
    use route_v3::route_action::{ClusterSpecifier, HostRewriteSpecifier};
    let mut action = timeouts(route.timeout);
    let mut authority = changes.authority.take();
    if let Some(rewrite) = &route.rewrite {
        rewrite_path(&mut action, rewrite);
        authority = rewrite.authority.clone().filter(|host| !host.is_empty()).or(authority);
    }
    action.request_mirror_policies = mirrors(route, destinations, listener_port);
    let mut hashed = false;
    if let [only] = &route.route[..] {
        action.cluster_specifier = Some(ClusterSpecifier::Cluster(cluster_of(&only.destination, destinations, listener_port)));
        let own = HeaderChanges::of(only.headers.as_ref());
        changes.request_add.extend(own.request_add);
        changes.request_remove.extend(own.request_remove);
        changes.response_add.extend(own.response_add);
        changes.response_remove.extend(own.response_remove);
        authority = authority.or(own.authority);
        if let Some(policy) = destinations.hash(&only.destination).as_ref().and_then(hash_policy) {
            action.hash_policy.push(policy);
            hashed = true;
        }
    } else {
        action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(weighted(route, destinations, listener_port)));
        for to in route.route.iter().filter(|to| to.weight > 0) {
            action.hash_policy.extend(destinations.hash(&to.destination).as_ref().and_then(hash_policy));
        }
    }
    action.host_rewrite_specifier = authority.map(HostRewriteSpecifier::HostRewriteLiteral);
    action.retry_policy = retry_policy(route.retries.as_ref().or(default_retry), hashed);
    action
}

/// No timeout unless one is set: Envoy's own default is 15 seconds.
pub(crate) fn timeouts(timeout: Option<Duration>) -> route_v3::RouteAction {
    let timeout = wire::duration(timeout.unwrap_or_default());
    #[allow(deprecated)] // Its successor, max_stream_duration, also ends streams that make progress.
    route_v3::RouteAction { timeout: Some(timeout), max_grpc_timeout: Some(timeout), ..Default::default() }
}

fn rewrite_path(action: &mut route_v3::RouteAction, rewrite: &HttpRewrite) {
    if let Some(regex) = &rewrite.uri_regex_rewrite {
        action.regex_rewrite = Some(wire::matcher_v3::RegexMatchAndSubstitute {
            pattern: Some(wire::regex_matcher(&regex.r#match)),
            substitution: regex.rewrite.clone(),
        });
    } else if let Some(uri) = &rewrite.uri {
        action.prefix_rewrite.clone_from(uri);
    }
}

/// Destinations of weight 0 get nothing, and Envoy would not take a cluster that weighs nothing alone.
fn weighted(route: &HttpRoute, destinations: &dyn Destinations, listener_port: u16) -> route_v3::WeightedCluster {
    use route_v3::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let clusters = route.route.iter().filter(|to| to.weight > 0).map(|to| {
        let changes = HeaderChanges::of(to.headers.as_ref());
        route_v3::weighted_cluster::ClusterWeight {
            name: cluster_of(&to.destination, destinations, listener_port),
            weight: Some(to.weight),
            request_headers_to_add: changes.request_add,
            request_headers_to_remove: changes.request_remove,
            response_headers_to_add: changes.response_add,
            response_headers_to_remove: changes.response_remove,
            host_rewrite_specifier: changes.authority.map(HostRewriteSpecifier::HostRewriteLiteral),
            ..Default::default()
        }
    });
    route_v3::WeightedCluster { clusters: clusters.collect(), ..Default::default() }
}

fn mirrors(route: &HttpRoute, destinations: &dyn Destinations, listener_port: u16) -> Vec<route_v3::route_action::RequestMirrorPolicy> {
    let mut policies = Vec::new();
    if let Some(mirror) = &route.mirror {
        // Absent means everything, 0 means nothing; the old whole-number spelling counts when the new one is absent.
        let fraction = match (route.mirror_percentage, route.mirror_percent) {
            (Some(percent), _) => (percent.0 > 0.0).then(|| wire::million(percent.0)),
            (None, Some(percent)) => (percent > 0).then(|| wire::hundred(percent.min(100))),
            (None, None) => Some(wire::hundred(100)),
        };
        policies.extend(fraction.map(|fraction| mirror_policy(mirror, fraction, destinations, listener_port)));
    }
    for HttpMirrorPolicy { destination, percentage } in &route.mirrors {
        let fraction = match percentage {
            Some(percent) => (percent.0 > 0.0).then(|| wire::million(percent.0)),
            None => Some(wire::hundred(100)),
        };
        policies.extend(fraction.map(|fraction| mirror_policy(destination, fraction, destinations, listener_port)));
    }
    policies
}

fn mirror_policy(
    to: &Destination,
    fraction: type_v3::FractionalPercent,
    destinations: &dyn Destinations,
    listener_port: u16,
) -> route_v3::route_action::RequestMirrorPolicy {
    route_v3::route_action::RequestMirrorPolicy {
        cluster: cluster_of(to, destinations, listener_port),
        runtime_fraction: Some(core_v3::RuntimeFractionalPercent { default_value: Some(fraction), ..Default::default() }),
        trace_sampled: Some(false),
        disable_shadow_host_suffix_append: true,
        ..Default::default()
    }
}

/// Istio's conditions for a retry when a rule names none.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

/// The retry policy of a route: two attempts by default, none where the rule says 0.
///
/// With a hash, a retry that avoided the endpoint it is hashed to would defeat it.
pub(crate) fn retry_policy(retries: Option<&HttpRetry>, hashed: bool) -> Option<route_v3::RetryPolicy> {
    let elsewhere = vec![route_v3::retry_policy::RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(route_v3::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any(&PreviousHostsPredicate::default()))),
    }];
    let mut policy = route_v3::RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: Some(2),
        host_selection_retry_max_attempts: 5,
        retry_host_predicate: if hashed { Vec::new() } else { elsewhere.clone() },
        ..Default::default()
    };
    let Some(retries) = retries else { return Some(policy) };
    policy.num_retries = Some(u32::try_from(retries.attempts).ok().filter(|attempts| *attempts > 0)?);
    if let Some(conditions) = retries.retry_on.as_deref().filter(|text| !text.is_empty()) {
        (policy.retry_on, policy.retriable_status_codes) = conditions_and_codes(conditions);
    }
    policy.per_try_timeout = retries.per_try_timeout.map(wire::duration);
    if let Some(ignore) = retries.retry_ignore_previous_hosts {
        policy.retry_host_predicate = if ignore { elsewhere } else { Vec::new() };
    }
    if let Some(base) = retries.backoff.filter(|base| !base.is_zero()) {
        policy.retry_back_off =
            Some(route_v3::retry_policy::RetryBackOff { base_interval: Some(wire::duration(base)), max_interval: None });
    }
    Some(policy)
}

/// Numbers among the conditions are status codes.
fn conditions_and_codes(text: &str) -> (String, Vec<u32>) {
    let mut codes = Vec::new();
    let mut conditions = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.parse::<u32>() {
            Ok(code) if (100..600).contains(&code) => codes.push(code),
            _ => conditions.push(part),
        }
    }
    if !codes.is_empty() && !conditions.contains(&"retriable-status-codes") {
        conditions.push("retriable-status-codes");
    }
    (conditions.join(","), codes)
}

/// What requests are hashed by.
pub(crate) fn hash_policy(hash: &ConsistentHashLb) -> Option<route_v3::route_action::HashPolicy> {
    use route_v3::route_action::hash_policy::{ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter};
    let specifier = if let Some(name) = &hash.http_header_name {
        PolicySpecifier::Header(Header { header_name: name.clone(), ..Default::default() })
    } else if let Some(cookie) = &hash.http_cookie {
        let attribute = |a: &lateen_model::kinds::destination_rule::CookieAttribute| CookieAttribute {
            name: a.name.clone(),
            value: a.value.clone().unwrap_or_default(),
        };
        PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            ttl: cookie.ttl.map(wire::duration),
            path: cookie.path.clone().unwrap_or_default(),
            attributes: cookie.attributes.iter().map(attribute).collect(),
        })
    } else if let Some(source_ip) = hash.use_source_ip {
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip })
    } else {
        PolicySpecifier::QueryParameter(QueryParameter { name: hash.http_query_parameter_name.clone()? })
    };
    Some(route_v3::route_action::HashPolicy { policy_specifier: Some(specifier), ..Default::default() })
}

/// A redirect; nothing when its code is not one that Envoy has.
pub(crate) fn redirect(redirect: &HttpRedirect, port: u16, tls: bool) -> Option<route_v3::RedirectAction> {
    use route_v3::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let code = match redirect.redirect_code.unwrap_or(301) {
        0 | 301 => RedirectResponseCode::MovedPermanently,
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => return None,
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let path = match redirect.prefix_rewrite.as_ref().filter(|prefix| !prefix.is_empty()) {
        Some(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix.clone()),
        None => PathRewriteSpecifier::PathRedirect(text(&redirect.uri)),
    };
    let scheme = redirect.scheme.clone().filter(|scheme| !scheme.is_empty());
    let effective = scheme.as_deref().unwrap_or(if tls { "https" } else { "http" });
    let wanted = match (redirect.port, redirect.derive_port) {
        (Some(port), _) => port,
        (None, Some(RedirectPortSelection::FromRequestPort)) => port,
        _ => 0,
    };
    // A port that the scheme implies is not written out.
    let implied = matches!((wanted, effective), (80, "http") | (443, "https"));
    Some(route_v3::RedirectAction {
        host_redirect: text(&redirect.authority),
        port_redirect: if implied { 0 } else { u32::from(wanted) },
        response_code: code as i32,
        scheme_rewrite_specifier: scheme.map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: Some(path),
        ..Default::default()
    })
}

pub(crate) fn direct_response(response: &HttpDirectResponse) -> route_v3::DirectResponseAction {
    use core_v3::data_source::Specifier;
    let body = response.body.as_ref().map(|body| core_v3::DataSource {
        specifier: Some(match &body.string {
            Some(text) => Specifier::InlineString(text.clone()),
            None => Specifier::InlineBytes(body.content().to_vec().into()),
        }),
        ..Default::default()
    });
    route_v3::DirectResponseAction { status: u32::from(response.status), body, ..Default::default() }
}

/// A fault; a missing percentage is 0, so that nothing happens.
pub(crate) fn fault(fault: &HttpFaultInjection) -> Option<fault_v3::HttpFault> {
    let delay = fault.delay.as_ref().and_then(fault_delay);
    let abort = fault.abort.as_ref().and_then(fault_abort);
    (delay.is_some() || abort.is_some()).then(|| fault_v3::HttpFault { delay, abort, ..Default::default() })
}

fn fault_delay(delay: &FaultDelay) -> Option<fault_common_v3::FaultDelay> {
    let percentage = match delay.percentage {
        Some(percent) => wire::million(percent.0),
        None => wire::hundred(delay.percent.unwrap_or(0).min(100)),
    };
    Some(fault_common_v3::FaultDelay {
        percentage: Some(percentage),
        fault_delay_secifier: Some(fault_common_v3::fault_delay::FaultDelaySecifier::FixedDelay(wire::duration(delay.fixed_delay?))),
    })
}

fn fault_abort(abort: &FaultAbort) -> Option<fault_v3::FaultAbort> {
    use fault_v3::fault_abort::ErrorType;
    let error = match (abort.http_status, &abort.grpc_status) {
        (Some(status), _) => ErrorType::HttpStatus(u32::from(status)),
        (None, Some(name)) => ErrorType::GrpcStatus(lateen_core::grpc::status(name)?),
        (None, None) => return None,
    };
    Some(fault_v3::FaultAbort {
        percentage: abort.percentage.map(|percent| wire::million(percent.0)),
        error_type: Some(error),
        ..Default::default()
    })
}

pub(crate) fn cors(policy: &CorsPolicy) -> cors_v3::CorsPolicy {
    let origins = if policy.allow_origins.is_empty() {
        // An exact `*` is how Envoy, too, writes "any origin".
        policy.allow_origin.iter().map(wire::exact).collect()
    } else {
        policy.allow_origins.iter().filter_map(string_matcher).collect()
    };
    cors_v3::CorsPolicy {
        allow_origin_string_match: origins,
        allow_methods: policy.allow_methods.join(","),
        allow_headers: policy.allow_headers.join(","),
        expose_headers: policy.expose_headers.join(","),
        max_age: policy.max_age.map(|age| age.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: policy.allow_credentials,
        filter_enabled: Some(core_v3::RuntimeFractionalPercent { default_value: Some(wire::hundred(100)), ..Default::default() }),
        forward_not_matching_preflights: Some(policy.unmatched_preflights != UnmatchedPreflights::Ignore),
        ..Default::default()
    }
}
