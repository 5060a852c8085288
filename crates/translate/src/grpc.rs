//! Resources for gRPC libraries that speak xDS themselves (`xds:///host:port`), without a proxy.
//!
//! They understand a part of what Envoy does: an API listener a target, routes, EDS clusters. They refuse a resource
//! with an unknown filter setting, so nothing is sent that they do not have (gRFC A27, A28, A31, A32, A33).
use lateen_model::kinds::destination_rule::ClientTlsMode;
use lateen_proto::envoy::extensions::filters::http as http_filters;

use crate::cluster::policy::{PortPolicy, apply_consistent_hash};
use crate::cluster::{bare_eds, service_provenance, tls};
use crate::listener::filters::FAULT;
use crate::names;
use crate::provenance::Provenance;
use crate::route::{domains, sidecar};
use crate::view::ProxyView;
use crate::wire::{self, any, cluster_v3, core_v3, hcm_v3, listener_v3, route_v3};
use crate::world::World;
use crate::world::services::{Resolution, Service};

/// The service that a client means by `host`, in full or abbreviated.
fn find<'a>(world: &'a World, view: &'a ProxyView, host: &str) -> Option<&'a std::sync::Arc<Service>> {
    world.service(&view.namespace, host).or_else(|| {
        world
            .visible_services(&view.namespace)
            .find(|service| domains::alternatives(&service.host, &view.dns_domain).iter().any(|form| form == host))
    })
}

/// The listener of a target `host:port`.
pub(crate) fn listener(world: &World, view: &ProxyView, name: &str) -> Option<(listener_v3::Listener, Vec<Provenance>)> {
    let (host, port) = name.rsplit_once(':')?;
    let service = find(world, view, host)?;
    let port = service.port(port.parse().ok()?)?;
    let filter = |name: &str, config| hcm_v3::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm_v3::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    let manager = hcm_v3::HttpConnectionManager {
        http_filters: vec![
            filter(FAULT, any(&http_filters::fault::v3::HttpFault::default())),
            filter("envoy.filters.http.router", any(&http_filters::router::v3::Router::default())),
        ],
        route_specifier: Some(hcm_v3::http_connection_manager::RouteSpecifier::Rds(hcm_v3::Rds {
            config_source: Some(wire::ads_with_default_wait()),
            route_config_name: names::outbound(port.number, "", &service.host),
        })),
        ..Default::default()
    };
    let listener = listener_v3::Listener {
        name: name.to_owned(),
        address: Some(wire::address(service.listen_address(view.wildcard()), u32::from(port.number))),
        api_listener: Some(listener_v3::ApiListener { api_listener: Some(any(&manager)) }),
        ..Default::default()
    };
    Some((listener, vec![service_provenance(service)]))
}

/// The targets that exist.
pub(crate) fn listener_names(world: &World, view: &ProxyView) -> Vec<String> {
    let services = world.visible_services(&view.namespace).filter(|service| service.resolution != Resolution::Alias);
    services.flat_map(|service| service.ports.iter().map(|port| names::domain(&service.host, port.number))).collect()
}

/// The routes named by an outbound cluster's name.
pub(crate) fn routes(world: &World, view: &ProxyView, name: &str) -> Option<(route_v3::RouteConfiguration, Vec<Provenance>)> {
    let target = names::parse_outbound(name)?;
    let mut built = sidecar::build(world, view, &format!("{}:{}", target.host, target.port))?;
    built.config.name = name.to_owned();
    built.config.ignore_port_in_host_matching = false;
    for vhost in &mut built.config.virtual_hosts {
        vhost.include_request_attempt_count = false;
        for route in &mut vhost.routes {
            // A setting of a filter that the library does not have would make it refuse all routes.
            route.typed_per_filter_config.retain(|filter, _| filter == FAULT);
            if let Some(route_v3::route::Action::Route(forward)) = &mut route.action {
                forward.max_stream_duration =
                    Some(route_v3::route_action::MaxStreamDuration { max_stream_duration: forward.timeout, ..Default::default() });
            }
        }
    }
    Some((built.config, built.provenance))
}

/// A cluster, balanced by round robin unless a rule asks for a hash.
pub(crate) fn cluster(world: &World, view: &ProxyView, name: &str) -> Option<(cluster_v3::Cluster, Vec<Provenance>)> {
    let target = names::parse_outbound(name)?;
    let service = world.service(&view.namespace, target.host)?;
    let port = service.port(target.port)?;
    let rule = world.rule(&view.namespace, service);
    let subset = rule.and_then(|rule| rule.spec.subsets.iter().find(|subset| subset.name == target.subset));
    if !target.subset.is_empty() && subset.is_none() {
        return None;
    }
    let (own, _) = PortPolicy::of(rule.and_then(|rule| rule.spec.traffic_policy.as_ref()), port.number);
    let policy = own.overridden_by(subset.and_then(|subset| subset.traffic_policy.as_ref()), port.number);
    let mut cluster = bare_eds(name);
    // Round robin or a hash: the libraries refuse a cluster with any other balancer (least request: C-core, Python, Ruby).
    if let Some(hash) = policy.load_balancer.as_ref().and_then(|balancer| balancer.consistent_hash.as_ref()) {
        apply_consistent_hash(&mut cluster, hash);
    }
    let most = policy.connection_pool.as_ref().and_then(|pool| pool.http.as_ref()).and_then(|http| http.http2_max_requests);
    if let Some(most) = most {
        let threshold = cluster_v3::circuit_breakers::Thresholds { max_requests: Some(most.get()), ..Default::default() };
        cluster.circuit_breakers = Some(cluster_v3::CircuitBreakers { thresholds: vec![threshold], ..Default::default() });
    }
    // Mutual TLS only where a rule asks for it: whether the client has credentials cannot be seen from here.
    if policy.tls.as_ref().map(|tls| tls.mode) == Some(ClientTlsMode::IstioMutual) {
        cluster.transport_socket = Some(mutual_tls());
    }
    let mut provenance = vec![service_provenance(service)];
    provenance.extend(rule.map(|rule| rule.provenance.clone()).into_iter().flatten());
    Some((cluster, provenance))
}

/// Certificates from the provider that gRPC bootstrap files call `default`.
fn mutual_tls() -> core_v3::TransportSocket {
    use crate::wire::tls_v3::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    use crate::wire::tls_v3::{CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, UpstreamTlsContext};
    let instance = |certificate: &str| CertificateProviderPluginInstance {
        instance_name: "default".to_owned(),
        certificate_name: certificate.to_owned(),
    };
    let roots = CertificateValidationContext { ca_certificate_provider_instance: Some(instance(names::SDS_ROOT)), ..Default::default() };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: Some(instance(names::SDS_DEFAULT)),
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
                default_validation_context: Some(roots),
                ..Default::default()
            })),
            ..Default::default()
        }),
        ..Default::default()
    };
    tls::upstream_socket(&context)
}
