//! The configurations: what Istio sends a sidecar, reduced to what a request passes through.
use std::fmt::Write;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

/// Virtual hosts of the routing scenario.
pub(crate) const HOSTS: usize = 1000;

const T: &str = "type.googleapis.com/envoy.extensions";
const LOG: &str = "[%START_TIME%] \\\"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\\\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
    %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \\\"%REQ(X-REQUEST-ID)%\\\" \\\"%REQ(:AUTHORITY)%\\\" \\\"%UPSTREAM_HOST%\\\" %UPSTREAM_CLUSTER%\\n";
const RETRY: &str = "retry_policy: {retry_on: 'connect-failure,refused-stream,unavailable,cancelled', num_retries: 2, \
    host_selection_retry_max_attempts: 5, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: \
    {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]}";

pub(crate) fn host(number: usize) -> String {
    format!("svc{number}.ns{}.svc.cluster.local", number % 20)
}

struct Parts<'a> {
    direction: &'a str,
    /// Of the filter chain: its transport socket.
    tls: &'a str,
    /// Of the connection manager.
    more: &'a str,
    /// Before fault injection.
    filters: &'a str,
    hosts: &'a str,
    clusters: &'a str,
}

fn bootstrap(parts: &Parts<'_>) -> String {
    let Parts { direction, tls, more, filters, hosts, clusters } = parts;
    format!(
        r#"
node: {{id: "sidecar~10.0.0.1~a.default~default.svc.cluster.local", cluster: a}}
static_resources:
  listeners:
  - name: l
    traffic_direction: {direction}
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - {tls}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {T}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: t
          normalize_path: true
          stream_idle_timeout: 0s
          {more}
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": {T}.access_loggers.file.v3.FileAccessLog
              path: /dev/null
              log_format: {{text_format_source: {{inline_string: "{LOG}"}}}}
          http_filters:
          {filters}
          - {{name: envoy.filters.http.fault, typed_config: {{"@type": {T}.filters.http.fault.v3.HTTPFault}}}}
          - {{name: envoy.filters.http.cors, typed_config: {{"@type": {T}.filters.http.cors.v3.Cors}}}}
          - {{name: envoy.filters.http.router, typed_config: {{"@type": {T}.filters.http.router.v3.Router}}}}
          route_config:
            name: r
            virtual_hosts:
{hosts}
  clusters:
{clusters}"#
    )
}

fn action(target: &str) -> String {
    format!("decorator: {{operation: op}}, route: {{{target}, timeout: 0s, {RETRY}, max_stream_duration: {{max_stream_duration: 0s}}}}")
}

fn cluster(name: &str, port: u16, more: &str) -> String {
    format!(
        "  - name: {name}\n    type: STATIC\n    connect_timeout: 10s\n    lb_policy: LEAST_REQUEST\n{more}    load_assignment: {{cluster_name: {name}, \
         endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}\n"
    )
}

const HTTP2: &str = "explicit_http_config: {http2_protocol_options: {}}";
/// HTTP/1.1, and a connection for each request.
const ONCE: &str = "common_http_protocol_options: {max_requests_per_connection: 1}, explicit_http_config: {http_protocol_options: {}}";

/// How a cluster's endpoints are spoken to.
fn protocol(options: &str) -> String {
    format!(
        "    typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": \
         {T}.upstreams.http.v3.HttpProtocolOptions, {options}}}\n"
    )
}

fn all_to(cluster: &str) -> String {
    let action = action(&format!("cluster: {cluster}"));
    format!("            - {{name: v, domains: ['*'], include_request_attempt_count: true, routes: [{{match: {{prefix: /}}, {action}}}]}}")
}

