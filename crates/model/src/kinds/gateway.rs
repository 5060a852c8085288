//! Gateway: the listeners of gateway proxies (`istio.io/api/networking/v1alpha3/gateway.proto`).
use lateen_core::Labels;

message! {
    pub struct Gateway "Gateway" {
        servers: Vec<Server> = honoured,
        /// Labels of gateway pods in any namespace; empty selects every gateway.
        selector: Labels = honoured,
    }
}

message! {
    pub struct Server "Server" {
        port: Option<GatewayPort> = honoured,
        bind: Option<String> = partly("unix:// is refused"),
        /// `[namespace/]dnsName`; see [`crate::names::GatewayHost`].
        hosts: Vec<String> = honoured,
        tls: Option<ServerTlsSettings> = honoured,
        default_endpoint: Option<String> = warned("has no effect, as in Istio"),
        name: Option<String> = honoured,
    }
}

message! {
    pub struct GatewayPort "Port" {
        /// A port of the gateway's Service.
        number: u16 = honoured,
        /// HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, TCP or TLS.
        protocol: String = honoured,
        name: String = honoured,
        target_port: Option<u16> = warned("is ignored, as by Istio; the targetPort of the gateway's Service counts"),
    }
}

message! {
    pub struct ServerTlsSettings "ServerTLSSettings" {
        /// Answers every request with 301 to https.
        https_redirect: bool = honoured,
        mode: ServerTlsMode = honoured,
        server_certificate: Option<String> = honoured,
        private_key: Option<String> = honoured,
        ca_certificates: Option<String> = honoured,
        ca_crl: Option<String> = refused("certificate revocation lists are not supported yet"),
        /// A Secret in the namespace of the gateway pod.
        credential_name: Option<String> = honoured,
        credential_names: Vec<String> = honoured,
        ca_cert_credential_name: Option<String> = honoured,
        tls_certificates: Vec<TlsCertificate> = honoured,
        subject_alt_names: Vec<String> = honoured,
        verify_certificate_spki: Vec<String> = refused("pinning of client keys is not supported yet"),
        verify_certificate_hash: Vec<String> = refused("pinning of client certificates is not supported yet"),
        min_protocol_version: TlsProtocol = partly("below TLSV1_2 it is TLSV1_2, with a warning"),
        max_protocol_version: TlsProtocol = partly("below TLSV1_2 it is refused"),
        cipher_suites: Vec<String> = warned("has no effect yet: the safe suites of TLS 1.2 and 1.3 are offered"),
        insecure_skip_verify: Option<bool> = honoured,
    }
}

enumeration! {
    pub enum ServerTlsMode {
        /// Also when `tls` is given without a mode: routed by SNI, not terminated.
        Passthrough = "PASSTHROUGH",
        Simple = "SIMPLE",
        Mutual = "MUTUAL",
        /// The SNI names the cluster.
        AutoPassthrough = "AUTO_PASSTHROUGH",
        IstioMutual = "ISTIO_MUTUAL",
        /// A client certificate is verified if there is one.
        OptionalMutual = "OPTIONAL_MUTUAL",
    }
}

enumeration! {
    pub enum TlsProtocol {
        /// 1.2 as the minimum, 1.3 as the maximum.
        Auto = "TLS_AUTO",
        V1_0 = "TLSV1_0",
        V1_1 = "TLSV1_1",
        V1_2 = "TLSV1_2",
        V1_3 = "TLSV1_3",
    }
}

message! {
    pub struct TlsCertificate "TLSCertificate" {
        server_certificate: Option<String> = honoured,
        private_key: Option<String> = honoured,
        ca_certificates: Option<String> = warned("is ignored, as by Istio; the server's own caCertificates counts for all"),
    }
}
