//! The environment of Istio's agent: what injection writes into a pod.
use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

/// Which kind of proxy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Sidecar,
    Router,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

/// An environment from which no proxy can start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEnvironment {
    #[error("environment variable {0} is not set; injection sets it from the pod's own fields")]
    Missing(&'static str),
    #[error("environment variable {name} holds `{value}`: {reason}")]
    Malformed { name: String, value: String, reason: String },
}

/// What the agent's environment says. Defaults are Istio's.
#[derive(Clone, Debug)]
pub struct Environment {
    pub role: Role,
    pub pod: String,
    pub namespace: String,
    pub ip: IpAddr,
    pub service_account: String,
    /// `svc.<domain>`'s last part: `cluster.local`.
    pub domain: String,
    pub trust_domain: String,
    pub cluster_id: String,
    /// Where the control plane is: `discoveryAddress` of PROXY_CONFIG, default `istiod.istio-system.svc:15012`.
    pub discovery: String,
    /// Where certificates are signed; the control plane unless CA_ADDR says otherwise.
    pub ca: String,
    /// The token that proves who the pod is.
    pub token: PathBuf,
    /// Roots to trust of the control plane.
    pub roots: PathBuf,
    pub admin_port: u16,
    pub status_port: u16,
    pub concurrency: Option<u32>,
    /// Seconds to let connections end when told to stop (`terminationDrainDuration`), default 5.
    pub drain_seconds: u64,
    /// End as soon as nothing is open, but not before [`Self::minimum_drain_seconds`] (`EXIT_ON_ZERO_ACTIVE_CONNECTIONS`).
    pub exit_on_zero: bool,
    /// `MINIMUM_DRAIN_DURATION`, default 5.
    pub minimum_drain_seconds: u64,
    pub delta: bool,
    /// The node's metadata, as Istio's agent sends it.
    pub metadata: Map<String, Value>,
}

impl Environment {
    /// Reads the variables of this process.
    ///
    /// # Errors
    /// When one that has no default is missing, or one cannot be understood.
    pub fn of_process(role: Role) -> Result<Self, InvalidEnvironment> {
        Self::read(role, std::env::vars())
    }

    /// [`Environment::of_process`] for given variables.
    ///
    /// # Errors
    /// As there.
    pub fn read(role: Role, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, InvalidEnvironment> {
        let variables: std::collections::BTreeMap<String, String> = variables.into_iter().collect();
        let get = |name: &str| variables.get(name).map(String::as_str).filter(|v| !v.is_empty());
        let need = |name: &'static str| get(name).map(str::to_owned).ok_or(InvalidEnvironment::Missing(name));
        let or = |name: &str, default: &str| get(name).unwrap_or(default).to_owned();
        let config = json_of("PROXY_CONFIG", get("PROXY_CONFIG").unwrap_or("{}"))?;
        let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
        let discovery = text("discoveryAddress").unwrap_or_else(|| "istiod.istio-system.svc:15012".to_owned());
        let ip = need("INSTANCE_IP")?;
        let ip = ip.parse().map_err(|_| malformed("INSTANCE_IP", &ip, "not an IP address"))?;
        let port = |key: &str, default: u16| match config.get(key).and_then(Value::as_u64) {
            None => Ok(default),
            Some(n) => u16::try_from(n).map_err(|_| malformed("PROXY_CONFIG", &n.to_string(), &format!("{key} is not a port"))),
        };
        let mut environment = Self {
            role,
            pod: need("POD_NAME")?,
            namespace: need("POD_NAMESPACE")?,
            ip,
            service_account: or("SERVICE_ACCOUNT", "default"),
            domain: or("DOMAIN_SUFFIX", "cluster.local"),
            trust_domain: or("TRUST_DOMAIN", "cluster.local"),
            cluster_id: or("ISTIO_META_CLUSTER_ID", "Kubernetes"),
            ca: or("CA_ADDR", &discovery),
            discovery,
            token: or("JWT_TOKEN_PATH", "/var/run/secrets/tokens/istio-token").into(),
            roots: or("XDS_ROOT_CA", "/var/run/secrets/istio/root-cert.pem").into(),
            admin_port: port("proxyAdminPort", 15_000)?,
            status_port: port("statusPort", 15_020)?,
            concurrency: config.get("concurrency").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0),
            drain_seconds: text("terminationDrainDuration").and_then(|t| t.trim_end_matches('s').parse().ok()).unwrap_or(5),
            exit_on_zero: get("EXIT_ON_ZERO_ACTIVE_CONNECTIONS") == Some("true"),
            minimum_drain_seconds: get("MINIMUM_DRAIN_DURATION").and_then(|t| t.trim_end_matches('s').parse().ok()).unwrap_or(5),
            delta: get("ISTIO_DELTA_XDS") != Some("false"),
            metadata: Map::new(),
        };
        environment.metadata = metadata(&environment, &variables, config)?;
        Ok(environment)
    }
}

fn malformed(name: &str, value: &str, reason: &str) -> InvalidEnvironment {
    InvalidEnvironment::Malformed { name: name.to_owned(), value: value.to_owned(), reason: reason.to_owned() }
}

/// Istio writes JSON here; its own agent also takes YAML, which injected pods do not have.
fn json_of(name: &str, text: &str) -> Result<Map<String, Value>, InvalidEnvironment> {
    serde_json::from_str(text).map_err(|e| malformed(name, text, &format!("not a JSON object: {e}")))
}