/// One hop: with more than one host each has three routes (a header, a 90/10 split, the rest).
pub(crate) fn http1(port: u16, hosts: usize) -> String {
    let clusters = cluster("c1", port, "") + &cluster("c2", port, "");
    let virtual_hosts = if hosts == 1 {
        all_to("c1")
    } else {
        let mut text = String::new();
        for number in 0..hosts {
            let name = host(number);
            let (canary, rest) = (action("cluster: c2"), action("cluster: c1"));
            let split = action("weighted_clusters: {clusters: [{name: c1, weight: 90}, {name: c2, weight: 10}]}");
            let _ = writeln!(
                text,
                "            - {{name: '{name}:80', domains: ['{name}', '{name}:80'], include_request_attempt_count: true, routes: [\
                 {{match: {{prefix: /api/, headers: [{{name: x-canary, string_match: {{exact: 'true'}}}}]}}, {canary}}}, \
                 {{match: {{prefix: /api/}}, {split}}}, {{match: {{prefix: /}}, {rest}}}]}}"
            );
        }
        text
    };
    bootstrap(&Parts { direction: "OUTBOUND", tls: "name: c", more: "", filters: "", hosts: &virtual_hosts, clusters: &clusters })
}

/// One hop with HTTP/2 on both sides.
pub(crate) fn h2c(port: u16) -> String {
    let clusters = cluster("c1", port, &protocol(HTTP2));
    bootstrap(&Parts { direction: "OUTBOUND", tls: "name: c", more: "", filters: "", hosts: &all_to("c1"), clusters: &clusters })
}

/// A certificate authority and what it issued to two workloads.
pub(crate) struct Mesh {
    folder: tempfile::TempDir,
}

impl Mesh {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(folder.path().join("ca.crt"), params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);
        for name in ["client", "server"] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            let uri = format!("spiffe://cluster.local/ns/default/sa/{name}");
            params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
            std::fs::write(folder.path().join(format!("{name}.crt")), params.signed_by(&key, &issuer)?.pem())?;
            std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).context("a key")?;
        }
        Ok(Self { folder })
    }

    fn common(&self, own: &str, peer: &str, alpn: &str) -> String {
        let path = self.folder.path().display();
        format!(
            "common_tls_context: {{alpn_protocols: [{alpn}], tls_params: {{tls_maximum_protocol_version: TLSv1_3}}, tls_certificates: [{{certificate_chain: {{filename: {path}/{own}.crt}}, private_key: \
             {{filename: {path}/{own}.key}}}}], validation_context: {{trusted_ca: {{filename: {path}/ca.crt}}, match_typed_subject_alt_names: \
             [{{san_type: URI, matcher: {{exact: \"spiffe://cluster.local/ns/default/sa/{peer}\"}}}}]}}}}"
        )
    }

    /// HTTP/1.1 in; out, in mutual TLS, HTTP/2 on one connection or HTTP/1.1 on a new one for each request.
    pub(crate) fn client(&self, server: u16, once: bool) -> String {
        let (alpn, options) = if once { ("http/1.1", ONCE) } else { ("h2", HTTP2) };
        let tls = format!(
            "    transport_socket: {{name: tls, typed_config: {{\"@type\": {T}.transport_sockets.tls.v3.UpstreamTlsContext, sni: a, {}}}}}\n{}",
            self.common("client", "server", alpn),
            protocol(options)
        );
        let clusters = cluster("c1", server, &tls);
        bootstrap(&Parts { direction: "OUTBOUND", tls: "name: c", more: "", filters: "", hosts: &all_to("c1"), clusters: &clusters })
    }

    /// Mutual TLS in, who calls is checked, HTTP/1.1 out.
    pub(crate) fn server(&self, port: u16) -> String {
        let tls = format!(
            "transport_socket: {{name: tls, typed_config: {{\"@type\": {T}.transport_sockets.tls.v3.DownstreamTlsContext, \
             require_client_certificate: true, {}}}}}",
            self.common("server", "client", "h2, http/1.1")
        );
        let rbac = format!(
            "- {{name: envoy.filters.http.rbac, typed_config: {{\"@type\": {T}.filters.http.rbac.v3.RBAC, rules: {{action: ALLOW, policies: \
             {{p: {{permissions: [{{any: true}}], principals: [{{authenticated: {{principal_name: {{exact: \
             \"spiffe://cluster.local/ns/default/sa/client\"}}}}}}]}}}}}}}}}}"
        );
        bootstrap(&Parts {
            direction: "INBOUND",
            tls: &tls,
            more: "forward_client_cert_details: APPEND_FORWARD\n          set_current_client_cert_details: {subject: true, dns: true, uri: true}",
            filters: &rbac,
            hosts: &all_to("c1"),
            clusters: &cluster("c1", port, ""),
        })
    }
}
