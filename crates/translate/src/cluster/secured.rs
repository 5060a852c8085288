//! Which TLS, if any, a cluster speaks: what its DestinationRule says, else mutual TLS wherever the peer has a sidecar.
use std::collections::BTreeSet;

use lateen_model::kinds::destination_rule::{ClientTlsMode, ClientTlsSettings};

use super::ClusterInput;
use super::policy::Draft;
use super::tls;
use crate::names;
use crate::view::ProxyKind;
use crate::wire::{self, Struct, cluster_v3, object, string, tls_v3};
use crate::world::World;
use crate::world::authentication::PeerMode;
use crate::world::mesh::Mesh;
use crate::world::services::{Registry, Service};

/// Whether the namespace or mesh of a service lets mutual TLS in.
pub(crate) fn peers_take_mutual_tls(world: &World, service: &Service) -> bool {
    world.peers.namespace(&service.namespace) != Some(PeerMode::Disable)
}

/// The identities of a service's endpoints: whoever else answers in its name is not believed.
pub(crate) fn identities(mesh: &Mesh, service: &Service) -> Vec<String> {
    let mut identities: BTreeSet<String> = service.subject_alt_names.iter().cloned().collect();
    for endpoint in service.endpoints.iter().filter(|endpoint| !endpoint.service_account.is_empty()) {
        identities.insert(mesh.identity(&endpoint.namespace, &endpoint.service_account));
        for alias in &mesh.trust_domain_aliases {
            identities.insert(format!("spiffe://{alias}/ns/{}/sa/{}", endpoint.namespace, endpoint.service_account));
        }
    }
    identities.into_iter().collect()
}

/// Gives the cluster its transport sockets.
pub(crate) fn apply(draft: &mut Draft, input: &ClusterInput<'_>, subset: &str, settings: Option<&ClientTlsSettings>) {
    let Some(settings) = settings else {
        if input.mesh.auto_mtls && input.mutual_tls && !input.service.mesh_external {
            automatic(draft, input, subset);
        }
        return;
    };
    match settings.mode {
        ClientTlsMode::Disable => {}
        ClientTlsMode::IstioMutual => {
            let sni = settings.sni.clone().filter(|sni| !sni.is_empty()).unwrap_or_else(|| default_sni(input, subset));
            let identities = if settings.subject_alt_names.is_empty() { &input.identities } else { &settings.subject_alt_names };
            draft.cluster.transport_socket = Some(tls::upstream_socket(&mesh_context(draft, input, &sni, identities)));
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {
            if let Some(context) = originate(draft, input, settings) {
                draft.cluster.transport_socket = Some(tls::upstream_socket(&context));
            }
        }
    }
}

fn default_sni(input: &ClusterInput<'_>, subset: &str) -> String {
    names::outbound_sni(input.port.number, subset, &input.service.host)
}

fn mesh_context(draft: &Draft, input: &ClusterInput<'_>, sni: &str, identities: &[String]) -> tls_v3::UpstreamTlsContext {
    let alpn = tls::mesh_alpn(input.capabilities, input.port.protocol, draft.is_http2());
    tls::mesh_client(tls::MeshClient { sni, identities, alpn })
}

/// Mutual TLS to endpoints that are marked to take it, plaintext to the others.
fn automatic(draft: &mut Draft, input: &ClusterInput<'_>, subset: &str) {
    use cluster_v3::cluster::{DiscoveryType, TransportSocketMatch};
    let context = mesh_context(draft, input, &default_sni(input, subset), &input.identities);
    let secured = tls::upstream_socket(&context);
    if draft.kind() == Some(DiscoveryType::OriginalDst) {
        // The caller chose the address, so there is no endpoint to be marked: all must have a sidecar, or none counts.
        let mut endpoints = input.service.endpoints_of(input.port).peekable();
        if endpoints.peek().is_some() && endpoints.all(|endpoint| endpoint.mutual_tls) {
            draft.cluster.transport_socket = Some(secured);
        }
        return;
    }
    draft.cluster.transport_socket_matches = vec![
        TransportSocketMatch {
            name: "tlsMode-istio".to_owned(),
            r#match: Some(object([("tlsMode", string("istio"))])),
            transport_socket: Some(secured),
        },
        TransportSocketMatch {
            name: "tlsMode-disabled".to_owned(),
            r#match: Some(Struct::default()),
            transport_socket: Some(tls::plain_socket()),
        },
    ];
}

/// TLS towards a server that is not of the mesh.
fn originate(draft: &mut Draft, input: &ClusterInput<'_>, settings: &ClientTlsSettings) -> Option<tls_v3::UpstreamTlsContext> {
    let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let credential = text(&settings.credential_name);
    // Every sidecar would need the right to read the secret; Istio leaves TLS out there, too.
    if credential.is_some() && input.kind == ProxyKind::Sidecar {
        return None;
    }
    let skip = settings.insecure_skip_verify.unwrap_or(false);
    verify_by_host(draft, settings, skip);
    let mut subjects = settings.subject_alt_names.clone();
    if subjects.is_empty() && input.service.registry == Registry::ServiceEntry {
        subjects.clone_from(&input.service.subject_alt_names);
    }
    let mut common = tls_v3::CommonTlsContext {
        tls_params: Some(tls::client_parameters()),
        alpn_protocols: if draft.is_http2() { vec!["h2".to_owned()] } else { Vec::new() },
        ..Default::default()
    };
    let subjects = subjects.iter().map(wire::exact).collect();
    if settings.mode == ClientTlsMode::Mutual {
        common.tls_certificate_sds_secret_configs = vec![match &credential {
            Some(name) => tls::credential_secret(name),
            None => {
                let (certificate, key) = (text(&settings.client_certificate)?, text(&settings.private_key)?);
                tls::agent_secret(&tls::file_certificate(&certificate, &key))
            }
        }];
    }
    if !skip {
        let roots = match &credential {
            Some(name) => tls::credential_secret(&format!("{name}-cacert")),
            None => tls::agent_secret(&tls::file_roots(text(&settings.ca_certificates).as_deref().unwrap_or("system"))),
        };
        common.validation_context_type = Some(tls::combined(subjects, roots));
    }
    Some(tls_v3::UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: settings.sni.clone().unwrap_or_default(),
        ..Default::default()
    })
}

/// Without a name in the rule, the request's own host is what is asked for and what the certificate must carry.
fn verify_by_host(draft: &mut Draft, settings: &ClientTlsSettings, skip: bool) {
    let auto_sni = settings.sni.as_deref().is_none_or(str::is_empty);
    let auto_san = auto_sni && settings.subject_alt_names.is_empty() && !skip;
    if auto_sni {
        let options = draft.http().upstream_http_protocol_options.get_or_insert_with(Default::default);
        options.auto_sni = true;
        options.auto_san_validation = auto_san;
    }
}
