//! TLS contexts: who is shown which certificate, and whom it believes.
use std::collections::BTreeSet;

use crate::names;
use crate::view::Capabilities;
use crate::wire::{self, any, core_v3, tls_v3};
use crate::world::mesh::Mesh;
use crate::world::protocol::Protocol;

/// Server-side cipher suites of TLS 1.2; 1.3 chooses its own.
const CIPHERS: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
];

const TLS_SOCKET: &str = "envoy.transport_sockets.tls";

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// The certificate or roots named `name`, asked of the agent beside the proxy.
pub(crate) fn agent_secret(name: &str) -> tls_v3::SdsSecretConfig {
    use core_v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let agent = core_v3::GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc { cluster_name: names::SDS_CLUSTER.to_owned(), ..Default::default() })),
        ..Default::default()
    };
    let source = core_v3::ApiConfigSource {
        api_type: core_v3::api_config_source::ApiType::Grpc as i32,
        transport_api_version: core_v3::ApiVersion::V3 as i32,
        set_node_on_first_message_only: true,
        grpc_services: vec![agent],
        ..Default::default()
    };
    tls_v3::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(core_v3::ConfigSource {
            initial_fetch_timeout: Some(wire::zero()),
            resource_api_version: core_v3::ApiVersion::V3 as i32,
            config_source_specifier: Some(core_v3::config_source::ConfigSourceSpecifier::ApiConfigSource(source)),
            ..Default::default()
        }),
    }
}

/// A secret that the control plane serves; `name` as a user writes it in `credentialName`.
pub(crate) fn credential_secret(name: &str) -> tls_v3::SdsSecretConfig {
    tls_v3::SdsSecretConfig { name: credential_resource(name), sds_config: Some(wire::ads_with_default_wait()) }
}

/// `kubernetes://name` unless the name says where it is kept.
pub(crate) fn credential_resource(name: &str) -> String {
    if name.contains("://") { name.to_owned() } else { format!("kubernetes://{name}") }
}

/// The name under which the agent serves a certificate and key from files.
pub(crate) fn file_certificate(certificate: &str, key: &str) -> String {
    format!("file-cert:{certificate}~{key}")
}

/// The name under which the agent serves roots from a file; `system` stands for the operating system's.
pub(crate) fn file_roots(path: &str) -> String {
    format!("file-root:{path}")
}

/// A check of peers against `roots`, and of their names where any are given.
pub(crate) fn combined(
    names: Vec<wire::matcher_v3::StringMatcher>,
    roots: tls_v3::SdsSecretConfig,
) -> tls_v3::common_tls_context::ValidationContextType {
    #[allow(deprecated)] // Istio's field; every Envoy accepts it and matches any kind of name.
    let default = tls_v3::CertificateValidationContext { match_subject_alt_names: names, ..Default::default() };
    combined_with(default, roots)
}

pub(crate) fn combined_with(
    default: tls_v3::CertificateValidationContext,
    roots: tls_v3::SdsSecretConfig,
) -> tls_v3::common_tls_context::ValidationContextType {
    tls_v3::common_tls_context::ValidationContextType::CombinedValidationContext(
        tls_v3::common_tls_context::CombinedCertificateValidationContext {
            default_validation_context: Some(default),
            validation_context_sds_secret_config: Some(roots),
            ..Default::default()
        },
    )
}

/// What clients offer by default: 1.2 for old servers outside, 1.3 wherever both can.
pub(crate) fn client_parameters() -> tls_v3::TlsParameters {
    tls_v3::TlsParameters {
        tls_minimum_protocol_version: tls_v3::tls_parameters::TlsProtocol::TlSv12 as i32,
        tls_maximum_protocol_version: tls_v3::tls_parameters::TlsProtocol::TlSv13 as i32,
        ..Default::default()
    }
}

/// The client's side of mutual TLS between mesh peers.
pub(crate) struct MeshClient<'a> {
    pub(crate) sni: &'a str,
    /// Identities that may answer; empty means anyone of the mesh.
    pub(crate) identities: &'a [String],
    /// Names offered in the handshake; the server picks its chain by them.
    pub(crate) alpn: Vec<String>,
}

