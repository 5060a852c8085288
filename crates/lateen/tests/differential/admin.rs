//! The admin pages of both proxies with one configuration: the same keys, the same forms, the same refusals.
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::proxies::{Kind, Proxy, free_port};

/// How two answers are compared, beside their status and content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// As JSON: which keys lead to values of which type.
    Shape,
    /// As JSON: what the keys lead to.
    Value,
    /// Letter by letter.
    Text,
    /// Line by line, up to the value.
    Lines,
    /// The rest says the same in other words.
    Status,
}

const PAGES: &[(&str, &str, By)] = &[
    ("GET", "/ready", By::Text),
    ("GET", "/server_info", By::Shape),
    ("GET", "/memory", By::Shape),
    ("GET", "/init_dump", By::Text),
    ("GET", "/init_dump?mask=listener", By::Text),
    ("GET", "/certs", By::Shape),
    ("GET", "/runtime", By::Shape),
    ("GET", "/listeners", By::Text),
    ("GET", "/listeners?format=json", By::Shape),
    ("GET", "/clusters", By::Lines),
    ("GET", "/clusters?filter=zzz", By::Text),
    ("GET", "/clusters?filter=(", By::Text),
    ("GET", "/clusters?format=json", By::Shape),
    ("GET", "/config_dump", By::Shape),
    ("GET", "/config_dump?include_eds", By::Shape),
    ("GET", "/config_dump?resource=static_clusters", By::Shape),
    ("GET", "/config_dump?resource=static_clusters&mask=cluster.name", By::Shape),
    ("GET", "/config_dump?resource=static_clusters&mask=last_updated", By::Shape),
    ("GET", "/config_dump?resource=static_clusters&mask=cluster.nope", By::Status),
    ("GET", "/config_dump?resource=static_clusters&mask=cluster", By::Status),
    ("GET", "/config_dump?resource=static_clusters&name_regex=zzz", By::Shape),
    ("GET", "/config_dump?include_eds&resource=static_endpoint_configs&mask=endpoint_config.cluster_name", By::Shape),
    ("GET", "/config_dump?resource=dynamic_listeners", By::Shape),
    ("GET", "/config_dump?resource=static_route_configs", By::Shape),
    ("GET", "/config_dump?resource=static_route_configs&mask=route_config.virtual_hosts", By::Value),
    ("GET", "/config_dump?resource=dynamic_warming_secrets", By::Shape),
    ("GET", "/config_dump?resource=dynamic_warming_secrets&mask=name,version_info,secret.name", By::Value),
    ("GET", "/config_dump?resource=dynamic_warming_secrets&name_regex=zzz", By::Value),
    ("GET", "/config_dump?include_eds&resource=static_endpoint_configs", By::Value),
    ("GET", "/config_dump?resource=ecds_filters", By::Status),
    ("GET", "/config_dump?resource=last_updated", By::Text),
    ("GET", "/config_dump?resource=nope", By::Text),
    ("GET", "/config_dump?mask=bootstrap.node.id,last_updated", By::Shape),
    ("GET", "/config_dump?mask=static_clusters", By::Shape),
    ("GET", "/config_dump?mask=bootstrap,static_clusters", By::Text),
    ("GET", "/config_dump?name_regex=(", By::Status),
    ("GET", "/stats?filter=http.web.downstream_rq_total&format=json", By::Shape),
    ("GET", "/stats?filter=http.web.downstream_rq_time$&format=json", By::Shape),
    ("GET", "/stats?filter=http.web.downstream_rq_time$&format=json&histogram_buckets=cumulative", By::Shape),
    ("GET", "/stats?filter=http.web.downstream_rq_time$&format=json&histogram_buckets=disjoint", By::Shape),
    ("GET", "/stats?filter=http.web.downstream_rq_time$&format=json&histogram_buckets=detailed", By::Shape),
    ("GET", "/stats?filter=nothing", By::Text),
    ("GET", "/stats?filter=.&invert_filter", By::Text),
    ("GET", "/stats?histogram_buckets=nope", By::Status),
    ("GET", "/stats?format=nope", By::Status),
    ("GET", "/stats?type=nope", By::Status),
    ("GET", "/stats?filter=(", By::Status),
    ("GET", "/hot_restart_version", By::Text),
    ("GET", "/nope", By::Status),
    ("GET", "/logging", By::Text),
    ("GET", "/quitquitquit", By::Text),
    ("GET", "/reset_counters", By::Text),
    ("GET", "/reopen_logs", By::Text),
    ("GET", "/drain_listeners", By::Text),
    ("GET", "/healthcheck/fail", By::Text),
    ("POST", "/logging?level=warning", By::Status),
    ("POST", "/logging?level=nope", By::Status),
    ("POST", "/logging?level=critical", By::Status),
    ("POST", "/reset_counters", By::Text),
    ("GET", "/stats?filter=http.web.downstream_rq_total", By::Text),
    ("POST", "/reopen_logs", By::Text),
    ("POST", "/healthcheck/fail", By::Text),
    ("GET", "/ready", By::Text),
    ("POST", "/healthcheck/ok", By::Text),
    ("GET", "/ready", By::Text),
    ("POST", "/drain_listeners?inboundonly", By::Text),
    ("POST", "/drain_listeners?skip_exit", By::Text),
    ("POST", "/drain_listeners?graceful", By::Text),
];

