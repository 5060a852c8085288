//! The listeners of a gateway: one a port, with a chain for every certificate.
use crate::cluster::tls;
use crate::names;
use crate::provenance::Provenance;
use crate::route::matching::Caller;
use crate::view::{Capabilities, ProxyView};
use crate::wire::{self, core_v3, listener_v3, tls_v3};
use crate::world::World;
use crate::world::gateways::{Server, ServerPort};
use crate::world::hosts;
use crate::world::protocol::Protocol;
use crate::world::services::{Resolution, Service};
use lateen_model::kinds::gateway::{ServerTlsMode, ServerTlsSettings, TlsProtocol};

use super::filters::{self, Class, HttpOptions, Routes};
use super::{Built, access_log, tcp};

/// How long a client may take over its handshake.
const HANDSHAKE_SECONDS: u64 = 15;

/// Every listener of a gateway proxy.
pub(crate) fn build(world: &World, view: &ProxyView) -> Vec<Built> {
    let merged = world.merged_gateway(view);
    merged.ports.iter().filter(|port| !(view.unprivileged && port.number < 1024)).filter_map(|port| listener(world, view, port)).collect()
}

fn listener(world: &World, view: &ProxyView, port: &ServerPort) -> Option<Built> {
    let wildcards = view.ip_mode().wildcards();
    let (bind, extra) = if port.bind.is_empty() { (wildcards[0], &wildcards[1..]) } else { (port.bind.as_str(), &[][..]) };
    let name = names::listener(bind, port.number);
    let mut chains = Vec::new();
    if port.plain_http {
        let first = port.servers.first()?;
        chains.push(http_chain(world, view, first, None, &name));
    } else {
        for server in &port.servers {
            chains.extend(server_chains(world, view, server, &name));
        }
    }
    if chains.is_empty() {
        return None;
    }
    let by_name = chains.iter().any(|chain| chain.transport_socket.is_some() || has_server_names(chain));
    let mut provenance: Vec<Provenance> = port.servers.iter().map(|server| server.provenance.clone()).collect();
    provenance.dedup();
    let listener = listener_v3::Listener {
        address: Some(wire::address(bind, u32::from(port.number))),
        additional_addresses: super::additional_addresses(extra, port.number),
        traffic_direction: core_v3::TrafficDirection::Outbound as i32,
        listener_filters: by_name.then(filters::tls_inspector).into_iter().collect(),
        filter_chains: chains,
        access_log: access_log::unmatched(&world.mesh),
        max_connections_to_accept_per_socket_event: Some(1),
        name,
        ..Default::default()
    };
    Some(Built { listener, provenance })
}

fn has_server_names(chain: &listener_v3::FilterChain) -> bool {
    chain.filter_chain_match.as_ref().is_some_and(|matching| !matching.server_names.is_empty())
}

fn chain(sni: &[String], context: Option<&tls_v3::DownstreamTlsContext>, filters: Vec<listener_v3::Filter>) -> listener_v3::FilterChain {
    let mut names = sni.to_vec();
    names.sort();
    let any = names.is_empty() || names.iter().any(|name| name == "*");
    listener_v3::FilterChain {
        filter_chain_match: (!any).then(|| listener_v3::FilterChainMatch { server_names: names, ..Default::default() }),
        filters,
        transport_socket: context.map(tls::downstream_socket),
        transport_socket_connect_timeout: Some(wire::duration(std::time::Duration::from_secs(HANDSHAKE_SECONDS))),
        ..Default::default()
    }
}

fn http_chain(
    world: &World,
    view: &ProxyView,
    server: &Server,
    tls: Option<(&[String], &tls_v3::DownstreamTlsContext)>,
    listener: &str,
) -> listener_v3::FilterChain {
    let named = server.spec.name.clone().filter(|name| tls.is_some() && !name.is_empty());
    let options = HttpOptions {
        class: Class::Gateway,
        stat_prefix: named.unwrap_or_else(|| names::stat_prefix(&format!("outbound_{listener}"))),
        routes: Routes::Rds(server.route_name.clone()),
        protocol: server.protocol,
        trusted_hops: 0,
    };
    let filters = filters::http_chain(&world.mesh, view, options);
    match tls {
        Some((sni, context)) => chain(sni, Some(context), filters),
        None => chain(&[], None, filters),
    }
}

