//! The view of one client of the control plane: who it is, where it stands and what it can do.
use std::collections::BTreeSet;
use std::net::IpAddr;

use lateen_core::Labels;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::wire::core_v3;

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyKind {
    /// Beside a workload: all its traffic passes.
    Sidecar,
    /// At the edge of the mesh.
    Router,
}

/// Which dialect of xDS the client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generator {
    /// Listeners and clusters for Envoy and Lateen.
    Envoy,
    /// API listeners for a gRPC library without a proxy.
    Grpc,
}

/// How a sidecar gets hold of the workload's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interception {
    Redirect,
    Tproxy,
    /// Not at all: listeners bind real ports.
    None,
}

/// The address families a proxy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpMode {
    V4,
    V6,
    Dual,
}

impl IpMode {
    /// The addresses that mean "any", first family first.
    pub fn wildcards(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &["0.0.0.0"],
            Self::V6 => &["::"],
            Self::Dual => &["0.0.0.0", "::"],
        }
    }

    /// The addresses that mean "this pod".
    pub fn localhosts(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &["127.0.0.1"],
            Self::V6 => &["::1"],
            Self::Dual => &["127.0.0.1", "::1"],
        }
    }

    /// The source addresses that mark traffic from the sidecar to its own workload, so that it is not captured again.
    pub fn passthrough_sources(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &["127.0.0.6"],
            Self::V6 => &["::6"],
            Self::Dual => &["127.0.0.6", "::6"],
        }
    }
}

/// Extensions that only Istio's and our data plane have; a stock Envoy refuses resources that name them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// `istio.alpn`: offers `istio-http/1.1` and kin to mesh peers.
    pub alpn: bool,
    /// `istio.stats`: the standard metrics.
    pub stats: bool,
    /// `istio.metadata_exchange`: who is on the other side.
    pub metadata_exchange: bool,
}

/// What translation needs to know of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyView {
    /// The whole node id, as in `sidecar~10.0.0.1~pod.ns~ns.svc.cluster.local`.
    pub id: String,
    pub kind: ProxyKind,
    pub generator: Generator,
    /// The pod's name.
    pub name: String,
    pub namespace: String,
    /// `ns.svc.cluster.local`.
    pub dns_domain: String,
    /// At least one, as Kubernetes lists them.
    pub addresses: Vec<IpAddr>,
    pub labels: Labels,
    pub service_account: String,
    pub cluster_id: String,
    pub network: String,
    pub workload_name: String,
    pub node_name: String,
    /// `region/zone/subzone`.
    pub locality: String,
    pub interception: Interception,
    pub capabilities: Capabilities,
    /// The client wants HTTP/1.0 accepted.
    pub http10: bool,
    /// The default idle timeout of TCP connections, e.g. `1h`.
    pub idle_timeout: Option<std::time::Duration>,
    /// It may not open ports below 1024.
    pub unprivileged: bool,
}

/// Why a node cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNode {
    #[error("node id `{0}` is not of the form <sidecar|router>~<ip>~<pod>.<namespace>~<dns domain>")]
    Id(String),
    #[error("node id `{0}`: `{1}` proxies are not supported")]
    Kind(String, String),
    #[error("node id `{0}`: `{1}` is not an IP address")]
    Address(String, String),
}

impl ProxyView {
    /// Reads the node message that a client sends first.
    ///
    /// # Errors
    /// [`InvalidNode`] when the id is not of Istio's form.
    pub fn from_node(node: &core_v3::Node) -> Result<Self, InvalidNode> {
        let invalid = || InvalidNode::Id(node.id.clone());
        let parts: Vec<&str> = node.id.split('~').collect();
        let [kind, ip, pod, dns_domain] = parts[..] else { return Err(invalid()) };
        let kind = match kind {
            "sidecar" => ProxyKind::Sidecar,
            "router" => ProxyKind::Router,
            other => return Err(InvalidNode::Kind(node.id.clone(), other.to_owned())),
        };
        let (name, pod_namespace) = pod.rsplit_once('.').ok_or_else(invalid)?;
        let metadata = Metadata(node.metadata.as_ref());
        let listed: Vec<&str> = metadata.text("INSTANCE_IPS").split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
        let listed = if listed.is_empty() { vec![ip] } else { listed };
        let addresses = listed
            .into_iter()
            .map(|text| text.parse().map_err(|_| InvalidNode::Address(node.id.clone(), text.to_owned())))
            .collect::<Result<Vec<IpAddr>, _>>()?;
        let locality = node.locality.as_ref().map(locality_text).unwrap_or_default();
        Ok(Self {
            id: node.id.clone(),
            kind,
            generator: if metadata.text("GENERATOR") == "grpc" { Generator::Grpc } else { Generator::Envoy },
            name: name.to_owned(),
            namespace: or(metadata.text("NAMESPACE"), pod_namespace),
            dns_domain: dns_domain.to_owned(),
            addresses,
            labels: metadata.labels(),
            service_account: metadata.text("SERVICE_ACCOUNT").to_owned(),
            cluster_id: or(metadata.text("CLUSTER_ID"), "Kubernetes"),
            network: metadata.text("NETWORK").to_owned(),
            workload_name: metadata.text("WORKLOAD_NAME").to_owned(),
            node_name: metadata.text("NODE_NAME").to_owned(),
            locality,
            interception: match metadata.text("INTERCEPTION_MODE") {
                "TPROXY" => Interception::Tproxy,
                "NONE" => Interception::None,
                _ => Interception::Redirect,
            },
            capabilities: capabilities(node),
            http10: metadata.text("HTTP10") == "1",
            idle_timeout: parse_duration(metadata.text("IDLE_TIMEOUT")),
            unprivileged: matches!(metadata.text("UNPRIVILEGED_POD"), "true" | "1"),
        })
    }

