//! What goes and comes back so fast that nobody saw it gone is asked for anew.
use std::collections::BTreeSet;
use std::sync::Mutex;

use lateen_proto::Any;
use lateen_proto::any::{pack, url};
use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use lateen_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use lateen_proto::json::Codec;
use lateen_snapshot::bootstrap::yaml;
use prost::{Message, Name};

use crate::grpc::{GrpcServer, HTTP2, Reply};
use crate::support::{self, eventually, indent, whole_process};

fn resource<M: Message + Name + Default>(name: &str, text: &str) -> Resource {
    let body: Any = pack(&Codec::new().read::<M>(&(&yaml::read(text).unwrap()).into()).unwrap());
    Resource { name: name.to_owned(), version: "1".to_owned(), resource: Some(body), ..Default::default() }
}

fn cluster(stat_name: &str) -> Resource {
    let text =
        format!("{{name: c, alt_stat_name: {stat_name}, type: EDS, eds_cluster_config: {{service_name: s, eds_config: {{ads: {{}}}}}}}}");
    resource::<Cluster>("c", &text)
}

fn endpoints() -> Resource {
    let address = "{socket_address: {address: 10.0.0.1, port_value: 80}}";
    resource::<ClusterLoadAssignment>(
        "s",
        &format!("{{cluster_name: s, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]}}"),
    )
}

fn response<M: Name>(resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    let removed_resources = removed.iter().map(|name| (*name).to_owned()).collect();
    DeltaDiscoveryResponse { type_url: url::<M>(), nonce: "n".to_owned(), resources, removed_resources, ..Default::default() }
}

/// A control plane that, as Istio's does, sends endpoints only to names that were not subscribed to before.
#[derive(Default)]
struct ControlPlane {
    has_sent: bool,
    has_replaced: bool,
    subscribed: BTreeSet<String>,
}

impl ControlPlane {
    fn answer(&mut self, request: DeltaDiscoveryRequest) -> Reply {
        if request.type_url == url::<Cluster>() && !std::mem::replace(&mut self.has_sent, true) {
            return Reply::of(&response::<Cluster>(vec![cluster("first")], &[]));
        }
        if request.type_url != url::<ClusterLoadAssignment>() {
            return Reply::Nothing;
        }
        let new = request.resource_names_subscribe.into_iter().filter(|name| self.subscribed.insert(name.clone())).count();
        self.subscribed.retain(|name| !request.resource_names_unsubscribe.contains(name));
        if new > 0 {
            return Reply::of(&response::<ClusterLoadAssignment>(vec![endpoints()], &[]));
        }
        if !request.response_nonce.is_empty() && !std::mem::replace(&mut self.has_replaced, true) {
            let both = [response::<Cluster>(Vec::new(), &["c"]), response::<Cluster>(vec![cluster("second")], &[])];
            let framed = both.map(|message| {
                let bytes = message.encode_to_vec();
                [&[0][..], &(bytes.len() as u32).to_be_bytes(), &bytes].concat()
            });
            return Reply::Raw(framed.concat());
        }
        Reply::Nothing
    }
}

#[test]
fn a_cluster_that_is_removed_and_sent_again_at_once_gets_its_endpoints() {
    let plane = Mutex::new(ControlPlane::default());
    let server = GrpcServer::start(move |bytes| plane.lock().unwrap().answer(DeltaDiscoveryRequest::decode(bytes).unwrap()));
    let ads = "{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}";
    let xds = indent(&support::cluster("xds", &[server.port()], HTTP2), 2);
    let yaml = format!(
        "node: {{id: n, cluster: c}}\ndynamic_resources: {{ads_config: {ads}, cds_config: {{ads: {{}}}}}}\nstatic_resources:\n  clusters:\n{xds}"
    );
    let (_runtime, process) = whole_process(&yaml, |_| {});
    let members = |of: &str| {
        let snapshot = process.main.snapshot();
        snapshot.cluster_named("c").filter(|(_, c)| &*c.config.stat_name == of).map(|(_, c)| c.hosts.len())
    };
    eventually(|| members("second") == Some(1));
}
