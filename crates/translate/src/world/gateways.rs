//! Gateways, and the servers that one gateway proxy opens: all Gateways that select it, merged by port.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lateen_core::selects;
use lateen_model::kinds::Gateway as Spec;
use lateen_model::kinds::gateway::{Server as ServerSpec, ServerTlsMode};
use lateen_model::{Diagnostic, Resource, ResourceSet, Severity};

use super::protocol::Protocol;
use super::{ServiceTarget, World, age};
use crate::provenance::Provenance;
use crate::view::ProxyView;

/// All Gateways, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Gateways {
    all: Vec<Arc<Resource<Spec>>>,
}

/// A server of a Gateway, as one proxy opens it.
#[derive(Clone, Debug)]
pub struct Server {
    pub spec: ServerSpec,
    /// `namespace/name` of its Gateway.
    pub gateway: String,
    /// The port that the Gateway names: the Service's.
    pub port: u16,
    pub port_name: String,
    pub protocol: Protocol,
    /// Of the form `host` or `namespace/host`.
    pub hosts: Vec<String>,
    pub bind: String,
    /// Of its routes; empty where nothing is routed by HTTP.
    pub route_name: String,
    pub provenance: Provenance,
}

impl Server {
    pub fn tls_mode(&self) -> Option<ServerTlsMode> {
        self.spec.tls.as_ref().map(|tls| tls.mode)
    }

    /// TLS goes through unopened.
    pub fn passes_tls_through(&self) -> bool {
        matches!(self.tls_mode(), Some(ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough)) && !self.protocol.is_http()
    }

    pub fn is_https_terminating(&self) -> bool {
        self.protocol == Protocol::Https && self.spec.tls.is_some() && !self.passes_tls_through()
    }

    pub fn redirects_to_https(&self) -> bool {
        self.spec.tls.as_ref().is_some_and(|tls| tls.https_redirect)
    }

    /// Whether its bytes are TLS, so that servers of one port can be told apart by SNI.
    fn is_tls(&self) -> bool {
        self.protocol.is_tls() && self.spec.tls.is_some()
    }

    /// The hosts without their namespaces, for SNI.
    pub fn sni_hosts(&self) -> Vec<String> {
        let hosts: BTreeSet<&str> = self.hosts.iter().map(|host| host.rsplit('/').next().unwrap_or(host)).collect();
        hosts.into_iter().map(str::to_owned).collect()
    }

    /// The hosts that VirtualServices of `namespace` may claim.
    pub fn hosts_for(&self, namespace: &str) -> Vec<&str> {
        self.hosts
            .iter()
            .filter_map(|entry| match entry.split_once('/') {
                Some((owner, host)) => (owner == namespace).then_some(host),
                None => Some(entry.as_str()),
            })
            .collect()
    }
}

/// The servers that share one listening port and address.
#[derive(Clone, Debug)]
pub struct ServerPort {
    /// The port that the proxy opens.
    pub number: u16,
    /// Empty means any.
    pub bind: String,
    /// Plain HTTP, all servers with one set of routes.
    pub plain_http: bool,
    pub servers: Vec<Arc<Server>>,
}

/// Everything that one gateway proxy opens.
#[derive(Clone, Debug, Default)]
pub struct MergedGateway {
    pub ports: Vec<ServerPort>,
    /// The servers behind each set of routes.
    pub by_route: BTreeMap<String, Vec<Arc<Server>>>,
    pub diagnostics: Vec<Diagnostic>,
}

impl MergedGateway {
    /// Whether some server hands TLS on to whichever service its SNI names.
    pub fn passes_any_service(&self) -> bool {
        self.ports.iter().flat_map(|port| &port.servers).any(|server| server.tls_mode() == Some(ServerTlsMode::AutoPassthrough))
    }
}

impl Gateways {
    pub(crate) fn build(resources: &ResourceSet, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut all: Vec<_> = resources.gateways().cloned().collect();
        all.sort_by(|a, b| age(&a.meta).cmp(&age(&b.meta)));
        let gateways = Self { all };
        diagnostics.extend(gateways.conflicts());
        gateways
    }

    /// What servers get in each other's way, for a proxy with just the labels of some selector.
    fn conflicts(&self) -> Vec<Diagnostic> {
        let mut found: Vec<Diagnostic> = Vec::new();
        let selectors: BTreeSet<&lateen_core::Labels> = self.all.iter().map(|gateway| &gateway.spec.selector).collect();
        for labels in selectors {
            let mut merge = Merge::default();
            for gateway in self.all.iter().filter(|gateway| selects(&gateway.spec.selector, labels)) {
                merge.add_all(gateway, &[]);
            }
            for diagnostic in merge.out.diagnostics {
                if !found.contains(&diagnostic) {
                    found.push(diagnostic);
                }
            }
        }
        found
    }

    /// Those that select a proxy; an empty selector selects every gateway proxy.
    pub fn selecting<'a>(&'a self, view: &'a ProxyView) -> impl Iterator<Item = &'a Arc<Resource<Spec>>> {
        self.all.iter().filter(|gateway| selects(&gateway.spec.selector, &view.labels))
    }
}