fn server_chains(world: &World, view: &ProxyView, server: &Server, listener: &str) -> Vec<listener_v3::FilterChain> {
    let sni = server.sni_hosts();
    match &server.spec.tls {
        Some(settings) if server.is_https_terminating() => {
            vec![http_chain(world, view, server, Some((&sni, &server_context(world, view, settings, false))), listener)]
        }
        Some(_) if server.passes_tls_through() => passthrough_chains(world, view, server),
        Some(settings) => {
            let context = server_context(world, view, settings, true);
            tcp_filters(world, view, server).map(|filters| chain(&sni, Some(&context), filters)).into_iter().collect()
        }
        None => tcp_filters(world, view, server).map(|filters| chain(&[], None, filters)).into_iter().collect(),
    }
}

fn caller<'a>(view: &'a ProxyView, server: &'a Server) -> Caller<'a> {
    Caller { labels: &view.labels, namespace: &view.namespace, gateway: &server.gateway, port: server.port }
}

/// Whether a VirtualService of `namespace` claims hosts that the server offers it.
fn claims(server: &Server, namespace: &str, claimed: &[String]) -> bool {
    server.hosts_for(namespace).iter().any(|offered| claimed.iter().any(|host| hosts::covers(offered, host)))
}

/// The first TCP rule that is bound here.
fn tcp_filters(world: &World, view: &ProxyView, server: &Server) -> Option<Vec<listener_v3::Filter>> {
    let caller = caller(view, server);
    for rule in world.virtual_services.bound(&server.gateway, &view.namespace) {
        if !claims(server, &rule.namespace, &rule.spec.hosts) {
            continue;
        }
        let applies = |route: &lateen_model::kinds::virtual_service::TcpRoute| {
            !route.route.is_empty() && (route.r#match.is_empty() || route.r#match.iter().any(|block| tcp::l4_applies(block, caller)))
        };
        if let (Some(route), Some(origin)) = (rule.spec.tcp.iter().find(|route| applies(route)), rule.origin()) {
            return Some(tcp::to_destinations(world, view, Class::Gateway, origin, &route.route, server.port));
        }
    }
    None
}

/// A chain for every TLS rule that is bound here, by the name in the hello.
fn passthrough_chains(world: &World, view: &ProxyView, server: &Server) -> Vec<listener_v3::FilterChain> {
    if server.tls_mode() == Some(ServerTlsMode::AutoPassthrough) {
        return auto_passthrough_chains(world, view, server);
    }
    let caller = caller(view, server);
    let mut taken: Vec<&String> = Vec::new();
    let mut chains = Vec::new();
    for rule in world.virtual_services.bound(&server.gateway, &view.namespace) {
        if !claims(server, &rule.namespace, &rule.spec.hosts) {
            continue;
        }
        let Some(origin) = rule.origin() else { continue };
        for route in rule.spec.tls.iter().filter(|route| !route.route.is_empty()) {
            for block in route.r#match.iter().filter(|block| tcp::tls_applies(block, caller)) {
                // Envoy refuses two chains for one name; the older rule keeps it.
                if block.sni_hosts.iter().any(|name| taken.contains(&name)) {
                    continue;
                }
                taken.extend(&block.sni_hosts);
                let filters = tcp::to_destinations(world, view, Class::Gateway, origin, &route.route, server.port);
                chains.push(chain(&block.sni_hosts, None, filters));
            }
        }
    }
    chains
}

/// A chain for every service that the server's hosts cover; the name in the hello names the cluster.
fn auto_passthrough_chains(world: &World, view: &ProxyView, server: &Server) -> Vec<listener_v3::FilterChain> {
    let offered = server.sni_hosts();
    let mut chains = Vec::new();
    let callable = |service: &&std::sync::Arc<Service>| !service.mesh_external && service.resolution != Resolution::Alias;
    for service in world.visible_services(&view.namespace).filter(callable) {
        if !offered.iter().any(|host| hosts::covers(host, &service.host)) {
            continue;
        }
        let rule = world.rule(&view.namespace, service);
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            let subsets = rule.map(|rule| rule.spec.subsets.iter().map(|subset| subset.name.as_str())).into_iter().flatten();
            for subset in std::iter::once("").chain(subsets) {
                let cluster = names::outbound_sni(port.number, subset, &service.host);
                let filters = tcp::to_cluster(world, view, Class::Gateway, &cluster, subset, rule);
                let mut built = chain(&[cluster], None, filters);
                // Only mesh peers offer these, so that nothing but mutual TLS gets through.
                if let Some(matching) = &mut built.filter_chain_match {
                    matching.application_protocols = super::inbound::MESH_ANY.iter().map(|name| (*name).to_owned()).collect();
                }
                chains.push(built);
            }
        }
    }
    chains
}

