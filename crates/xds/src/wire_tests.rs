//! The client against a server that sends just what a test says, to see what goes over the wire.
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lateen_proto::any::pack;
use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::core::v3::Node;
use lateen_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use lateen_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as WireResource,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::client::{Client, Connector, Handler, Options, Rejected};
use crate::resource::Resource;
use crate::types::CLUSTER;

const WAIT: Duration = Duration::from_secs(10);

/// Answers the first request of each stream with this, and nothing after.
#[derive(Clone)]
struct Script {
    answer: DeltaDiscoveryResponse,
    asked_with: Arc<Mutex<Option<MetadataMap>>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only delta"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        *self.asked_with.lock().unwrap() = Some(request.metadata().clone());
        let (answer, mut first) = (self.answer.clone(), true);
        let answers = request.into_inner().filter_map(move |asked| {
            let answers = asked.is_ok() && std::mem::take(&mut first);
            answers.then(|| Ok(answer.clone()))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Tells what it is handed.
struct Told(mpsc::UnboundedSender<String>);

impl Handler for Told {
    fn apply(&mut self, _: &str, updates: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected> {
        let updated = updates.into_iter().map(|r| format!("+{}", r.name));
        updated.chain(removed.into_iter().map(|name| format!("-{name}"))).for_each(|change| drop(self.0.send(change)));
        Vec::new()
    }
}

/// What the client hands over, while the server runs as long as the runtime.
async fn run(script: Script, options: Options) -> mpsc::UnboundedReceiver<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(AggregatedDiscoveryServiceServer::new(script));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let client = Client::new(options, Connector::tcp(address.to_string()));
    client.subscriptions().wildcard(CLUSTER);
    let (sender, told) = mpsc::unbounded_channel();
    tokio::spawn(async move { client.run(&mut Told(sender)).await });
    told
}

fn script(ttl: Option<lateen_proto::Duration>) -> Script {
    let body = pack(&Cluster { name: "a".into(), ..Default::default() });
    let resource = WireResource { name: "a".into(), version: "1".into(), resource: Some(body), ttl, ..Default::default() };
    let answer = DeltaDiscoveryResponse { type_url: CLUSTER.into(), nonce: "n".into(), resources: vec![resource], ..Default::default() };
    Script { answer, asked_with: Arc::default() }
}

fn options() -> Options {
    Options::new(Node { id: "node".into(), ..Default::default() }, "xds.test")
}

async fn next(told: &mut mpsc::UnboundedReceiver<String>) -> Option<String> {
    timeout(WAIT, told.recv()).await.unwrap()
}

#[tokio::test]
async fn a_stream_carries_the_metadata_that_it_is_given_and_its_authorization_goes_before_the_token() {
    let script = script(None);
    let mut options = options();
    options.token = Some(Arc::new(|| Some("secret".to_owned())));
    for (name, value) in [("clusterid", "Kubernetes"), ("x-many", "1"), ("x-many", "2"), ("authorization", "Basic abc")] {
        options.metadata.append(name, value.parse().unwrap());
    }
    let mut told = run(script.clone(), options).await;
    assert_eq!(next(&mut told).await.as_deref(), Some("+a"));
    let sent = script.asked_with.lock().unwrap().take().unwrap();
    let values = |name| sent.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!((values("clusterid"), values("x-many")), (vec!["Kubernetes".to_owned()], vec!["1".to_owned(), "2".to_owned()]));
    assert_eq!(values("authorization"), ["Basic abc"]);
}

#[tokio::test]
async fn what_has_lived_its_time_is_removed_without_a_word_of_the_server() {
    let mut told = run(script(Some(lateen_proto::Duration { seconds: 0, nanos: 50_000_000 })), options()).await;
    assert_eq!(next(&mut told).await.as_deref(), Some("+a"));
    assert_eq!(next(&mut told).await.as_deref(), Some("-a"));
}