impl World {
    /// The servers that a gateway proxy opens.
    pub fn merged_gateway(&self, view: &ProxyView) -> MergedGateway {
        let targets = self.targets(view);
        let mut merge = Merge::default();
        for gateway in self.gateways.selecting(view) {
            merge.add_all(gateway, &targets);
        }
        merge.out
    }
}

#[derive(Default)]
struct Merge {
    out: MergedGateway,
    /// TLS hosts taken, by port and address.
    tls_hosts: HashMap<(u16, String), BTreeSet<String>>,
}

/// `./host` is the Gateway's own namespace's, `*/host` anyone's.
fn normalize_host(host: &str, namespace: &str) -> String {
    match host.split_once('/') {
        Some((".", name)) => format!("{namespace}/{name}"),
        Some(("*", name)) => name.to_owned(),
        _ => host.to_owned(),
    }
}

/// Plain HTTP servers of a port share one set of routes; each HTTPS server, having a certificate of its own, has its own.
fn route_name(server: &Server, listening: u16, gateway: &Resource<Spec>) -> String {
    let bind = if server.bind.is_empty() { String::new() } else { format!(".{}", server.bind) };
    if server.protocol.is_http() {
        format!("http.{listening}{bind}")
    } else if server.is_https_terminating() {
        format!("https.{}.{}.{}.{}{bind}", server.port, server.port_name, gateway.name(), gateway.namespace())
    } else {
        String::new()
    }
}

impl Merge {
    fn add_all(&mut self, gateway: &Arc<Resource<Spec>>, targets: &[ServiceTarget]) {
        for (at, spec) in gateway.spec.servers.iter().enumerate() {
            self.add(gateway, at, spec, targets);
        }
    }

    fn add(&mut self, gateway: &Arc<Resource<Spec>>, at: usize, spec: &ServerSpec, targets: &[ServiceTarget]) {
        let path = format!("spec.servers[{at}]");
        let Some(port) = &spec.port else {
            self.reject(gateway, &path, "the server has no port, and is left out");
            return;
        };
        let mut server = Server {
            spec: spec.clone(),
            gateway: format!("{}/{}", gateway.namespace(), gateway.name()),
            port: port.number,
            port_name: port.name.clone(),
            protocol: Protocol::from_name(&port.protocol).unwrap_or(Protocol::Auto),
            hosts: spec.hosts.iter().map(|host| normalize_host(&host.to_ascii_lowercase(), gateway.namespace())).collect(),
            bind: spec.bind.clone().unwrap_or_default(),
            route_name: String::new(),
            provenance: Provenance::of(gateway),
        };
        // The Gateway names the Service's port; the pod listens on its target.
        let listening = targets.iter().find(|target| target.port.number == port.number).map_or(port.number, |target| target.target_port);
        server.route_name = route_name(&server, listening, gateway);
        if server.spec.tls.is_some() && !server.protocol.is_http() {
            let taken = self.tls_hosts.entry((listening, server.bind.clone())).or_default();
            let duplicates: Vec<&String> = server.hosts.iter().filter(|host| taken.contains(*host)).collect();
            if let Some(first) = duplicates.first() {
                let text = format!("another server has TLS for {first} on port {listening} already; this one is left out");
                self.reject(gateway, &path, text);
                return;
            }
            taken.extend(server.hosts.iter().cloned());
        }
        self.place(gateway, &path, listening, server);
    }

    fn place(&mut self, gateway: &Arc<Resource<Spec>>, path: &str, listening: u16, server: Server) {
        let plain_http = server.protocol.is_http();
        let existing = self.out.ports.iter().position(|port| port.number == listening && port.bind == server.bind);
        if let Some(existing) = existing {
            let first_is_tls = self.out.ports[existing].servers.first().is_some_and(|first| first.is_tls());
            let compatible = (self.out.ports[existing].plain_http && plain_http) || (first_is_tls && server.is_tls());
            if !compatible {
                let text = format!("port {listening} is already used with another protocol by another server; this one is left out");
                self.reject(gateway, path, text);
                return;
            }
            if !plain_http && !server.route_name.is_empty() && self.out.by_route.contains_key(&server.route_name) {
                let text = format!("two HTTPS servers of port {listening} have the same port name; this one is left out");
                self.reject(gateway, path, text);
                return;
            }
        }
        let server = Arc::new(server);
        if !server.route_name.is_empty() {
            self.out.by_route.entry(server.route_name.clone()).or_default().push(Arc::clone(&server));
        }
        match existing {
            Some(existing) => self.out.ports[existing].servers.push(server),
            None => {
                self.out.ports.push(ServerPort { number: listening, bind: server.bind.clone(), plain_http, servers: vec![server] });
            }
        }
    }

    fn reject(&mut self, gateway: &Resource<Spec>, path: &str, text: impl Into<String>) {
        self.out.diagnostics.push(gateway.report(Severity::Error, path, text));
    }
}