    /// The address families of the proxy.
    pub fn ip_mode(&self) -> IpMode {
        let v4 = self.addresses.iter().any(IpAddr::is_ipv4);
        let v6 = self.addresses.iter().any(IpAddr::is_ipv6);
        match (v4, v6) {
            (true, true) => IpMode::Dual,
            (false, true) => IpMode::V6,
            _ => IpMode::V4,
        }
    }

    /// The address that stands for "any" in listener names.
    pub fn wildcard(&self) -> &'static str {
        self.ip_mode().wildcards()[0]
    }

    pub fn is_sidecar(&self) -> bool {
        self.kind == ProxyKind::Sidecar
    }
}

fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text.to_owned() }
}

/// `region/zone/subzone`, shortened where the end is empty.
pub(crate) fn locality_text(locality: &core_v3::Locality) -> String {
    let text = format!("{}/{}/{}", locality.region, locality.zone, locality.sub_zone);
    text.trim_end_matches('/').to_owned()
}

/// Clients list their extensions, and only what is listed is used: what is not would be refused with all the rest.
fn capabilities(node: &core_v3::Node) -> Capabilities {
    let names: BTreeSet<&str> = node.extensions.iter().filter(|e| !e.disabled).map(|e| e.name.as_str()).collect();
    let has = |name: &str| names.contains(name);
    Capabilities { alpn: has("istio.alpn"), stats: has("istio.stats"), metadata_exchange: has("istio.metadata_exchange") }
}

/// Go's duration form for the few whole units that metadata uses: `30s`, `5m`, `1h`, `500ms`, or sums of them.
fn parse_duration(text: &str) -> Option<std::time::Duration> {
    let mut rest = text;
    let mut total = std::time::Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let millis = match &rest[digits..unit_end] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(std::time::Duration::from_millis(number.checked_mul(millis)?))?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

/// Reading of the node's free-form metadata.
struct Metadata<'a>(Option<&'a Struct>);

impl<'a> Metadata<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0?.fields.get(key)
    }

    fn text(&self, key: &str) -> &'a str {
        match self.get(key).and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(text)) => text,
            Some(Kind::BoolValue(true)) => "true",
            _ => "",
        }
    }

    fn labels(&self) -> Labels {
        let Some(Kind::StructValue(labels)) = self.get("LABELS").and_then(|value| value.kind.as_ref()) else {
            return Labels::new();
        };
        labels
            .fields
            .iter()
            .filter_map(|(key, value)| match &value.kind {
                Some(Kind::StringValue(text)) => Some((key.clone(), text.clone())),
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{object, string};

    fn node(id: &str) -> core_v3::Node {
        core_v3::Node { id: id.to_owned(), ..Default::default() }
    }

    #[test]
    fn the_id_and_metadata_say_who_it_is() {
        let labels = object([("app", string("reviews"))]);
        let mut node = node("sidecar~10.0.0.1~reviews-v1.books~books.svc.cluster.local");
        node.metadata = Some(object([
            ("LABELS", Value { kind: Some(Kind::StructValue(labels)) }),
            ("INSTANCE_IPS", string("10.0.0.1,fd00::1")),
            ("SERVICE_ACCOUNT", string("reviews")),
            ("IDLE_TIMEOUT", string("1h30m")),
        ]));
        let view = ProxyView::from_node(&node).unwrap();
        assert_eq!((view.name.as_str(), view.namespace.as_str()), ("reviews-v1", "books"));
        assert_eq!(view.ip_mode(), IpMode::Dual);
        assert_eq!(view.labels.get("app").map(String::as_str), Some("reviews"));
        assert_eq!(view.idle_timeout, Some(std::time::Duration::from_secs(5400)));
        assert_eq!(view.generator, Generator::Envoy);
    }

    #[test]
    fn bad_ids_are_refused_with_their_reason() {
        assert!(matches!(ProxyView::from_node(&node("x")), Err(InvalidNode::Id(_))));
        assert!(matches!(ProxyView::from_node(&node("ztunnel~1.1.1.1~a.b~b.svc")), Err(InvalidNode::Kind(..))));
        assert!(matches!(ProxyView::from_node(&node("sidecar~nope~a.b~b.svc")), Err(InvalidNode::Address(..))));
    }

    #[test]
    fn a_stock_envoy_is_never_offered_istios_filters() {
        let mut stock = node("sidecar~1.1.1.1~a.b~b.svc.cluster.local");
        stock.extensions = vec![core_v3::Extension { name: "envoy.filters.http.router".to_owned(), ..Default::default() }];
        assert_eq!(ProxyView::from_node(&stock).unwrap().capabilities, Capabilities::default());
        stock.extensions.push(core_v3::Extension { name: "istio.alpn".to_owned(), ..Default::default() });
        assert!(ProxyView::from_node(&stock).unwrap().capabilities.alpn);
    }
}