/// The certificate a server shows and the clients it asks for one.
fn server_context(world: &World, view: &ProxyView, settings: &ServerTlsSettings, tcp: bool) -> tls_v3::DownstreamTlsContext {
    let mode = settings.mode;
    let mutual = matches!(mode, ServerTlsMode::Mutual | ServerTlsMode::IstioMutual);
    let mut common = tls_v3::CommonTlsContext {
        alpn_protocols: alpn(mode, tcp, view.capabilities),
        tls_params: parameters(settings),
        ..Default::default()
    };
    let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let credentials: Vec<String> = if settings.credential_names.is_empty() {
        text(&settings.credential_name).into_iter().collect()
    } else {
        settings.credential_names.clone()
    };
    let validates = mutual || mode == ServerTlsMode::OptionalMutual;
    let subjects = |list: &[String]| list.iter().map(wire::exact).collect::<Vec<_>>();
    if mode == ServerTlsMode::IstioMutual {
        common = tls::mesh_server(&world.mesh, view.capabilities, tcp).common_tls_context.unwrap_or_default();
        if !settings.subject_alt_names.is_empty() {
            common.validation_context_type = Some(tls::combined(subjects(&settings.subject_alt_names), tls::agent_secret(names::SDS_ROOT)));
        }
    } else if let Some(first) = credentials.first() {
        common.tls_certificate_sds_secret_configs = credentials.iter().map(|name| tls::credential_secret(name)).collect();
        if validates {
            let roots = text(&settings.ca_cert_credential_name).unwrap_or_else(|| format!("{first}-cacert"));
            common.validation_context_type = Some(validation(settings, tls::credential_secret(&roots)));
        }
    } else {
        let pairs = settings.tls_certificates.iter().map(|pair| (&pair.server_certificate, &pair.private_key));
        let own = [(&settings.server_certificate, &settings.private_key)];
        let pairs: Vec<_> = if settings.tls_certificates.is_empty() { own.to_vec() } else { pairs.collect() };
        let file = |(certificate, key): &(&Option<String>, &Option<String>)| {
            Some(tls::agent_secret(&tls::file_certificate(certificate.as_deref()?, key.as_deref()?)))
        };
        common.tls_certificate_sds_secret_configs = pairs.iter().filter_map(file).collect();
        if validates {
            let roots = text(&settings.ca_certificates).map_or_else(|| names::SDS_ROOT.to_owned(), |path| tls::file_roots(&path));
            common.validation_context_type = Some(validation(settings, tls::agent_secret(&roots)));
        }
    }
    tls_v3::DownstreamTlsContext { common_tls_context: Some(common), require_client_certificate: Some(mutual), ..Default::default() }
}

fn validation(settings: &ServerTlsSettings, roots: tls_v3::SdsSecretConfig) -> tls_v3::common_tls_context::ValidationContextType {
    use tls_v3::certificate_validation_context::TrustChainVerification;
    let trust = if settings.insecure_skip_verify == Some(true) {
        TrustChainVerification::AcceptUntrusted
    } else {
        TrustChainVerification::VerifyTrustChain
    };
    #[allow(deprecated)] // See tls::combined.
    let default = tls_v3::CertificateValidationContext {
        match_subject_alt_names: settings.subject_alt_names.iter().map(wire::exact).collect(),
        trust_chain_verification: trust as i32,
        ..Default::default()
    };
    tls::combined_with(default, roots)
}

fn alpn(mode: ServerTlsMode, tcp: bool, can: Capabilities) -> Vec<String> {
    let names: &[&str] = if mode == ServerTlsMode::IstioMutual && tcp && can.metadata_exchange {
        &["istio-peer-exchange", "h2", "http/1.1"]
    } else {
        &["h2", "http/1.1"]
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn parameters(settings: &ServerTlsSettings) -> Option<tls_v3::TlsParameters> {
    use tls_v3::tls_parameters::TlsProtocol as Version;
    let version = |protocol: TlsProtocol| match protocol {
        TlsProtocol::Auto => Version::TlsAuto,
        TlsProtocol::V1_0 => Version::TlSv10,
        TlsProtocol::V1_1 => Version::TlSv11,
        TlsProtocol::V1_2 => Version::TlSv12,
        TlsProtocol::V1_3 => Version::TlSv13,
    };
    let (least, most) = (version(settings.min_protocol_version), version(settings.max_protocol_version));
    (least != Version::TlsAuto || most != Version::TlsAuto).then(|| tls_v3::TlsParameters {
        tls_minimum_protocol_version: least as i32,
        tls_maximum_protocol_version: most as i32,
        ..Default::default()
    })
}
