//! The gRPC services: aggregated discovery, and secret discovery on its own.
use std::sync::Arc;
use std::time::Duration;

use lateen_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use lateen_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use lateen_proto::envoy::service::secret::v3::secret_discovery_service_server::{SecretDiscoveryService, SecretDiscoveryServiceServer};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::hub::Hub;
use super::serve::{Arriving, Core};
use super::{Backend, DeltaStream, SotwStream, Stream};
use crate::client::Mode;
use crate::types::SECRET;

/// Responses of one stream that may wait for the transport.
const RESPONSE_QUEUE: usize = 4;

/// What a client may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A larger request ends its stream. Default 4 MiB, as Istio's.
    pub max_request_bytes: usize,
    /// More streams than this are refused. Default 20,000.
    pub max_streams: usize,
    /// A stream on which nothing is asked is closed. Default 10 s.
    pub first_request: Duration,
    /// A client that does not read for this long is disconnected. Default 60 s.
    pub send: Duration,
    /// Removed clusters are held back this long for a client that does not answer. Default 5 s.
    pub removal_patience: Duration,
    /// Routes and listeners wait this long for a client to ask for the endpoints of clusters that
    /// are new to it. Default 1 s.
    pub endpoint_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_request_bytes: 4 << 20,
            max_streams: 20_000,
            first_request: Duration::from_secs(10),
            send: Duration::from_secs(60),
            removal_patience: Duration::from_secs(5),
            endpoint_patience: Duration::from_secs(1),
        }
    }
}

/// A discovery service around a [`Backend`]. Cheap to clone.
pub struct Discovery<B: Backend> {
    core: Arc<Core<B>>,
    streams: Arc<Semaphore>,
}

impl<B: Backend> Clone for Discovery<B> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone(), streams: self.streams.clone() }
    }
}

impl<B: Backend> Discovery<B> {
    /// `identifier` names this control plane in every response.
    pub fn new(backend: B, hub: Arc<Hub<B::Proxy, B::Snapshot>>, identifier: &str, limits: Limits) -> Self {
        let streams = Arc::new(Semaphore::new(limits.max_streams));
        Self { core: Arc::new(Core { backend, hub, limits, identifier: identifier.into() }), streams }
    }

    pub fn backend(&self) -> &B {
        &self.core.backend
    }

    /// The aggregated discovery service, for `tonic::transport::Server::add_service`.
    pub fn aggregated(&self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self.clone()).max_decoding_message_size(self.core.limits.max_request_bytes)
    }

    /// The secret discovery service.
    pub fn secrets(&self) -> SecretDiscoveryServiceServer<Self> {
        SecretDiscoveryServiceServer::new(self.clone()).max_decoding_message_size(self.core.limits.max_request_bytes)
    }

    async fn start<T: Stream + 'static>(
        &self,
        request: Request<Streaming<T::Request>>,
        stream: T,
        mode: Mode,
        only_type: Option<&'static str>,
    ) -> Result<Response<ReceiverStream<Result<T::Response, Status>>>, Status>
    where
        T::Request: 'static,
        T::Response: Send + 'static,
    {
        let permit = self.streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Status::resource_exhausted("too many streams; try another replica"))?;
        let (metadata, extensions, inbound) = request.into_parts();
        let identity = self.core.backend.authenticate(&metadata, &extensions).await?;
        let (outbound, responses) = mpsc::channel(RESPONSE_QUEUE);
        let arriving = Arriving { core: self.core.clone(), identity, stream, mode, only_type, inbound, outbound };
        tokio::spawn(async move {
            arriving.serve().await;
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

type Responses<R> = ReceiverStream<Result<R, Status>>;

#[tonic::async_trait]
impl<B: Backend> AggregatedDiscoveryService for Discovery<B> {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.start(request, SotwStream::new(self.core.identifier.clone()), Mode::Sotw, None).await
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.start(request, DeltaStream::new(self.core.identifier.clone()), Mode::Delta, None).await
    }
}

#[tonic::async_trait]
impl<B: Backend> SecretDiscoveryService for Discovery<B> {
    type StreamSecretsStream = Responses<DiscoveryResponse>;
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_secrets(&self, request: Request<Streaming<DiscoveryRequest>>) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.start(request, SotwStream::new(self.core.identifier.clone()), Mode::Sotw, Some(SECRET)).await
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.start(request, DeltaStream::new(self.core.identifier.clone()), Mode::Delta, Some(SECRET)).await
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are served on streams (StreamSecrets, DeltaSecrets) only"))
    }
}
