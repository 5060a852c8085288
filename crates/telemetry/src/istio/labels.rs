//! The values of Istio's 25 labels, by the rules of its stats filter.
use super::catch_all::CatchAll;
use super::peer::PeerMetadata;
use super::series::{Kind, Series};
use crate::ResponseFlags;
use std::borrow::Cow;

/// Which end of the connection reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The caller's sidecar, or a gateway.
    Source,
    /// The server's sidecar.
    Destination,
}

/// The label `request_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http,
    Grpc,
    Tcp,
}

/// The service that a request was for, as the cluster's `istio` metadata names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Destination {
    /// `reviews.default.svc.cluster.local`; empty if the cluster does not say.
    pub host: String,
    /// `reviews`, or the name of a cluster without a service (`PassthroughCluster`).
    pub name: String,
    /// `default`.
    pub namespace: String,
}

impl Destination {
    /// A service; its short name defaults to the host's first label.
    pub fn service(host: &str, name: Option<&str>, namespace: Option<&str>) -> Self {
        let name = name.unwrap_or_else(|| host.split('.').next().unwrap_or(host));
        Self { host: host.to_owned(), name: name.to_owned(), namespace: namespace.unwrap_or_default().to_owned() }
    }

    /// No service: only its name is known, and the host that the caller asked for, if any.
    pub fn catch_all(catch_all: CatchAll, host: &str) -> Self {
        Self { host: host.to_owned(), name: catch_all.name().to_owned(), namespace: String::new() }
    }

    /// Only a `Host` header is known: it names both.
    pub fn from_host(host: &str) -> Self {
        Self { host: host.to_owned(), name: host.to_owned(), namespace: String::new() }
    }
}

pub(super) type Labels = Vec<(Cow<'static, str>, String)>;

/// Everything that labels are made of, looked up from the interned numbers.
pub(super) struct Parts<'a> {
    pub(super) local: &'a PeerMetadata,
    pub(super) peer: &'a PeerMetadata,
    pub(super) peer_principal: &'a str,
    pub(super) local_principal: &'a str,
    pub(super) destination: &'a Destination,
}

fn or(value: &str, default: &str) -> String {
    if value.is_empty() { default.to_owned() } else { value.to_owned() }
}

/// `spiffe://td/ns/<namespace>/sa/x`: a namespace proved by a certificate beats one claimed in a header.
fn namespace_of(principal: &str) -> &str {
    principal.split_once("/ns/").map_or("", |(_, rest)| rest.split('/').next().unwrap_or(rest))
}

impl Parts<'_> {
    /// The labels of one series, in a fixed order.
    pub(super) fn labels(&self, series: &Series) -> Labels {
        let mut out = Labels::with_capacity(25);
        let mut put = |key: &'static str, value: String| out.push((Cow::Borrowed(key), value));
        put("reporter", if series.stream.reporter == Reporter::Source { "source" } else { "destination" }.to_owned());
        let proved = namespace_of(self.peer_principal);
        let peer_namespace = if proved.is_empty() { self.peer.namespace.as_str() } else { proved };
        let peer = End { workload: self.peer, namespace: peer_namespace, principal: self.peer_principal };
        let local = End { workload: self.local, namespace: &self.local.namespace, principal: self.local_principal };
        let (source, destination) = match series.stream.reporter {
            Reporter::Source => (&local, &peer),
            Reporter::Destination => (&peer, &local),
        };
        source.put(&SOURCE, &mut put);
        destination.put(&DESTINATION, &mut put);
        let (host, name, namespace) = self.service(series.stream.reporter, peer_namespace);
        put("destination_service", host);
        put("destination_service_name", name);
        put("destination_service_namespace", namespace);
        if series.kind != Kind::Messages {
            self.outcome(series, &mut put);
        }
        out
    }

    fn service(&self, reporter: Reporter, peer_namespace: &str) -> (String, String, String) {
        // A server knows itself: its canonical name stands in. A caller that lacks the metadata knows nothing.
        let (own, namespace) = match reporter {
            Reporter::Destination => (or(&self.local.canonical_name, "unknown"), self.local.namespace.as_str()),
            Reporter::Source if self.destination.namespace.is_empty() => ("unknown".to_owned(), peer_namespace),
            Reporter::Source => ("unknown".to_owned(), self.destination.namespace.as_str()),
        };
        (or(&self.destination.host, &own), or(&self.destination.name, &own), or(namespace, "unknown"))
    }

    fn outcome(&self, series: &Series, put: &mut impl FnMut(&'static str, String)) {
        put(
            "request_protocol",
            match series.protocol {
                Protocol::Http => "http".to_owned(),
                Protocol::Grpc => "grpc".to_owned(),
                Protocol::Tcp => "tcp".to_owned(),
            },
        );
        if series.kind == Kind::Http {
            put("response_code", series.code.to_string());
            put("grpc_response_status", series.grpc_status.map(|status| status.to_string()).unwrap_or_default());
        }
        put("response_flags", series.flags.to_string());
        let policy = match series.stream.reporter {
            Reporter::Source => "unknown",
            Reporter::Destination if series.stream.peer_principal.is_some() && series.stream.local_principal.is_some() => "mutual_tls",
            Reporter::Destination => "none",
        };
        put("connection_security_policy", policy.to_owned());
    }
}

/// The label names of one end.
struct EndKeys {
    workload: &'static str,
    namespace: &'static str,
    principal: &'static str,
    app: &'static str,
    version: &'static str,
    canonical_service: &'static str,
    canonical_revision: &'static str,
    cluster: &'static str,
}

const SOURCE: EndKeys = EndKeys {
    workload: "source_workload",
    namespace: "source_workload_namespace",
    principal: "source_principal",
    app: "source_app",
    version: "source_version",
    canonical_service: "source_canonical_service",
    canonical_revision: "source_canonical_revision",
    cluster: "source_cluster",
};

const DESTINATION: EndKeys = EndKeys {
    workload: "destination_workload",
    namespace: "destination_workload_namespace",
    principal: "destination_principal",
    app: "destination_app",
    version: "destination_version",
    canonical_service: "destination_canonical_service",
    canonical_revision: "destination_canonical_revision",
    cluster: "destination_cluster",
};

struct End<'a> {
    workload: &'a PeerMetadata,
    namespace: &'a str,
    principal: &'a str,
}

impl End<'_> {
    fn put(&self, keys: &EndKeys, put: &mut impl FnMut(&'static str, String)) {
        put(keys.workload, or(&self.workload.workload, "unknown"));
        put(keys.namespace, or(self.namespace, "unknown"));
        put(keys.principal, or(self.principal, "unknown"));
        put(keys.app, or(&self.workload.app, "unknown"));
        put(keys.version, or(&self.workload.version, "unknown"));
        put(keys.canonical_service, or(&self.workload.canonical_name, "unknown"));
        put(keys.canonical_revision, or(&self.workload.canonical_revision, "latest"));
        put(keys.cluster, or(&self.workload.cluster, "unknown"));
    }
}

/// The labels of the series that takes what is over the limit.
pub(super) fn overflow_labels(series: &Series) -> Labels {
    let unknown = PeerMetadata { canonical_revision: "unknown".to_owned(), ..PeerMetadata::default() };
    let destination = Destination { host: "overflow".into(), name: "overflow".into(), namespace: "overflow".into() };
    let parts = Parts { local: &unknown, peer: &unknown, peer_principal: "", local_principal: "", destination: &destination };
    parts.labels(&Series { flags: ResponseFlags::NONE, ..*series })
}
