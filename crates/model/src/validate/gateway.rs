//! Gateway: servers, their ports, hosts and TLS.
use super::checker::Checker;
use super::text;
use crate::kinds::Gateway;
use crate::kinds::gateway::{Server, ServerTlsMode, ServerTlsSettings, TlsProtocol};
use crate::protocol::Protocol;
use crate::schema::path::join;

pub(super) fn check(gateway: &Gateway, check: &mut Checker<'_>) {
    if gateway.servers.is_empty() {
        check.error("spec", "at least one server is required");
    }
    for (index, found) in gateway.servers.iter().enumerate() {
        let path = format!("spec.servers[{index}]");
        server(found, &path, check);
        let name = found.port.as_ref().map(|port| port.name.as_str()).filter(|name| !name.is_empty());
        let earlier = |other: &&Server| other.port.as_ref().map(|port| port.name.as_str()) == name;
        if name.is_some() && gateway.servers[..index].iter().any(|other| earlier(&other)) {
            check.error(&format!("{path}.port.name"), "the name is used by another server; port names must be unique within a Gateway");
        }
    }
    text::labels(check, "spec.selector", &gateway.selector);
}

fn server(server: &Server, path: &str, check: &mut Checker<'_>) {
    if server.hosts.is_empty() {
        check.error(path, "hosts is required");
    }
    for (index, host) in server.hosts.iter().enumerate() {
        check.expect(&format!("{path}.hosts[{index}]"), gateway_host(host));
    }
    if let Some(bind) = server.bind.as_deref().filter(|bind| !text::is_ip(bind)) {
        check.error(&join(path, "bind"), format!("{bind:?} is no IP address; unix sockets are not supported yet"));
    }
    if let Some(tls) = &server.tls {
        tls_settings(tls, &join(path, "tls"), check);
    }
    let Some(port) = &server.port else {
        return check.error(path, "port is required");
    };
    let at = join(path, "port");
    check.expect(&at, text::port(port.number));
    if port.name.is_empty() {
        check.error(&at, "name is required");
    }
    match Protocol::from_name(&port.protocol).filter(|protocol| *protocol != Protocol::Udp) {
        None if port.protocol.is_empty() => check.error(&at, "protocol is required"),
        None => {
            let known = ["HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "REDIS", "MYSQL", "TCP", "TLS"];
            check.expect(&join(&at, "protocol"), text::one_of(&port.protocol, &known));
        }
        Some(protocol) => tls_fits(server, protocol, path, check),
    }
}

fn gateway_host(host: &str) -> Result<(), String> {
    let name = match host.split_once('/') {
        None => host,
        Some((namespace, name)) => {
            if !(namespace == "*" || namespace == "." || text::is_label(namespace)) {
                return Err(format!("{namespace:?} is none of `*`, `.` and a namespace"));
            }
            name
        }
    };
    if text::is_ip(name) {
        return Ok(());
    }
    if name != "*" && !name.contains('.') {
        return Err(format!("{name:?} is a short name; a gateway wants full host names, or `*`"));
    }
    if text::is_partial_wildcard(name) {
        return Err(format!("{name:?}: a wildcard covers whole parts of a name; write *.example.com"));
    }
    text::wildcard_host(name)
}

/// Encrypted ports need `tls`, plain HTTP ports may have only the redirect, other ports none.
fn tls_fits(server: &Server, protocol: Protocol, path: &str, check: &mut Checker<'_>) {
    let at = join(path, "tls");
    match &server.tls {
        None if protocol.is_tls() => {
            check.error_with(path, format!("protocol {protocol} needs tls"), "add tls with mode and credentialName")
        }
        None => {}
        Some(_) if protocol.is_tls() => {}
        Some(tls) if protocol.is_http() => {
            let passive = matches!(tls.mode, ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough);
            if !passive || tls.server_certificate.is_some() || tls.private_key.is_some() || tls.ca_certificates.is_some() {
                check.error_with(
                    &at,
                    format!("protocol {protocol} is plain text and takes only httpsRedirect here"),
                    "write protocol: HTTPS",
                );
            }
        }
        Some(_) => check.error_with(&at, format!("protocol {protocol} takes no tls"), "write protocol: TLS"),
    }
    if server.tls.as_ref().is_some_and(|tls| tls.https_redirect) && !protocol.is_http() {
        check.warning(&join(&at, "httpsRedirect"), "has an effect on HTTP ports only");
    }
}

/// TLS 1.0 and 1.1 are broken, and Lateen does not have them.
fn protocol_versions(tls: &ServerTlsSettings, path: &str, check: &mut Checker<'_>) {
    let is_old = |version| matches!(version, TlsProtocol::V1_0 | TlsProtocol::V1_1);
    if is_old(tls.min_protocol_version) {
        check.warning(&join(path, "minProtocolVersion"), "TLS 1.2 is the oldest version that is offered");
    }
    if is_old(tls.max_protocol_version) {
        check.error_with(&join(path, "maxProtocolVersion"), "TLS 1.2 is the oldest version that is offered", "write TLSV1_2 or TLSV1_3");
    }
    if tls.min_protocol_version == TlsProtocol::V1_3 && tls.max_protocol_version == TlsProtocol::V1_2 {
        check.error(&join(path, "maxProtocolVersion"), "is below minProtocolVersion");
    }
}

fn tls_settings(tls: &ServerTlsSettings, path: &str, check: &mut Checker<'_>) {
    protocol_versions(tls, path, check);
    let by_file = tls.server_certificate.is_some() && tls.private_key.is_some();
    let sources = [by_file, tls.credential_name.is_some(), !tls.credential_names.is_empty(), !tls.tls_certificates.is_empty()];
    let count = sources.iter().filter(|given| **given).count();
    let any_file = tls.server_certificate.is_some() || tls.private_key.is_some() || tls.ca_certificates.is_some();
    match tls.mode {
        ServerTlsMode::IstioMutual => {
            if any_file || count > 0 {
                check.error(path, "mode ISTIO_MUTUAL uses the mesh's own certificates and takes no others");
            }
            return;
        }
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            if any_file || count > 0 {
                check.warning(path, format!("mode {} does not end TLS here: the certificates are not used", tls.mode));
            }
            return;
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {}
    }
    if count > 1 {
        check.error(path, "only one of credentialName, credentialNames, tlsCertificates, serverCertificate with privateKey may be given");
    }
    if tls.credential_name.is_some() || !tls.credential_names.is_empty() {
        return;
    }
    if tls.mode != ServerTlsMode::Simple && tls.ca_certificates.is_none() && tls.ca_cert_credential_name.is_none() {
        check.error(path, format!("mode {} needs caCertificates, caCertCredentialName or credentialName", tls.mode));
    }
    if tls.tls_certificates.is_empty() {
        for (field, value) in [("serverCertificate", &tls.server_certificate), ("privateKey", &tls.private_key)] {
            if value.is_none() {
                check.error_with(path, format!("mode {} needs {field}", tls.mode), "or give credentialName");
            }
        }
    }
    for (index, certificate) in tls.tls_certificates.iter().enumerate() {
        if certificate.server_certificate.is_none() || certificate.private_key.is_none() {
            check.error(&format!("{path}.tlsCertificates[{index}]"), "serverCertificate and privateKey are both required");
        }
    }
}
