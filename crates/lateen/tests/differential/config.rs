//! The bootstrap of a case: what the case says, over plain listeners and clusters.
use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use crate::case::{Case, Listener};

const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const FILE_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
const HTTP_OPTIONS: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What one run of a proxy is given.
pub(crate) struct Places {
    pub(crate) admin: u16,
    /// By listener name.
    pub(crate) listeners: BTreeMap<String, u16>,
    /// By upstream name.
    pub(crate) upstreams: BTreeMap<String, u16>,
    /// Where the certificates are.
    pub(crate) folder: String,
    /// By what they pin.
    pub(crate) pins: HashMap<String, String>,
    pub(crate) log: String,
    /// Of files of resources, by name.
    pub(crate) files: BTreeMap<String, String>,
}

impl Places {
    /// Names of ports, which differ between the runs.
    pub(crate) fn ports(&self) -> BTreeMap<u16, &str> {
        self.listeners.iter().chain(&self.upstreams).map(|(name, port)| (*port, name.as_str())).collect()
    }

    /// Fills `{main}`, `{folder}`, `{hash client}` and the like.
    pub(crate) fn fill(&self, text: &str) -> String {
        let ports = self.listeners.iter().chain(&self.upstreams);
        let filled = ports.fold(text.to_owned(), |text, (name, port)| text.replace(&format!("{{{name}}}"), &port.to_string()));
        let filled = self.pins.iter().fold(filled, |text, (pin, value)| text.replace(&format!("{{{pin}}}"), value));
        let filled = self.files.iter().fold(filled, |text, (name, path)| text.replace(&format!("{{file:{name}}}"), path));
        filled.replace("{folder}", &self.folder).replace("{log}", &self.log)
    }
}

/// Writes the files of resources that a case has.
pub(crate) fn write_files(case: &Case, places: &Places) -> anyhow::Result<()> {
    for (name, resources) in &case.files {
        let mut response = json!({"version_info": "1", "resources": resources});
        fill(&mut response, places);
        std::fs::write(places.fill(&format!("{{file:{name}}}")), response.to_string())?;
    }
    Ok(())
}

/// Endpoint names that the clusters use.
pub(crate) fn upstreams(case: &Case) -> Vec<String> {
    let mut all: Vec<String> = case.clusters.iter().flat_map(|(name, cluster)| endpoints(name, cluster)).collect();
    all.push("a".to_owned());
    all.sort();
    all.dedup();
    all
}

fn endpoints(cluster: &str, fields: &Map<String, Value>) -> Vec<String> {
    match fields.get("endpoints").and_then(Value::as_array) {
        Some(names) => names.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect(),
        None => vec![cluster.to_owned()],
    }
}

pub(crate) fn bootstrap(case: &Case, places: &Places) -> Value {
    let plain = BTreeMap::from([("a".to_owned(), Map::new())]);
    let clusters = if case.clusters.is_empty() { &plain } else { &case.clusters };
    let mut value = json!({
        "admin": {"address": socket(places.admin)},
        "static_resources": {
            "listeners": case.all_listeners().into_iter().map(|(name, l)| listener(name, l, places)).collect::<Vec<_>>(),
            "clusters": clusters.iter().map(|(name, fields)| cluster(name, fields, places)).collect::<Vec<_>>(),
        },
    });
    if case.discovered.is_some() {
        let fields = Map::from_iter([("http2".to_owned(), Value::Bool(true))]);
        if let Some(all) = value["static_resources"]["clusters"].as_array_mut() {
            all.push(cluster(DISCOVERY, &fields, places));
        }
        merge(&mut value, &discovered());
    }
    merge(&mut value, &Value::Object(case.bootstrap.clone()));
    fill(&mut value, places);
    value
}

/// The name of the discovery server among the upstreams.
pub(crate) const DISCOVERY: &str = "discovery";

/// What discovery is asked with.
pub(crate) const METADATA: (&str, &str) = ("x-cluster-id", "differential");

/// An aggregated stream that is incremental.
fn discovered() -> Value {
    json!({
        "node": {"id": "test", "cluster": "test"},
        "dynamic_resources": {"ads_config": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{
                "envoy_grpc": {"cluster_name": DISCOVERY},
                "initial_metadata": [{"key": METADATA.0, "value": METADATA.1}],
            }],
        }},
    })
}

