//! Translation: a pure function from the world and one client's view to xDS resources, on the path of a change.
//!
//! [`world::World::build`] resolves and indexes configuration; [`generate`] makes the resources of one type that one
//! client is to have, with Istio's names, defaults and behaviour. Each carries the configuration it came from. Nothing
//! here does I/O, and equal inputs give equal bytes, so that what has not changed is not sent again.
mod cluster;
mod grpc;
mod listener;
pub mod names;
pub mod provenance;
mod route;
mod secret;
pub mod view;
mod wire;
pub mod world;

use std::collections::BTreeSet;

use prost_types::Any;

use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use lateen_proto::envoy::config::listener::v3::Listener;
use lateen_proto::envoy::config::route::v3::RouteConfiguration;
use lateen_proto::envoy::extensions::transport_sockets::tls::v3::Secret;

pub use provenance::Provenance;
pub use view::{Generator, ProxyKind, ProxyView};
pub use world::{Live, World, workloads::Workload};

/// The type URLs that [`generate`] answers to.
pub mod type_url {
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    pub const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    /// In the order in which a change is sent so that nothing refers to what is not there yet.
    pub const ALL: [&str; 5] = [CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET];
}

/// Which resources of a type are wanted.
#[derive(Clone, Copy, Debug)]
pub enum Names<'a> {
    /// All that the client is to have (for secrets: none, as they are only given out by name).
    All,
    Only(&'a [String]),
}

impl Names<'_> {
    fn wants(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(list) => list.iter().any(|wanted| wanted == name || wanted == "*"),
        }
    }

    fn or_else(&self, all: impl FnOnce() -> Vec<String>) -> Vec<String> {
        match self {
            Self::Only(list) if !list.iter().any(|name| name == "*") => list.to_vec(),
            _ => all(),
        }
    }
}

/// A resource, typed until it is encoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Cluster(Box<Cluster>),
    Endpoints(Box<ClusterLoadAssignment>),
    Listener(Box<Listener>),
    Routes(Box<RouteConfiguration>),
    Secret(Box<Secret>),
}

impl Message {
    /// The envelope that goes over the wire.
    pub fn encode(&self) -> Any {
        match self {
            Self::Cluster(message) => wire::any(&**message),
            Self::Endpoints(message) => wire::any(&**message),
            Self::Listener(message) => wire::any(&**message),
            Self::Routes(message) => wire::any(&**message),
            Self::Secret(message) => wire::any(&**message),
        }
    }
}

/// A generated resource and the configuration behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    pub name: String,
    pub message: Message,
    pub provenance: Vec<Provenance>,
}

impl Generated {
    fn new(name: String, message: Message, mut provenance: Vec<Provenance>) -> Self {
        let mut seen = BTreeSet::new();
        provenance.retain(|from| seen.insert(from.clone()));
        Self { name, message, provenance }
    }
}

/// The resources of a type for one client. A name that stands for nothing gives nothing; an unknown type gives nothing.
pub fn generate(world: &World, view: &ProxyView, type_url: &str, names: Names<'_>) -> Vec<Generated> {
    let mut generated = match (type_url, view.generator) {
        (type_url::CLUSTER, Generator::Envoy) => clusters(world, view, names),
        (type_url::LISTENER, Generator::Envoy) => listeners(world, view, names),
        (type_url::ROUTES, Generator::Envoy) => routes(world, view, names),
        (type_url::ENDPOINTS, _) => endpoints(world, view, names),
        (type_url::SECRET, _) => secrets(world, view, names),
        (type_url::CLUSTER, Generator::Grpc) => {
            let wanted = names.or_else(|| eds_names(world, view));
            let found = wanted.into_iter().filter_map(|name| Some((grpc::cluster(world, view, &name)?, name)));
            found.map(|((cluster, from), name)| Generated::new(name, Message::Cluster(Box::new(cluster)), from)).collect()
        }
        (type_url::LISTENER, Generator::Grpc) => {
            let wanted = names.or_else(|| grpc::listener_names(world, view));
            let found = wanted.into_iter().filter_map(|name| Some((grpc::listener(world, view, &name)?, name)));
            found.map(|((listener, from), name)| Generated::new(name, Message::Listener(Box::new(listener)), from)).collect()
        }
        (type_url::ROUTES, Generator::Grpc) => {
            let wanted = names.or_else(|| eds_names(world, view));
            let found = wanted.into_iter().filter_map(|name| Some((grpc::routes(world, view, &name)?, name)));
            found.map(|((config, from), name)| Generated::new(name, Message::Routes(Box::new(config)), from)).collect()
        }
        _ => Vec::new(),
    };
    generated.sort_by(|a, b| a.name.cmp(&b.name));
    generated
}

