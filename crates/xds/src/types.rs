//! Type URLs of the resources that travel, and the order in which a change of many types is sent.

pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub const SCOPED_ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
pub const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// Make before break: a listener or route must never name a cluster that has not been sent yet, so
/// clusters and their endpoints go first. Types not listed come after these, in order of their URL.
pub const PUSH_ORDER: [&str; 9] = [CLUSTER, ENDPOINT, LISTENER, ROUTE, SCOPED_ROUTE, VIRTUAL_HOST, SECRET, EXTENSION, NAME_TABLE];

/// The name that subscribes to everything (xDS protocol, "How the client specifies what resources to return").
pub const WILDCARD: &str = "*";

/// Where `type_url` stands in [`PUSH_ORDER`]; unknown types come last.
pub fn rank(type_url: &str) -> usize {
    PUSH_ORDER.iter().position(|t| *t == type_url).unwrap_or(PUSH_ORDER.len())
}

/// Whether a first request without names subscribes to everything. For the other types a proxy that
/// names nothing wants nothing: Envoy opens its endpoint subscription with no names when it has no
/// EDS cluster yet, and an answer with every endpoint of the mesh would be wrong.
pub fn is_wildcard_capable(type_url: &str) -> bool {
    !matches!(type_url, ENDPOINT | ROUTE | VIRTUAL_HOST | SECRET | EXTENSION)
}

/// Whether a state-of-the-world response holds every resource of the type, so that one left out is
/// deleted (xDS protocol, "Deleting resources": true of listeners and clusters; Envoy's scoped_rds.cc: of scopes too, which
/// a proxy asks for all at once).
pub fn is_full_state(type_url: &str) -> bool {
    matches!(type_url, LISTENER | CLUSTER | SCOPED_ROUTE)
}

/// Whether a subscription to `<name>` also brings resources named `<name>/<rest>` (Envoy vhds.rst).
pub fn is_namespaced(type_url: &str) -> bool {
    type_url == VIRTUAL_HOST
}

/// Istio's three-letter name of a type, as its metrics and debug pages label it.
pub fn short_name(type_url: &str) -> &str {
    match type_url {
        LISTENER => "lds",
        ROUTE => "rds",
        SCOPED_ROUTE => "srds",
        VIRTUAL_HOST => "vhds",
        CLUSTER => "cds",
        ENDPOINT => "eds",
        SECRET => "sds",
        EXTENSION => "ecds",
        NAME_TABLE => "nds",
        other => other.rsplit('/').next().unwrap_or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_the_generated_messages() {
        use lateen_proto::any::url;
        use lateen_proto::envoy::config as c;
        assert_eq!(url::<c::listener::v3::Listener>(), LISTENER);
        assert_eq!(url::<c::route::v3::RouteConfiguration>(), ROUTE);
        assert_eq!(url::<c::route::v3::VirtualHost>(), VIRTUAL_HOST);
        assert_eq!(url::<c::route::v3::ScopedRouteConfiguration>(), SCOPED_ROUTE);
        assert_eq!(url::<c::cluster::v3::Cluster>(), CLUSTER);
        assert_eq!(url::<c::endpoint::v3::ClusterLoadAssignment>(), ENDPOINT);
        assert_eq!(url::<c::core::v3::TypedExtensionConfig>(), EXTENSION);
        assert_eq!(url::<lateen_proto::envoy::extensions::transport_sockets::tls::v3::Secret>(), SECRET);
        assert_eq!(url::<lateen_proto::istio::networking::nds::v1::NameTable>(), NAME_TABLE);
    }

    #[test]
    fn clusters_go_before_what_refers_to_them() {
        assert!(rank(CLUSTER) < rank(ENDPOINT) && rank(ENDPOINT) < rank(LISTENER) && rank(LISTENER) < rank(ROUTE));
        assert!(rank("type.googleapis.com/x.Unknown") > rank(NAME_TABLE));
    }
}
