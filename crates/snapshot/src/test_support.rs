//! Messages and snapshots from YAML, for tests.
use std::time::Instant;

use lateen_proto::json::Codec;
use lateen_proto::{Any, any};
use prost::{Message, Name};

use crate::bootstrap::yaml;
use crate::compile::{Compiler, Update};

pub(crate) const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub(crate) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(crate) const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

pub(crate) fn message<M: Message + Name + Default>(text: &str) -> M {
    Codec::new().read(&(&yaml::read(text).unwrap()).into()).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// An update whose name is that of the message.
pub(crate) fn update<M: Message + Name + Default>(text: &str) -> Update {
    let body: Any = any::pack(&message::<M>(text));
    let json = yaml::read(text).unwrap();
    let name = json.get("name").or_else(|| json.get("cluster_name")).and_then(serde_json::Value::as_str).unwrap_or_default();
    Update { name: name.to_owned(), version: "1".to_owned(), body }
}

pub(crate) fn route_table(text: &str) -> std::sync::Arc<crate::RouteTable> {
    let mut compiler = Compiler::new();
    let update = update::<lateen_proto::envoy::config::route::v3::RouteConfiguration>(text);
    compiler.add_static(vec![update.body], Instant::now()).unwrap();
    compiler.snapshot().routes.iter().flatten().next().unwrap().clone()
}

/// A listener `l` on port 80 whose only chain leads to the routes `r`.
pub(crate) fn rds_listener() -> String {
    format!(
        "{{name: l, address: {ANY_80}, filter_chains: [{{filters: [{}]}}]}}",
        manager("rds: {route_config_name: r, config_source: {ads: {}}}")
    )
}

pub(crate) const ANY_80: &str = "{socket_address: {address: 0.0.0.0, port_value: 80}}";

/// An HTTP connection manager with these fields besides its router.
pub(crate) fn manager(fields: &str) -> String {
    filtered(fields, "")
}

/// [`manager`] with these filters before its router, each followed by a comma.
pub(crate) fn filtered(fields: &str, filters: &str) -> String {
    format!(
        "{{name: hcm, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: x, {fields}, http_filters: [{filters}{{name: router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}"
    )
}

pub(crate) fn tcp(cluster: &str) -> String {
    format!(
        "{{name: tcp, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: {cluster}}}}}"
    )
}