fn clusters(world: &World, view: &ProxyView, names: Names<'_>) -> Vec<Generated> {
    let built = match names {
        Names::Only(list)
            if !list.iter().any(|name| name == "*")
                && list.iter().all(|name| name.starts_with("outbound|") && names::parse_outbound(name).is_some()) =>
        {
            // Asked for by name (on demand), only their services are looked at.
            let mut services = BTreeSet::new();
            let wanted = list.iter().filter_map(|name| names::parse_outbound(name));
            let wanted = wanted.filter(|name| services.insert((name.host, name.port)));
            let found = wanted.filter_map(|name| {
                let service = world.service(&view.namespace, name.host)?;
                Some(cluster::outbound(world, view, service, service.port(name.port)?, false))
            });
            found.flatten().collect()
        }
        _ => cluster::build(world, view),
    };
    let wanted = built.into_iter().filter(|built| names.wants(&built.cluster.name));
    wanted.map(|built| Generated::new(built.cluster.name.clone(), Message::Cluster(Box::new(built.cluster)), built.provenance)).collect()
}

fn listeners(world: &World, view: &ProxyView, names: Names<'_>) -> Vec<Generated> {
    let wanted = listener::build(world, view).into_iter().filter(|built| names.wants(&built.listener.name));
    wanted.map(|built| Generated::new(built.listener.name.clone(), Message::Listener(Box::new(built.listener)), built.provenance)).collect()
}

fn routes(world: &World, view: &ProxyView, names: Names<'_>) -> Vec<Generated> {
    let generated =
        |name: String, built: route::sidecar::Built| Generated::new(name, Message::Routes(Box::new(built.config)), built.provenance);
    match view.kind {
        ProxyKind::Sidecar => {
            let wanted = names.or_else(|| sidecar_route_names(world, view));
            wanted.into_iter().filter_map(|name| Some(generated(name.clone(), route::sidecar::build(world, view, &name)?))).collect()
        }
        ProxyKind::Router => {
            let merged = world.merged_gateway(view);
            let wanted = names.or_else(|| merged.by_route.keys().cloned().collect());
            wanted.into_iter().map(|name| generated(name.clone(), route::gateway::build(world, view, &merged, &name))).collect()
        }
    }
}

/// The routes that a sidecar's listeners refer to.
fn sidecar_route_names(world: &World, view: &ProxyView) -> Vec<String> {
    use world::protocol::{Protocol, may_be_http};
    let mut names = BTreeSet::new();
    for service in world.visible_services(&view.namespace).filter(|service| service.resolution != world::services::Resolution::Alias) {
        for port in service.ports.iter().filter(|port| may_be_http(port.protocol)) {
            let own_address = service.addresses.iter().any(|address| !address.contains('/')) || service.is_headless();
            if port.protocol == Protocol::Auto && own_address {
                names.insert(names::domain(&service.host, port.number));
            } else {
                names.insert(port.number.to_string());
            }
        }
    }
    names.into_iter().collect()
}

fn eds_names(world: &World, view: &ProxyView) -> Vec<String> {
    use lateen_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
    let eds = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
    let clusters = cluster::build(world, view).into_iter().filter(|built| built.cluster.cluster_discovery_type == eds);
    clusters.map(|built| built.cluster.name).collect()
}

fn endpoints(world: &World, view: &ProxyView, names: Names<'_>) -> Vec<Generated> {
    let wanted = names.or_else(|| eds_names(world, view));
    let found = wanted.into_iter().filter_map(|name| Some((cluster::endpoints::build(world, view, &name)?, name)));
    found.map(|(built, name)| Generated::new(name, Message::Endpoints(Box::new(built.assignment)), built.provenance)).collect()
}

fn secrets(world: &World, view: &ProxyView, names: Names<'_>) -> Vec<Generated> {
    let wanted = names.or_else(Vec::new);
    let found = wanted.into_iter().filter_map(|name| Some((secret::build(world, view, &name)?, name)));
    found.map(|(built, name)| Generated::new(name, Message::Secret(Box::new(built.secret)), built.provenance)).collect()
}