/// `ISTIO_META_X=y` becomes `X: y`, `ISTIO_METAJSON_X={…}` the object; then what the agent adds itself.
fn metadata(
    environment: &Environment,
    variables: &std::collections::BTreeMap<String, String>,
    config: Map<String, Value>,
) -> Result<Map<String, Value>, InvalidEnvironment> {
    let mut fields = Map::new();
    for (name, value) in variables {
        if let Some(key) = name.strip_prefix("ISTIO_METAJSON_") {
            fields.insert(key.to_owned(), Value::Object(json_of(name, value)?));
        } else if let Some(key) = name.strip_prefix("ISTIO_META_") {
            // Lists travel as JSON texts.
            let value = if value.starts_with('[') || value.starts_with('{') {
                serde_json::from_str(value).unwrap_or_else(|_| json!(value))
            } else {
                json!(value)
            };
            fields.insert(key.to_owned(), value);
        }
    }
    let mut labels =
        match fields.remove("LABELS").or_else(|| variables.get("ISTIO_METAJSON_LABELS").and_then(|l| serde_json::from_str(l).ok())) {
            Some(Value::Object(labels)) => labels,
            _ => Map::new(),
        };
    for (key, variable) in
        [("service.istio.io/canonical-name", "CANONICAL_SERVICE"), ("service.istio.io/canonical-revision", "CANONICAL_REVISION")]
    {
        if let Some(value) = variables.get(variable).filter(|v| !v.is_empty()) {
            labels.entry(key).or_insert_with(|| json!(value));
        }
    }
    fields.insert("LABELS".to_owned(), Value::Object(labels));
    let own = [
        ("NAME", json!(environment.pod)),
        ("NAMESPACE", json!(environment.namespace)),
        // All addresses of a pod: what it says here decides whether it listens on IPv6 too.
        (
            "INSTANCE_IPS",
            json!(variables.get("INSTANCE_IPS").filter(|v| !v.is_empty()).cloned().unwrap_or_else(|| environment.ip.to_string())),
        ),
        ("SERVICE_ACCOUNT", json!(environment.service_account)),
        ("CLUSTER_ID", json!(environment.cluster_id)),
        ("ISTIO_VERSION", json!(variables.get("ISTIO_META_ISTIO_VERSION").map_or("1.30.0", String::as_str))),
        ("PROXY_CONFIG", Value::Object(config)),
    ];
    for (key, value) in own {
        fields.insert(key.to_owned(), value);
    }
    if !fields.contains_key("WORKLOAD_NAME") {
        fields.insert("WORKLOAD_NAME".to_owned(), json!(environment.pod));
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Vec<(String, String)> {
        [
            ("POD_NAME", "reviews-v1-abc"),
            ("POD_NAMESPACE", "shop"),
            ("INSTANCE_IP", "10.1.2.3"),
            ("SERVICE_ACCOUNT", "reviews"),
            ("ISTIO_META_WORKLOAD_NAME", "reviews-v1"),
            ("ISTIO_META_CLUSTER_ID", "c1"),
            ("ISTIO_META_POD_PORTS", r#"[{"containerPort":9080}]"#),
            ("ISTIO_METAJSON_LABELS", r#"{"app":"reviews","version":"v1"}"#),
            ("PROXY_CONFIG", r#"{"discoveryAddress":"cp:15012","concurrency":2,"proxyAdminPort":15555}"#),
            ("TRUST_DOMAIN", "td"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .to_vec()
    }

    #[test]
    fn the_injected_environment_is_understood() {
        let e = Environment::read(Role::Sidecar, variables()).unwrap();
        assert_eq!(
            (e.discovery.as_str(), e.ca.as_str(), e.admin_port, e.concurrency, e.trust_domain.as_str()),
            ("cp:15012", "cp:15012", 15555, Some(2), "td")
        );
        assert_eq!(e.metadata["WORKLOAD_NAME"], "reviews-v1");
        assert_eq!(e.metadata["LABELS"]["version"], "v1");
        assert_eq!(e.metadata["POD_PORTS"][0]["containerPort"], 9080);
        assert_eq!(e.metadata["INSTANCE_IPS"], "10.1.2.3");
        let dual = variables().into_iter().chain([("INSTANCE_IPS".to_owned(), "10.1.2.3,fd00::3".to_owned())]);
        assert_eq!(Environment::read(Role::Sidecar, dual).unwrap().metadata["INSTANCE_IPS"], "10.1.2.3,fd00::3");
        assert_eq!((&e.metadata["CLUSTER_ID"], &e.metadata["NAMESPACE"]), (&json!("c1"), &json!("shop")));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let without = |name: &str| variables().into_iter().filter(|(k, _)| k != name).collect::<Vec<_>>();
        assert_eq!(Environment::read(Role::Sidecar, without("INSTANCE_IP")).unwrap_err(), InvalidEnvironment::Missing("INSTANCE_IP"));
        let mut wrong = without("PROXY_CONFIG");
        wrong.push(("PROXY_CONFIG".into(), "{".into()));
        let error = Environment::read(Role::Sidecar, wrong).unwrap_err().to_string();
        assert!(error.contains("PROXY_CONFIG") && error.contains("JSON"), "{error}");
    }
}
