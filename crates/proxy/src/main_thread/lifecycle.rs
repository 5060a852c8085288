//! Starting the process: workers, main-thread tasks, admin server; and its end.
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_identity::WorkloadSecrets;
use lateen_snapshot::Snapshot;
use lateen_snapshot::bootstrap::Bootstrap;
use lateen_telemetry::Registry;
use lateen_telemetry::istio::{Config as IstioConfig, IstioMetrics, PeerMetadata};
use lateen_telemetry::stats::TagStyle;
use lateen_xds::client::TokenSource;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::drain::{DrainPlan, Draining, Step};
use super::state::{Main, Parts, Publisher};
use super::{cluster_figures, discovery, dns, dns_cache, ejection, figures, files, health, on_demand, overload};
use crate::admin::{self, AdminOptions};
use crate::restart::{self, Child, Inherited, Lineage, Parent};
use crate::worker::{Drain, DrainTime, LogFiles, NodeText, Peers, Sockets, Wishes, WorkerConfig, WorkerHandle};

/// How a proxy process runs.
pub struct Options {
    pub bootstrap: Bootstrap,
    /// Worker threads; at least 1.
    pub concurrency: usize,
    /// Pins each worker to a CPU.
    pub pin: bool,
    /// `SO_MARK` of connections upstream, so that capture lets them pass.
    pub upstream_mark: Option<u32>,
    /// The workload's identity, where the process is also the agent: answers for Istio's `sds-grpc`.
    pub identity: Option<watch::Receiver<Option<Arc<WorkloadSecrets>>>>,
    /// `authorization` of discovery streams.
    pub token: Option<TokenSource>,
    /// What this workload tells its peers and its metrics.
    pub local: PeerMetadata,
    pub admin: AdminOptions,
    /// How long `/drain_listeners?graceful` takes.
    pub drain_time: Duration,
    /// Connections end spread over that time, rather than with their next response.
    pub drain_gradually: bool,
    /// How statistics are labelled: Istio's dashboards and Envoy's expect different names.
    pub tags: TagStyle,
    /// Whether a new process can take over from this one, and this one from an old one.
    pub restart: Option<restart::Options>,
}

impl Options {
    /// One worker, and nothing beside what the bootstrap says.
    pub fn new(bootstrap: Bootstrap) -> Self {
        Self {
            bootstrap,
            concurrency: 1,
            pin: false,
            upstream_mark: None,
            identity: None,
            token: None,
            local: PeerMetadata::default(),
            admin: AdminOptions::default(),
            drain_time: Duration::from_secs(5),
            drain_gradually: true,
            tags: TagStyle::default(),
            restart: None,
        }
    }
}

/// A running proxy.
pub struct Process {
    pub main: Arc<Main>,
    logs: Arc<LogFiles>,
    workers: Arc<Workers>,
    tasks: JoinSet<()>,
    parent: Option<Arc<Parent>>,
}

/// A task of the main thread.
type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// The worker threads as receivers of snapshots.
struct Workers(Vec<WorkerHandle>);

impl Publisher for Arc<Workers> {
    fn publish(&self, snapshot: Arc<Snapshot>) {
        for worker in &self.0 {
            worker.publish(snapshot.clone());
        }
    }

    fn drain(&self, drain: Drain) {
        for worker in &self.0 {
            worker.tell(drain);
        }
    }

    fn connections(&self) -> u64 {
        self.0.iter().map(WorkerHandle::connections).sum()
    }

    fn problems(&self) -> Vec<String> {
        let mut all: Vec<String> = self.0.iter().flat_map(WorkerHandle::problems).collect();
        all.sort();
        all.dedup();
        all
    }

    fn has_applied(&self, version: u64) -> bool {
        self.0.iter().all(|w| *w.applied().borrow() >= version)
    }

    fn open_listeners(&self) {
        self.0.iter().for_each(WorkerHandle::open_listeners);
    }

    fn has_opened_listeners(&self) -> bool {
        self.0.iter().all(WorkerHandle::has_opened_listeners)
    }

    fn sockets(&self) -> Vec<tokio::sync::oneshot::Receiver<Sockets>> {
        self.0.iter().map(WorkerHandle::sockets).collect()
    }
}

