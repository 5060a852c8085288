//! The discovery server of a case: each proxy has one of its own, and both are told the same.
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lateen_proto::envoy::config::core::v3::Node;
use lateen_proto::json::Codec;
use lateen_proto::{Any, any};
use lateen_xds::server::{Backend, Event, Limits, Names, Types};
use lateen_xds::{Discovery, Hub, Resource, types};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};

use crate::case::Discovered;
use crate::config::{METADATA, Places, fill};

/// How long a proxy may take to answer what it is sent.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// From a proxy's answer until its worker has what was answered.
const REACHES_WORKERS: Duration = Duration::from_millis(100);

/// Resources by type and name.
type World = BTreeMap<(&'static str, String), Arc<Resource>>;

/// A server of one proxy; it ends when this is dropped.
pub(crate) struct Server {
    hub: Arc<Hub<(), Arc<World>>>,
    world: World,
    answers: Arc<Mutex<Answers>>,
    task: JoinHandle<()>,
    pub(crate) port: u16,
}

/// What was sent and answered so far.
#[derive(Default)]
struct Answers {
    sent: usize,
    answered: usize,
    converged: usize,
    refused: Vec<String>,
}

impl Answers {
    /// How often a change was taken in whole, or in part.
    fn ends(&self) -> usize {
        self.converged + self.refused.len()
    }
}

struct Serving(Arc<Mutex<Answers>>);

impl Serving {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Serving {
    type Identity = ();
    type Proxy = ();
    type Snapshot = Arc<World>;

    fn authenticate(&self, metadata: &MetadataMap, _: &Extensions) -> impl Future<Output = Result<(), Status>> + Send {
        let (key, value) = METADATA;
        let is_there = metadata.get(key).is_some_and(|given| given == value);
        std::future::ready(if is_there { Ok(()) } else { Err(Status::unauthenticated("the initial metadata is missing")) })
    }

    fn accept(&self, _: &Node, (): ()) -> Result<(), Status> {
        Ok(())
    }

    fn generate(&self, world: &Arc<World>, (): &(), type_url: &str, names: &Names) -> Vec<Arc<Resource>> {
        let wanted = |(of, name): &&(&str, String)| *of == type_url && names.wants_of(type_url, name);
        world.iter().filter(|(key, _)| wanted(key)).map(|(_, resource)| Arc::clone(resource)).collect()
    }

    fn event(&self, (): &(), event: Event<'_>) {
        let mut answers = self.answers();
        match event {
            Event::Sent { .. } => answers.sent += 1,
            Event::Acked { .. } => answers.answered += 1,
            Event::Nacked { type_url, message } => {
                answers.answered += 1;
                answers.refused.push(format!("{}: {message}", types::short_name(type_url)));
            }
            Event::Converged { .. } => answers.converged += 1,
            Event::Connected | Event::Disconnected { .. } | Event::Stale { .. } => {}
        }
    }
}

impl Server {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (answers, hub) = (Arc::<Mutex<Answers>>::default(), Arc::new(Hub::new(1)));
        let service = Discovery::new(Serving(Arc::clone(&answers)), Arc::clone(&hub), "test", Limits::default()).aggregated();
        let server = tonic::transport::Server::builder().add_service(service);
        let task = tokio::spawn(async move {
            if let Err(e) = server.serve_with_incoming(TcpListenerStream::new(listener)).await {
                eprintln!("the discovery server ended: {e}");
            }
        });
        Ok(Self { hub, world: World::new(), answers, task, port })
    }

    /// Has these resources from now on.
    pub(crate) fn have(&mut self, given: &Discovered, places: &Places) -> anyhow::Result<()> {
        let lists = [
            (types::CLUSTER, &given.clusters),
            (types::LISTENER, &given.listeners),
            (types::ROUTE, &given.routes),
            (types::SCOPED_ROUTE, &given.scopes),
            (types::VIRTUAL_HOST, &given.virtual_hosts),
            (types::EXTENSION, &given.extensions),
        ];
        let mut changed = BTreeSet::new();
        for (type_url, resources) in lists {
            for resource in resources {
                let name = resource["name"].as_str().with_context(|| format!("a resource of type {type_url} has no name"))?;
                let mut resource = resource.clone();
                fill(&mut resource, places);
                let value = Codec::new().encode(any::name_of(type_url), &(&resource).into())?;
                let body = Any { type_url: type_url.to_owned(), value };
                self.world.insert((type_url, name.to_owned()), Resource::shared(name, body));
                changed.insert(type_url);
            }
        }
        self.world.retain(|(type_url, name), _| {
            let stays = !given.gone.contains(name);
            if !stays {
                changed.insert(type_url);
            }
            stays
        });
        self.hub.publish(Arc::new(self.world.clone()), Types::Only(changed), tokio::time::Instant::now());
        Ok(())
    }

    /// [`Self::have`], and waits until the proxy has answered.
    pub(crate) async fn change(&mut self, given: &Discovered, places: &Places) -> anyhow::Result<()> {
        let before = self.answers().ends();
        self.have(given, places)?;
        let since = Instant::now();
        loop {
            {
                let answers = self.answers();
                if answers.ends() > before && answers.answered >= answers.sent {
                    break;
                }
            }
            ensure!(since.elapsed() < ANSWERS_WITHIN, "what was discovered is not answered within {ANSWERS_WITHIN:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(REACHES_WORKERS).await;
        Ok(())
    }

    /// What the proxy refused so far, in its words.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.answers().refused.clone()
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
