//! The configuration of one proxy as files, and the ways in which it changes.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};

use crate::certificates::{Authority, SERVER};
use crate::process::{App, free_port};

const TYPES: &str = "type.googleapis.com";

/// A proxy's place: ports, files, and what is in them at the moment.
pub(crate) struct Site {
    folder: PathBuf,
    admin: u16,
    pub(crate) http: u16,
    pub(crate) mtls: u16,
    pub(crate) tcp: u16,
    apps: Vec<u16>,
    /// Long streams go where no endpoint is taken away.
    lasting: (u16, u16),
    configuration: u64,
    certificate: u64,
}

impl Site {
    pub(crate) fn new(folder: &Path, apps: &[App]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            admin: free_port(),
            http: free_port(),
            mtls: free_port(),
            tcp: free_port(),
            apps: apps.iter().skip(1).map(|app| app.http).collect(),
            lasting: apps.first().map(|app| (app.http, app.tcp)).unwrap_or_default(),
            configuration: 0,
            certificate: 0,
        })
    }

    pub(crate) fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn bootstrap(&self) -> PathBuf {
        self.folder.join("bootstrap.json")
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.admin).into()
    }

    /// The newest configuration, and the newest certificate of the proxy.
    pub(crate) fn configuration(&self) -> u64 {
        self.configuration
    }

    pub(crate) fn certificate(&self) -> u64 {
        self.certificate
    }

    pub(crate) fn write_all(&mut self, authority: &mut Authority) -> anyhow::Result<()> {
        let path = |file: &str| json!({"resource_api_version": "V3", "path_config_source": {"path": self.folder.join(file)}});
        self.write(
            "bootstrap.json",
            &json!({
                "node": {"id": "soak", "cluster": "soak"},
                "admin": {"address": at(self.admin)},
                "dynamic_resources": {"cds_config": path("clusters.json"), "lds_config": path("listeners.json")},
            }),
        )?;
        self.write("roots.json", &resources(vec![secret("roots", "validation_context", json!({"trusted_ca": text(&authority.pem)}))]))?;
        self.change_certificates(authority)?;
        self.change_endpoints()?;
        self.change_listeners()
    }

    /// Replaced at once, as a rename does.
    fn write(&self, file: &str, value: &Value) -> anyhow::Result<()> {
        let draft = self.folder.join("draft");
        std::fs::write(&draft, value.to_string())?;
        Ok(std::fs::rename(draft, self.folder.join(file))?)
    }

    pub(crate) fn change_certificates(&mut self, authority: &mut Authority) -> anyhow::Result<()> {
        let (number, certificate, key) = authority.issue(SERVER)?;
        self.certificate = number;
        let pair = json!({"certificate_chain": text(&certificate), "private_key": text(&key)});
        self.write("certificate.json", &resources(vec![secret("certificate", "tls_certificate", pair)]))
    }

    /// Some of the endpoints, never none.
    pub(crate) fn change_endpoints(&mut self) -> anyhow::Result<()> {
        let mut dice = rand::rng();
        let count = dice.random_range(1..=self.apps.len());
        let some: Vec<u16> = self.apps.choose_multiple(&mut dice, count).copied().collect();
        let timeout = format!("{}.5s", dice.random_range(5..9));
        let mut clusters = vec![
            cluster("app", &some, &timeout, json!({})),
            cluster("h2", &some, &timeout, http2()),
            cluster("lasting", &[self.lasting.0], "5s", json!({})),
            cluster("lines", &[self.lasting.1], "5s", json!({})),
            cluster("self", &[self.mtls], "5s", self.upstream_tls()),
        ];
        clusters.iter_mut().for_each(|c| c["@type"] = json!(format!("{TYPES}/envoy.config.cluster.v3.Cluster")));
        self.write("clusters.json", &resources(clusters))
    }

    /// The number in every response changes, and so does the listener as a whole.
    pub(crate) fn change_listeners(&mut self) -> anyhow::Result<()> {
        self.configuration += 1;
        let listeners = vec![
            listener("http", self.http, self.http_filter(), Value::Null),
            listener("mtls", self.mtls, self.http_filter(), self.downstream_tls()),
            listener("tcp", self.tcp, tcp_filter(), Value::Null),
        ];
        self.write("listeners.json", &resources(listeners))
    }

    fn http_filter(&self) -> Value {
        let retries = json!({"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2});
        let to = |prefix: &str, cluster: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": "0s", "retry_policy": retries}});
        // Through this proxy's other listener, which takes it to an endpoint.
        let mut around = to("/self", "self");
        around["route"]["prefix_rewrite"] = json!("/");
        json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": format!("{TYPES}/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "soak",
                "upgrade_configs": [{"upgrade_type": "websocket"}],
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": format!("{TYPES}/envoy.extensions.filters.http.router.v3.Router")},
                }],
                "route_config": {
                    "name": "all",
                    "response_headers_to_add": [{"header": {"key": "x-configuration", "value": self.configuration.to_string()}}],
                    "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                        to("/lateen.app.Echo", "h2"), to("/lasting", "lasting"), around, to("/", "app"),
                    ]}],
                },
            },
        })
    }

    fn sds(&self, name: &str, file: &str) -> Value {
        json!({"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": self.folder.join(file)}}})
    }

    fn common_tls(&self) -> Value {
        json!({
            "tls_certificate_sds_secret_configs": [self.sds("certificate", "certificate.json")],
            "validation_context_sds_secret_config": self.sds("roots", "roots.json"),
        })
    }

    fn downstream_tls(&self) -> Value {
        json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": format!("{TYPES}/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
            "common_tls_context": self.common_tls(),
            "require_client_certificate": true,
        }})
    }

    fn upstream_tls(&self) -> Value {
        json!({"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": format!("{TYPES}/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
            "common_tls_context": self.common_tls(),
            "sni": SERVER,
        }}})
    }
}

fn at(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn text(text: &str) -> Value {
    json!({"inline_string": text})
}

fn resources(resources: Vec<Value>) -> Value {
    json!({"version_info": "soak", "resources": resources})
}

fn secret(name: &str, field: &str, value: Value) -> Value {
    json!({"@type": format!("{TYPES}/envoy.extensions.transport_sockets.tls.v3.Secret"), "name": name, field: value})
}

fn cluster(name: &str, ports: &[u16], timeout: &str, more: Value) -> Value {
    let endpoints: Vec<Value> = ports.iter().map(|port| json!({"endpoint": {"address": at(*port)}})).collect();
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": timeout,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    });
    if let (Value::Object(fields), Value::Object(more)) = (&mut cluster, more) {
        fields.extend(more);
    }
    cluster
}

fn http2() -> Value {
    json!({"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": format!("{TYPES}/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {}},
    }}})
}

fn listener(name: &str, port: u16, filter: Value, tls: Value) -> Value {
    let mut chain = json!({"filters": [filter]});
    if !tls.is_null() {
        chain["transport_socket"] = tls;
    }
    json!({
        "@type": format!("{TYPES}/envoy.config.listener.v3.Listener"),
        "name": name,
        "address": at(port),
        "filter_chains": [chain],
    })
}

fn tcp_filter() -> Value {
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": format!("{TYPES}/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "soak",
        "cluster": "lines",
    }})
}