/// Differences that are meant: a page, the beginning of a path, and why.
const MEANT: &[(&str, &str, &str)] = &[
    ("/server_info", ".command_line_options", "the command lines are two programs'; those that both have are checked apart"),
    ("/server_info", ".node", "each names its own version and extensions"),
    ("/config_dump", ".configs[].bootstrap.node", "each names its own version and extensions"),
    ("/clusters", "rq_pending_active", "requests wait for a cluster's connection here, not for a host's"),
    ("/clusters", ".cluster_statuses[].host_statuses[].locality", "a locality without names is shown as one without names"),
];

/// Runs both with it; the differences that nobody meant.
pub(crate) async fn compare(folder: &Path) -> anyhow::Result<()> {
    let (lateen, envoy) = tokio::try_join!(answers(Kind::Lateen, folder), answers(Kind::Envoy, folder))?;
    let mut problems = Vec::new();
    for (((method, path, by), ours), theirs) in PAGES.iter().zip(&lateen).zip(&envoy) {
        let page = format!("{method} {path}");
        if (ours.status, &ours.content_type) != (theirs.status, &theirs.content_type) {
            problems.push(format!("{page}: {} {} and not {} {}", ours.status, ours.content_type, theirs.status, theirs.content_type));
            continue;
        }
        let [ours_has, theirs_has] = [ours, theirs].map(|answer| answer.parts(*by));
        let (ours_has, theirs_has) = (ours_has.with_context(|| page.clone())?, theirs_has.with_context(|| page.clone())?);
        let is_meant = |part: &&String| {
            let base = path.split('?').next().unwrap_or_default();
            MEANT.iter().any(|(of, start, _)| *of == base && (part.starts_with(start) || (!start.starts_with('.') && part.contains(start))))
        };
        problems.extend(theirs_has.difference(&ours_has).filter(|p| !is_meant(p)).map(|part| format!("{page}: lacks {part}")));
        problems.extend(
            ours_has.difference(&theirs_has).filter(|p| !is_meant(p)).map(|part| format!("{page}: has {part}, which Envoy has not")),
        );
    }
    ensure!(problems.is_empty(), "{} differences:\n  {}", problems.len(), problems.join("\n  "));
    Ok(())
}

struct Answer {
    status: u16,
    content_type: String,
    body: String,
}

impl Answer {
    fn parts(&self, by: By) -> anyhow::Result<BTreeSet<String>> {
        let mut parts = BTreeSet::new();
        match by {
            By::Shape => shape(&serde_json::from_str(&self.body)?, String::new(), false, &mut parts),
            By::Value => shape(&serde_json::from_str(&self.body)?, String::new(), true, &mut parts),
            By::Text => drop(parts.insert(format!("{:?}", self.body.trim_end()))),
            By::Lines => parts.extend(self.body.lines().map(|l| l.rsplit_once("::").map_or(l, |(key, _)| key).to_owned())),
            By::Status => {}
        }
        Ok(parts)
    }
}

/// Every path with the type of what it leads to, or with its value. Fields of messages that travel as `Any` are the
/// configuration's own.
fn shape(value: &Value, path: String, with_values: bool, parts: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                shape(value, format!("{path}.{key}"), with_values, parts);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let path = if with_values { format!("{path}[{index}]") } else { format!("{path}[]") };
                shape(item, path, with_values, parts);
            }
        }
        Value::String(text) if path.ends_with(".@type") => drop(parts.insert(format!("{path} = {text}"))),
        other if with_values => drop(parts.insert(format!("{path} = {other}"))),
        Value::String(_) => drop(parts.insert(format!("{path}: text"))),
        Value::Number(_) => drop(parts.insert(format!("{path}: number"))),
        Value::Bool(_) => drop(parts.insert(format!("{path}: truth"))),
        Value::Null => drop(parts.insert(format!("{path}: null"))),
    }
}