/// Starts everything. The caller's runtime runs the main thread's tasks.
///
/// # Errors
/// When a worker cannot start, a static resource is refused, the admin address cannot be bound, or there is no process to
/// take over from.
pub async fn start(options: Options) -> anyhow::Result<Process> {
    let Options { bootstrap, concurrency, pin, upstream_mark, identity, token, local, admin, tags, drain_time, drain_gradually, restart } =
        options;
    let Restarting { bound, before, lineage } = Restarting::begin(restart).await?;
    let concurrency = concurrency.max(1);
    let epoch = Instant::now();
    let switches = overload::switches(&bootstrap.overload, concurrency, epoch);
    let node = Arc::new(own_text(&bootstrap, &local));
    let (registry, shards) = Registry::new(concurrency, tags);
    let shown = bootstrap.stats.clone();
    registry.show_only(Arc::new(move |name: &str| shown.shows(name)));
    let (istio, istio_shards) = IstioMetrics::new(IstioConfig::new(local), concurrency);
    registry.add_source(istio);
    let logs = Arc::new(LogFiles::default());
    let mut handles = Vec::with_capacity(concurrency);
    let (wishes, asked) = Wishes::channel();
    let peers = Peers::default();
    for (index, (shard, istio)) in shards.into_iter().zip(istio_shards).enumerate() {
        handles.push(WorkerHandle::spawn(WorkerConfig {
            index,
            pin: pin.then_some(index),
            shard,
            registry: registry.clone(),
            istio,
            logs: logs.clone(),
            upstream_mark,
            node: node.clone(),
            overload: switches.clone(),
            epoch,
            wishes: wishes.clone(),
            peers: peers.clone(),
            drain: DrainTime { over: drain_time, gradually: drain_gradually },
        })?);
    }
    let inherited = before.as_ref().map(|(_, inherited)| Arc::clone(inherited));
    if let Some(inherited) = &inherited {
        handles.iter().for_each(|worker| worker.hold_listeners(Arc::clone(inherited)));
    }
    let workers = Arc::new(Workers(handles));
    let parts = Parts {
        bootstrap,
        registry,
        publisher: Box::new(workers.clone()),
        epoch,
        workers: concurrency,
        upstream_mark,
        overload: switches,
        logs: logs.clone(),
        drain_time,
        drain_gradually,
        lineage,
        can_restart: bound.is_some(),
        held: inherited.is_some(),
    };
    let main = Main::new(parts).map_err(|r| anyhow::anyhow!("{}: {}", r.name, r.reason))?;
    let mut tasks = JoinSet::new();
    let ports = admin::serve(&main, admin, inherited.as_deref(), &mut tasks).await?;
    let parent = bound.map(|bound| Parent::new(main.clone(), bound, ports));
    if let Some(parent) = &parent {
        tasks.spawn(parent.clone().run());
    }
    let supervisor = main.supervisor.clone();
    let mut supervised = |name, task: fn(Arc<Main>) -> Task| {
        let main = main.clone();
        tasks.spawn(supervisor.clone().run(name, move || task(main.clone())));
    };
    supervised("warming", |main| Box::pin(settle(main)));
    supervised("name resolution", |main| Box::pin(dns::run(main)));
    supervised("names of requests", |main| Box::pin(dns_cache::run(main)));
    supervised("figures", |main| Box::pin(figures::run(main)));
    supervised("figures of clusters", |main| Box::pin(cluster_figures::run(main)));
    supervised("files", |main| Box::pin(files::run(main)));
    supervised("health checks", |main| Box::pin(health::run(main)));
    supervised("outlier detection", |main| Box::pin(ejection::run(main)));
    supervised("overload", |main| Box::pin(overload::run(main)));
    supervised("first answers", |main| Box::pin(async move { main.await_first_answers().await }));
    tasks.spawn(supervisor.clone().only_once("names and clusters on demand", on_demand::run(main.clone(), asked)));
    tasks.spawn(reopen(main.clone(), logs.clone()));
    let secrets = discovery::secrets(main.clone(), identity, token.clone());
    tasks.spawn(supervisor.clone().only_once("secrets", secrets));
    discovery::single(&main, token.clone(), &mut tasks);
    discovery::aggregated(&main, token, &mut tasks);
    if let Some((child, inherited)) = before {
        tasks.spawn(restart::take_over(main.clone(), child, inherited));
    }
    super::memory::trim();
    tracing::info!(workers = concurrency, "started with {}", figures::summary(&main));
    Ok(Process { main, logs, workers, tasks, parent })
}

/// How this process stands to the one before and the one after.
struct Restarting {
    /// Where the next process finds this one.
    bound: Option<restart::Bound>,
    /// The process before, and its sockets.
    before: Option<(Child, Arc<Inherited>)>,
    lineage: Lineage,
}

