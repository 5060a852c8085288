//! What Istio says of a cluster in its metadata (`istio`).
use lateen_proto::envoy::config::core::v3::Metadata;
use lateen_telemetry::istio::CatchAll;

use super::common::struct_json;
use crate::cluster::{IstioCluster, IstioDestination, IstioService, PeerExchange};

/// Always outside of the mesh, whatever its metadata says.
const PASSTHROUGH: &str = "PassthroughCluster";

pub(super) fn istio_cluster(name: &str, metadata: Option<&Metadata>) -> IstioCluster {
    let fields = metadata.and_then(|m| m.filter_metadata.get("istio")).map(struct_json).unwrap_or_default();
    let is = |key: &str| fields.get(key) == Some(&serde_json::Value::Bool(true));
    let exchange = match (is("disable_mx"), name == PASSTHROUGH || is("external")) {
        (true, _) => PeerExchange::Never,
        (false, true) => PeerExchange::External,
        (false, false) => PeerExchange::Always,
    };
    let destination = match CatchAll::of_cluster(name) {
        Some(catch_all) => IstioDestination::CatchAll(catch_all),
        None => service(&fields).map_or(IstioDestination::Unknown, IstioDestination::Service),
    };
    IstioCluster { destination, exchange }
}

/// The first service; one without a name has its host's first label.
fn service(fields: &serde_json::Value) -> Option<IstioService> {
    let service = fields.get("services")?.get(0)?;
    let text = |key: &str| service.get(key).and_then(serde_json::Value::as_str);
    let host = text("host").unwrap_or_default();
    let name = text("name").unwrap_or_else(|| host.split('.').next().unwrap_or(host));
    Some(IstioService { host: host.into(), name: name.into(), namespace: text("namespace").unwrap_or_default().into() })
}

#[cfg(test)]
mod tests {
    use prost_types::value::Kind;
    use prost_types::{ListValue, Struct, Value};

    use super::*;

    fn fields<const N: usize>(all: [(&str, Kind); N]) -> Struct {
        Struct { fields: all.into_iter().map(|(key, kind)| (key.to_owned(), Value { kind: Some(kind) })).collect() }
    }

    fn compiled<const N: usize>(name: &str, all: [(&str, Kind); N]) -> IstioCluster {
        let filter_metadata = [("istio".to_owned(), fields(all))].into_iter().collect();
        istio_cluster(name, Some(&Metadata { filter_metadata, ..Default::default() }))
    }

    #[test]
    fn a_cluster_outside_of_the_mesh_or_without_exchange_is_known_by_its_metadata() {
        let (yes, no) = (|| Kind::BoolValue(true), || Kind::BoolValue(false));
        assert_eq!(istio_cluster("a", None).exchange, PeerExchange::Always);
        assert_eq!(istio_cluster("PassthroughCluster", None).exchange, PeerExchange::External);
        assert_eq!(compiled("a", [("external", yes())]).exchange, PeerExchange::External);
        assert_eq!(compiled("a", [("external", no()), ("disable_mx", no())]).exchange, PeerExchange::Always);
        assert_eq!(compiled("a", [("external", yes()), ("disable_mx", yes())]).exchange, PeerExchange::Never);
    }

    #[test]
    fn a_service_without_a_name_has_its_hosts_first_label() {
        let text = |text: &str| Kind::StringValue(text.to_owned());
        let service = |of: Struct| {
            let one = Value { kind: Some(Kind::StructValue(of)) };
            let list = Kind::ListValue(ListValue { values: vec![one] });
            let IstioDestination::Service(service) = compiled("a", [("services", list)]).destination else { panic!("a service") };
            [service.host, service.name, service.namespace].map(|part| part.to_string())
        };
        let host = "reviews.shop.svc.cluster.local";
        assert_eq!(service(fields([("host", text(host)), ("namespace", text("shop"))])), [host, "reviews", "shop"]);
        assert_eq!(service(fields([("host", text(host)), ("name", text("r"))])), [host, "r", ""]);
    }
}