async fn answers(kind: Kind, folder: &Path) -> anyhow::Result<Vec<Answer>> {
    let (admin, web, tls) = (free_port(), free_port(), free_port());
    let folder = folder.join(format!("admin-{}", kind.name()));
    std::fs::create_dir_all(&folder)?;
    let proxy = Proxy::start(kind, &folder, &bootstrap(folder.parent().unwrap_or(&folder), admin, web, tls), admin).await?;
    ask(web, "GET", "/hello").await.context("a request before the pages are asked for")?;
    // Until it is in the figures of an interval.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut answers = Vec::new();
    for (method, path, _) in PAGES {
        let mut answer = ask(admin, method, path).await.with_context(|| format!("{}: {method} {path}", kind.name()))?;
        // Ports differ from run to run.
        for (port, instead) in [(admin, "11111"), (web, "22222"), (tls, "33333")] {
            answer.body = answer.body.replace(&port.to_string(), instead);
        }
        answers.push(answer);
    }
    drop(proxy);
    Ok(answers)
}

fn bootstrap(certificates: &Path, admin: u16, web: u16, tls: u16) -> Value {
    let at = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let hcm = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "web",
            "route_config": {"name": "local", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                {"match": {"prefix": "/hello"}, "direct_response": {"status": 200, "body": {"inline_string": "hello\n"}}},
                {"match": {"prefix": "/"}, "route": {"cluster": "app"}, "typed_per_filter_config": {"authz": with_secrets()}},
            ]}]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
        },
    });
    let file = |name: &str| json!({"filename": certificates.join(name)});
    let secure = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_certificates": [{"certificate_chain": file("a.example.pem"), "private_key": file("a.example.key")}],
            "validation_context": {"trusted_ca": file("ca.pem")},
        },
    }});
    json!({
        "node": {"id": "node", "cluster": "cluster"},
        "admin": {"address": at(admin)},
        "stats_flush_interval": "0.1s",
        "layered_runtime": {"layers": [
            {"name": "static", "static_layer": {"overload": {"global_downstream_max_connections": 50_000}}},
            {"name": "admin", "admin_layer": {}},
        ]},
        "static_resources": {
            "listeners": [
                {"name": "web", "address": at(web), "filter_chains": [{"filters": [hcm.clone()]}]},
                {"name": "tls", "address": at(tls), "filter_chains": [{"filters": [hcm], "transport_socket": secure}]},
            ],
            "clusters": [{
                "name": "app",
                "type": "STATIC",
                "connect_timeout": "1s",
                "outlier_detection": {"consecutive_5xx": 5},
                "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(9)}}]}]},
            }, various_hosts(), waits_for_a_secret(), json!({"name": "nobody", "type": "STATIC", "connect_timeout": "1s"})],
        },
    })
}

/// Settings of a route that nobody is to see, as an untyped structure whose fields are in camelCase.
fn with_secrets() -> Value {
    let settings = json!({"contextExtensions": {"filename": "secret", "key": "secret"}, "disableRequestBodyBuffering": true});
    json!({
        "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
        "type_url": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
        "value": {"checkSettings": settings},
    })
}

/// A cluster whose hosts differ in what is said about them.
fn various_hosts() -> Value {
    let at = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let labels = json!({"filter_metadata": {"of": {"a": ["b", true]}}});
    json!({
        "name": "various",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "another", "endpoints": [
            {"locality": {"region": "r"}, "load_balancing_weight": 3, "lb_endpoints": [
                {"endpoint": {"address": at(1)}, "metadata": labels},
                {"endpoint": {"address": at(2), "hostname": "h"}, "health_status": "DEGRADED", "load_balancing_weight": 7},
                {"endpoint": {"address": at(3), "health_check_config": {"port_value": 4, "hostname": "c"}}, "health_status": "UNHEALTHY"},
            ]},
            {"priority": 1, "locality": {"zone": "z"}, "lb_endpoints": [{"endpoint": {"address": at(5)}, "health_status": "DRAINING"}]},
        ]},
    })
}

/// A cluster whose roots come from somebody who is not there.
fn waits_for_a_secret() -> Value {
    let source = json!({"initial_fetch_timeout": "0.1s", "resource_api_version": "V3", "api_config_source": {
        "api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "nobody"}}],
    }});
    json!({
        "name": "waits",
        "type": "STATIC",
        "connect_timeout": "1s",
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {"validation_context_sds_secret_config": {"name": "roots", "sds_config": source}},
        }},
    })
}

async fn ask(port: u16, method: &str, path: &str) -> anyhow::Result<Answer> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        parse(&bytes).context("no response")
    };
    tokio::time::timeout(Duration::from_secs(10), ask).await?
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, mut rest) = text.split_once("\r\n\r\n")?;
    let header = |name: &str| {
        let line = head.lines().find(|l| l.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name)));
        line.and_then(|l| l.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let mut body = String::new();
    if header("transfer-encoding").as_deref() == Some("chunked") {
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).ok()?;
            body.push_str(after.get(..size)?);
            rest = after.get(size + 2..).unwrap_or_default();
            if size == 0 {
                break;
            }
        }
    } else {
        body.push_str(rest);
    }
    Some(Answer { status: head.split(' ').nth(1)?.parse().ok()?, content_type: header("content-type").unwrap_or_default(), body })
}