pub(crate) fn mesh_client(client: MeshClient<'_>) -> tls_v3::UpstreamTlsContext {
    tls_v3::UpstreamTlsContext {
        sni: client.sni.to_owned(),
        common_tls_context: Some(tls_v3::CommonTlsContext {
            tls_params: Some(client_parameters()),
            alpn_protocols: client.alpn,
            tls_certificate_sds_secret_configs: vec![agent_secret(names::SDS_DEFAULT)],
            validation_context_type: Some(combined(client.identities.iter().map(wire::exact).collect(), agent_secret(names::SDS_ROOT))),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What a client offers to mesh peers for a port.
///
/// With Istio's ALPN filter the offer is remade for each request, and the cluster's only serves raw TCP.
/// Without it (a stock Envoy) the cluster's offer must itself name the protocol, or the peer would take
/// HTTP for TCP; and `istio-peer-exchange` is a promise to exchange metadata, so it needs that filter.
pub(crate) fn mesh_alpn(can: Capabilities, protocol: Protocol, http2_cluster: bool) -> Vec<String> {
    if !can.alpn {
        return match (http2_cluster, protocol) {
            (true, _) => strings(&["istio-h2", "istio", "h2"]),
            (false, Protocol::Http) => strings(&["istio-http/1.1", "istio", "http/1.1"]),
            _ => strings(&["istio"]),
        };
    }
    let mut offer = Vec::with_capacity(3);
    if can.metadata_exchange {
        offer.push("istio-peer-exchange".to_owned());
    }
    offer.push("istio".to_owned());
    if http2_cluster {
        offer.push("h2".to_owned());
    }
    offer
}

/// The server's side of mutual TLS between mesh peers: any identity of our trust domains is let in.
pub(crate) fn mesh_server(mesh: &Mesh, can: Capabilities, tcp: bool) -> tls_v3::DownstreamTlsContext {
    let trust_domains: BTreeSet<&String> = mesh.trust_domain_aliases.iter().collect();
    let prefixes = std::iter::once(&mesh.trust_domain)
        .chain(trust_domains.into_iter().filter(|alias| **alias != mesh.trust_domain))
        .map(|domain| wire::prefix(format!("spiffe://{domain}/")))
        .collect();
    let alpn = if tcp && can.metadata_exchange { &["istio-peer-exchange", "h2", "http/1.1"][..] } else { &["h2", "http/1.1"][..] };
    tls_v3::DownstreamTlsContext {
        require_client_certificate: Some(true),
        common_tls_context: Some(tls_v3::CommonTlsContext {
            tls_params: Some(tls_v3::TlsParameters { cipher_suites: strings(&CIPHERS), ..client_parameters() }),
            alpn_protocols: strings(alpn),
            tls_certificate_sds_secret_configs: vec![agent_secret(names::SDS_DEFAULT)],
            validation_context_type: Some(combined(prefixes, agent_secret(names::SDS_ROOT))),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn socket(name: &str, config: wire::Any) -> core_v3::TransportSocket {
    core_v3::TransportSocket { name: name.to_owned(), config_type: Some(core_v3::transport_socket::ConfigType::TypedConfig(config)) }
}

pub(crate) fn upstream_socket(context: &tls_v3::UpstreamTlsContext) -> core_v3::TransportSocket {
    socket(TLS_SOCKET, any(context))
}

pub(crate) fn downstream_socket(context: &tls_v3::DownstreamTlsContext) -> core_v3::TransportSocket {
    socket(TLS_SOCKET, any(context))
}

/// No TLS.
pub(crate) fn plain_socket() -> core_v3::TransportSocket {
    use lateen_proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
    socket("envoy.transport_sockets.raw_buffer", any(&RawBuffer::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_exchanges_metadata_offers_to() {
        let all = Capabilities { alpn: true, stats: true, metadata_exchange: true };
        assert_eq!(mesh_alpn(all, Protocol::Http, false), ["istio-peer-exchange", "istio"]);
        assert_eq!(mesh_alpn(all, Protocol::Grpc, true), ["istio-peer-exchange", "istio", "h2"]);
        let stock = Capabilities::default();
        assert_eq!(mesh_alpn(stock, Protocol::Tcp, false), ["istio"]);
        assert_eq!(mesh_alpn(stock, Protocol::Http, false), ["istio-http/1.1", "istio", "http/1.1"]);
        assert_eq!(mesh_alpn(stock, Protocol::Http2, true), ["istio-h2", "istio", "h2"]);
    }

    #[test]
    fn a_credential_says_where_it_is_kept() {
        assert_eq!(credential_resource("shop"), "kubernetes://shop");
        assert_eq!(credential_resource("kubernetes-gateway://ns/shop"), "kubernetes-gateway://ns/shop");
    }
}