impl Restarting {
    async fn begin(options: Option<restart::Options>) -> anyhow::Result<Self> {
        let Some(mut options) = options else { return Ok(Self { bound: None, before: None, lineage: Lineage::first(0) }) };
        let bound = options.bind()?;
        let (before, lineage) = match Child::greet(&options).await? {
            Some((child, lineage)) => {
                let inherited = Arc::new(child.sockets().await?);
                (Some((child, inherited)), lineage)
            }
            None => (None, Lineage::first(options.place.epoch)),
        };
        Ok(Self { bound: Some(bound), before, lineage })
    }
}

fn own_text(bootstrap: &Bootstrap, local: &PeerMetadata) -> NodeText {
    let node = &bootstrap.node;
    NodeText {
        id: node.id.clone(),
        metadata: local.encode(),
        cluster: node.cluster.clone(),
        zone: node.locality.as_ref().map(|l| l.zone.clone()).unwrap_or_default(),
        // `sidecar~<address>~<pod>.<namespace>~<domain>`
        address: node.id.split('~').nth(1).and_then(|text| text.parse().ok()),
    }
}

/// Opens access logs anew when the admin server is told to.
async fn reopen(main: Arc<Main>, logs: Arc<LogFiles>) {
    loop {
        main.reopen_logs.notified().await;
        logs.reopen();
    }
}

/// Puts to use what has waited long enough, when it has.
async fn settle(main: Arc<Main>) {
    let mut snapshots = main.snapshots();
    let mut wanted = main.wanted();
    loop {
        let deadline = main.compiler().deadline();
        let sleep = deadline.map_or(Duration::from_secs(1), |d| {
            d.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), Duration::from_secs(1))
        });
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(sleep) => if deadline.is_some_and(|d| d <= Instant::now()) { main.settle() },
        }
    }
}

impl Process {
    /// Waits until the process serves; `false` when it does not within `timeout`.
    pub async fn ready(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.main.phase() != super::Phase::Live {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }

    /// Waits until the admin server is told to quit.
    pub async fn quit(&self) {
        let mut quit = self.main.quit.subscribe();
        // An error would mean that the process state is gone already.
        let _ = quit.wait_for(|q| *q).await;
    }

    /// Waits for a worker or a task of the main thread that ended by itself; says why. What it did is no longer done, so the
    /// process must end.
    pub async fn worker_died(&self) -> String {
        let mut waits = JoinSet::new();
        for mut died in self.workers.0.iter().map(WorkerHandle::died).chain([self.main.supervisor.died()]) {
            waits.spawn(async move { died.wait_for(Option::is_some).await.ok().and_then(|d| d.clone()) });
        }
        while let Some(ended) = waits.join_next().await {
            if let Ok(Some(why)) = ended {
                return why;
            }
        }
        std::future::pending().await
    }

    /// Waits until a new process has taken over and nothing is open here any more, or the time for it is over.
    pub async fn replaced(&self) {
        let Some(parent) = &self.parent else { return std::future::pending().await };
        let grace = parent.left().await;
        let mut draining = Draining::new(DrainPlan { grace, minimum: Duration::ZERO, exit_when_idle: true }, Instant::now());
        while draining.step(self.main.overload.open(), Instant::now()) == Step::Wait {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks callers to leave, closes the listeners, lets what is under way end, and stops, as [`DrainPlan`] says.
    pub async fn shut_down(mut self, plan: DrainPlan) {
        self.main.ask_to_leave();
        let mut draining = Draining::new(plan, Instant::now());
        loop {
            match draining.step(self.main.overload.open(), Instant::now()) {
                Step::Wait => tokio::time::sleep(Duration::from_millis(20)).await,
                Step::CloseListeners => {
                    self.main.drain();
                    // Until the workers have taken what the kernel had queued.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Step::Stop => break,
            }
        }
        if let Some(parent) = &self.parent {
            parent.finish().await;
        }
        self.tasks.shutdown().await;
        for worker in &self.workers.0 {
            worker.stop();
        }
        // A worker hands its last lines over when it stops.
        let deadline = Instant::now() + Duration::from_secs(1);
        while !self.workers.0.iter().all(WorkerHandle::has_stopped) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.logs.flush(Duration::from_secs(1));
    }

    /// Reopens access logs after their rotation.
    pub fn reopen_logs(&self) {
        self.logs.reopen();
    }
}

/// Reads a token from a file at each use: mounted tokens are replaced.
pub fn token_file(path: PathBuf) -> TokenSource {
    Arc::new(move || {
        let read: io::Result<String> = std::fs::read_to_string(&path);
        read.ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
    })
}