fn socket(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

/// What both proxies write of every request, as JSON.
fn log(more: &Map<String, Value>, places: &Places) -> Value {
    let mut format = json!({
        "step": "%REQ(X-STEP)%",
        "start": "%START_TIME(%s.%3f)%",
        "protocol": "%PROTOCOL%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "authority": "%REQ(:AUTHORITY)%",
        "code": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "received": "%BYTES_RECEIVED%",
        "sent": "%BYTES_SENT%",
        "route": "%ROUTE_NAME%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "host": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "transport_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        "remote": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    });
    merge(&mut format, &Value::Object(more.clone()));
    json!([{"name": "file", "typed_config": {"@type": FILE_LOG, "path": places.log, "log_format": {"json_format": format}}}])
}

fn listener(name: &str, given: &Listener, places: &Places) -> Value {
    let mut routes = json!({"name": "routes"});
    let given_routes = given.routes.clone().unwrap_or_else(|| json!([{"match": {"prefix": "/"}, "route": {"cluster": "a"}}]));
    routes["virtual_hosts"] = json!([{"name": "all", "domains": ["*"], "routes": given_routes}]);
    merge(&mut routes, &Value::Object(given.route_config.clone()));
    let router = json!({"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}});
    let mut hcm = json!({
        "@type": HCM,
        "stat_prefix": name,
        "route_config": routes,
        "http_filters": given.http_filters.iter().cloned().chain([router]).collect::<Vec<_>>(),
        "access_log": log(&given.log, places),
    });
    merge(&mut hcm, &Value::Object(given.hcm.clone()));
    if let Some(fields) = hcm.as_object_mut().filter(|h| h.contains_key("rds") || h.contains_key("scoped_routes")) {
        fields.remove("route_config");
    }
    let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm});
    let mut listener = json!({"name": name, "address": socket(*places.listeners.get(name).unwrap_or(&0))});
    listener["filter_chains"] = json!([{"filters": [filter.clone()]}]);
    merge(&mut listener, &Value::Object(given.listener.clone()));
    place_hcm(&mut listener, &filter);
    listener
}

/// A filter chain may say `filters: hcm` for the connection manager that the case describes, or have `hcm` among its filters.
fn place_hcm(listener: &mut Value, hcm: &Value) {
    for chain in listener["filter_chains"].as_array_mut().into_iter().flatten() {
        if chain["filters"] == "hcm" {
            chain["filters"] = json!([hcm]);
        }
        for filter in chain["filters"].as_array_mut().into_iter().flatten().filter(|f| **f == "hcm") {
            filter.clone_from(hcm);
        }
    }
}

fn cluster(name: &str, fields: &Map<String, Value>, places: &Places) -> Value {
    let mut fields = fields.clone();
    let hostname = fields.remove("hostname").unwrap_or_else(|| json!(""));
    let endpoint = |name: &String| {
        let address = socket(*places.upstreams.get(name).unwrap_or(&0));
        json!({"endpoint": {"address": address, "hostname": hostname}})
    };
    let all: Vec<Value> = endpoints(name, &fields).iter().map(endpoint).collect();
    let mut value = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": all}]},
    });
    fields.remove("endpoints");
    let (http2, once) = (fields.remove("http2").is_some(), fields.remove("fresh_connections").is_some());
    if http2 || once {
        let version = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
        let mut options = json!({"@type": HTTP_OPTIONS, "explicit_http_config": {version: {}}});
        if once {
            options["common_http_protocol_options"] = json!({"max_requests_per_connection": 1});
        }
        merge(
            &mut value,
            &json!({"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}),
        );
    }
    // One says how members become known, or the other.
    if let Some(plain) = value.as_object_mut().filter(|_| fields.contains_key("cluster_type")) {
        plain.remove("type");
    }
    // Such a cluster has no members to name.
    if let Some(plain) = value.as_object_mut().filter(|_| fields.get("type").is_some_and(|t| t == "ORIGINAL_DST" || t == "EDS")) {
        plain.remove("load_assignment");
    }
    merge(&mut value, &Value::Object(fields));
    value
}

/// Fields of `over` win; maps are merged, all else is replaced.
pub(crate) fn merge(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

pub(crate) fn fill(value: &mut Value, places: &Places) {
    match value {
        Value::String(text) if text.contains('{') => *text = places.fill(text),
        Value::Array(all) => all.iter_mut().for_each(|v| fill(v, places)),
        Value::Object(map) => map.values_mut().for_each(|v| fill(v, places)),
        _ => {}
    }
}
