//! The state of the main thread: the compiler, the phase of the process, and who gets snapshots.
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use lateen_balance::Locality;
use lateen_identity::WorkloadSecrets;
use lateen_snapshot::Snapshot;
use lateen_snapshot::bootstrap::{Bootstrap, DynamicSource};
use lateen_snapshot::compile::{Compiler, Outcome, Rejected, Reload, SecretSource, Update, Wanted};
use lateen_telemetry::envoy_names::extension_config;
use lateen_telemetry::{Block, BlockName, Registry};
use lateen_xds::types;
use tokio::sync::{Notify, oneshot, watch};

use super::first_answers::FirstAnswers;
use super::supervise::Supervisor;
use crate::dns::Resolver;
use crate::restart::Lineage;
use crate::worker::{Drain, LogFiles, Overload, Sockets};

/// What takes so many bytes takes megabytes to read, which are given back.
const LARGE_UPDATE: usize = 256 << 10;

/// Receives snapshots: the workers, or a test.
pub trait Publisher: Send + Sync {
    fn publish(&self, snapshot: Arc<Snapshot>);

    /// Tells connections to come to an end, and listeners to close.
    fn drain(&self, _drain: Drain) {}

    /// Open downstream connections.
    fn connections(&self) -> u64 {
        0
    }

    /// Listeners that could not be bound, in words.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether this version of the snapshot is in force everywhere.
    fn has_applied(&self, _version: u64) -> bool {
        true
    }

    /// Opens listeners that were held back.
    fn open_listeners(&self) {}

    fn has_opened_listeners(&self) -> bool {
        true
    }

    /// Duplicates of each worker's listening sockets.
    fn sockets(&self) -> Vec<oneshot::Receiver<Sockets>> {
        Vec::new()
    }
}

/// How far the process has come (Envoy `ServerInfo.State`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first configuration has not arrived.
    PreInitializing,
    /// It has, but something in it still waits.
    Initializing,
    Live,
    Draining,
}

/// Shared by the tasks of the main thread; no request ever waits for it.
pub struct Main {
    pub bootstrap: Bootstrap,
    pub registry: Arc<Registry>,
    pub started: Instant,
    pub started_at: SystemTime,
    /// Zero of the clock of outlier detection.
    pub epoch: Instant,
    pub workers: usize,
    publisher: Box<dyn Publisher>,
    compiler: Mutex<Compiler>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// What must be subscribed to; the discovery tasks follow it.
    wanted: watch::Sender<Arc<Wanted>>,
    /// By what kind of filter they are and their names.
    filter_figures: Mutex<HashMap<(&'static str, Arc<str>), Block>>,
    first_answers: FirstAnswers,
    was_ready: AtomicBool,
    /// The process comes to its end. Listeners that are drained by the admin server change nothing of that.
    ending: AtomicBool,
    failing_health_check: AtomicBool,
    /// Stops the process.
    pub quit: watch::Sender<bool>,
    /// Access logs are to be opened anew, after their rotation.
    pub(crate) reopen_logs: Notify,
    pub(crate) logs: Arc<LogFiles>,
    pub(crate) upstream_mark: Option<u32>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) overload: Arc<Overload>,
    /// How long an asked-for drain takes, and whether connections end gradually.
    pub(crate) drain_time: Duration,
    pub(crate) drain_gradually: bool,
    rotation: AtomicU32,
    pub(super) supervisor: Supervisor,
    pub(crate) lineage: Lineage,
    /// Another process can take over from this one.
    pub(crate) can_restart: bool,
    /// Nothing is accepted yet: the process before still serves.
    held: watch::Sender<bool>,
    /// Open connections of the process before.
    parent_connections: AtomicU64,
}

/// What a [`Main`] is made from.
pub struct Parts {
    pub bootstrap: Bootstrap,
    pub registry: Arc<Registry>,
    pub publisher: Box<dyn Publisher>,
    pub epoch: Instant,
    pub workers: usize,
    pub upstream_mark: Option<u32>,
    pub overload: Arc<Overload>,
    pub logs: Arc<LogFiles>,
    pub drain_time: Duration,
    pub drain_gradually: bool,
    pub lineage: Lineage,
    /// Another process can take over from this one.
    pub can_restart: bool,
    /// Nothing is accepted until [`Main::release`].
    pub held: bool,
}

impl Main {
    /// Takes the static resources in use and publishes the first snapshot.
    ///
    /// # Errors
    /// The static resource that is refused, and why.
    pub fn new(parts: Parts) -> Result<Arc<Self>, Rejected> {
        let Parts {
            mut bootstrap,
            registry,
            publisher,
            epoch,
            workers,
            upstream_mark,
            overload,
            logs,
            drain_time,
            drain_gradually,
            lineage,
            can_restart,
            held,
        } = parts;
        let mut compiler = Compiler::new();
        if let Some(name) = &bootstrap.local_cluster {
            let lateen_proto::envoy::config::core::v3::Locality { region, zone, sub_zone } =
                bootstrap.node.locality.clone().unwrap_or_default();
            compiler.set_local_cluster(name, Locality { region: region.into(), zone: zone.into(), sub_zone: sub_zone.into() });
        }
        compiler.set_incremental(bootstrap.ads.as_ref().is_some_and(|ads| ads.delta));
        compiler.add_static(std::mem::take(&mut bootstrap.resources), Instant::now())?;
        let main = Arc::new(Self {
            first_answers: FirstAnswers::new(&bootstrap),
            resolver: Resolver::new(upstream_mark, bootstrap.dns_resolver.clone()),
            bootstrap,
            supervisor: Supervisor::new(&registry),
            registry,
            started: Instant::now(),
            started_at: SystemTime::now(),
            epoch,
            workers,
            publisher,
            compiler: Mutex::new(compiler),
            snapshots: watch::channel(Arc::new(Snapshot::default())).0,
            wanted: watch::channel(Arc::default()).0,
            filter_figures: Mutex::default(),
            was_ready: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            failing_health_check: AtomicBool::new(false),
            quit: watch::channel(false).0,
            reopen_logs: Notify::new(),
            logs,
            upstream_mark,
            overload,
            drain_time,
            drain_gradually,
            rotation: AtomicU32::new(0),
            lineage,
            can_restart,
            held: watch::channel(held).0,
            parent_connections: AtomicU64::new(0),
        });
        main.publish();
        Ok(main)
    }

    /// The compiler. Held briefly: never across an await.
    pub fn compiler(&self) -> MutexGuard<'_, Compiler> {
        self.compiler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The snapshots as they are published.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    pub(crate) fn wanted(&self) -> watch::Receiver<Arc<Wanted>> {
        self.wanted.subscribe()
    }

    /// Changes the configuration and publishes what came of it.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Compiler, Instant) -> T) -> T {
        let result = change(&mut self.compiler(), Instant::now());
        self.publish();
        result
    }

    /// Resources from a discovery service.
    pub(crate) fn apply(&self, source: &SecretSource, type_url: &str, updates: Vec<Update>, removed: &[String]) -> Vec<Rejected> {
        let rejected = self.take(source, type_url, updates, removed);
        for Rejected { name, reason } in &rejected {
            tracing::warn!(r#type = types::short_name(type_url), name, reason, "refused a resource; the version before stays in use");
        }
        rejected
    }

    /// [`Self::apply`], for who tells of what is refused.
    pub(super) fn take(&self, source: &SecretSource, type_url: &str, updates: Vec<Update>, removed: &[String]) -> Vec<Rejected> {
        let bytes: usize = updates.iter().map(|update| update.body.value.len()).sum();
        let rejected = self.change(|compiler, now| compiler.apply_from(source, type_url, updates, removed, now));
        self.first_answers.note(type_url);
        if bytes >= LARGE_UPDATE {
            super::memory::trim();
        }
        rejected
    }

    /// A source whose answer can be of no use at all: who waits for these goes on without them, and so does the start (Envoy
    /// `CdsApiImpl::onConfigUpdateFailed`).
    pub(super) fn refuse(&self, source: &SecretSource, type_url: &str, names: &[String]) {
        self.change(|compiler, now| compiler.refuse(source, type_url, names, now));
        self.first_answers.note(type_url);
    }

    /// Goes on without clusters, and then without listeners, when their sources do not answer in time.
    pub(super) async fn await_first_answers(&self) {
        self.first_answers.wait(self.bootstrap.clusters_within, self.bootstrap.listeners_within).await;
    }

    pub(crate) fn set_identity(&self, source: &SecretSource, identity: &WorkloadSecrets) {
        if let Err(invalid) = self.change(|compiler, now| compiler.set_identity(source, identity, now)) {
            tracing::error!("the workload's certificate cannot be used: {invalid}");
        }
    }

    /// Reads the files that names of secrets of the workload's own agent say.
    pub(super) fn read_files(&self, source: &SecretSource, names: &[Arc<str>]) {
        for Rejected { name, reason } in self.change(|compiler, now| compiler.read_files(source, names, now)) {
            tracing::error!(name, reason, "a certificate file cannot be used; what needs it waits for it");
        }
    }

    /// Reads changed certificate files again.
    pub(crate) fn reload_files(&self, changed: impl Fn(&Path) -> bool) {
        for Rejected { name, reason } in self.change(|compiler, now| compiler.reload_files(changed, now)) {
            tracing::error!(name, reason, "a changed certificate file cannot be used; the last one stays in use, if there was one");
        }
    }

    /// Puts to use what has waited long enough.
    pub(crate) fn settle(&self) {
        self.change(|compiler, now| compiler.settle(now));
    }

    fn publish(&self) {
        let (snapshot, wanted, reloads) = {
            let mut compiler = self.compiler();
            (compiler.snapshot(), compiler.wanted(), compiler.take_reloads())
        };
        self.count_reloads(&reloads, &wanted);
        self.wanted.send_if_modified(|before| {
            let changed = !Arc::ptr_eq(before, &wanted);
            *before = wanted;
            changed
        });
        self.snapshots.send_if_modified(|before| {
            let changed = !Arc::ptr_eq(before, &snapshot);
            if changed {
                self.publisher.publish(snapshot.clone());
                *before = snapshot;
            }
            changed
        });
    }

    /// Counts what became of discovered filters. Their figures live as long as a listener has a place for them.
    fn count_reloads(&self, reloads: &[Reload], wanted: &Wanted) {
        if reloads.is_empty() {
            return;
        }
        let mut figures = self.filter_figures.lock().unwrap_or_else(PoisonError::into_inner);
        for Reload { place, name, outcome } in reloads {
            let named = || BlockName::plain("extension_config_discovery").below(place).scope(name);
            let block = figures.entry((*place, Arc::clone(name))).or_insert_with(|| self.registry.block(extension_config::DEFS, named()));
            match outcome {
                Outcome::Awaited => {}
                Outcome::Reloaded => block.add_shared(extension_config::CONFIG_RELOAD, 1),
                Outcome::Failed => block.add_shared(extension_config::CONFIG_FAIL, 1),
                Outcome::Conflicting => block.add_shared(extension_config::CONFIG_CONFLICT, 1),
            }
        }
        figures.retain(|(_, name), _| wanted.extensions.contains(name));
    }

    /// Where the process stands. Once live it stays so: later trouble keeps the last good configuration.
    pub fn phase(&self) -> Phase {
        if self.ending.load(Relaxed) {
            return Phase::Draining;
        }
        if self.was_ready.load(Relaxed) {
            return Phase::Live;
        }
        if !self.first_answers.are_there() {
            return Phase::PreInitializing;
        }
        // A listener that has no socket serves nobody.
        if !self.is_held() && self.is_warm() && self.publisher.problems().is_empty() {
            self.was_ready.store(true, Relaxed);
            return Phase::Live;
        }
        Phase::Initializing
    }

    /// What is told about it: one that is to fail its health checks says that it drains, as Envoy does.
    pub(crate) fn shown_phase(&self) -> Phase {
        match self.phase() {
            Phase::Live if self.is_failing_health_check() => Phase::Draining,
            phase => phase,
        }
    }

    /// Whether all that the configuration refers to has arrived and is in force.
    pub(crate) fn is_warm(&self) -> bool {
        self.first_answers.are_there() && self.compiler().is_settled() && self.publisher.has_applied(self.snapshot().version)
    }

    pub(crate) fn is_held(&self) -> bool {
        *self.held.borrow()
    }

    /// Waits for [`Self::release`].
    pub(crate) async fn released(&self) {
        // An error would mean that the process state is gone already.
        let _ = self.held.subscribe().wait_for(|held| !held).await;
    }

    /// From now on this process is the one that serves.
    pub(crate) fn release(&self) {
        self.held.send_replace(false);
    }

    pub(crate) fn open_listeners(&self) {
        self.publisher.open_listeners();
    }

    pub(crate) fn has_opened_listeners(&self) -> bool {
        self.publisher.has_opened_listeners()
    }

    pub(crate) fn worker_sockets(&self) -> Vec<oneshot::Receiver<Sockets>> {
        self.publisher.sockets()
    }

    pub(crate) fn set_parent_connections(&self, connections: u64) {
        self.parent_connections.store(connections, Relaxed);
    }

    pub(crate) fn parent_connections(&self) -> u64 {
        self.parent_connections.load(Relaxed)
    }

    /// Another process accepts: this one takes no new connections, and lets those that are open end in the drain time.
    pub(crate) fn hand_over(&self) {
        self.ending.store(true, Relaxed);
        self.publisher.drain(Drain::HandOver { over: if self.drain_gradually { self.drain_time } else { Duration::ZERO } });
    }

    /// What is being waited for, for the operator.
    pub fn waiting(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        let missing = self.first_answers.missing();
        if missing.clusters {
            waiting.push(format!("clusters from {}", shown(self.bootstrap.clusters.as_ref())));
        }
        if missing.listeners {
            waiting.push(format!("listeners from {}", shown(self.bootstrap.listeners.as_ref())));
        }
        waiting.extend(self.compiler().waiting());
        waiting.extend(self.publisher.problems());
        waiting
    }

    /// Takes no new connections and tells open ones to end.
    pub fn drain(&self) {
        self.ending.store(true, Relaxed);
        self.publisher.drain(Drain::Close { inbound_only: false });
    }

    /// Asks callers to leave while new connections are still taken: the first stage of an end.
    pub(crate) fn ask_to_leave(&self) {
        if !self.ending.swap(true, Relaxed) {
            tracing::info!("draining");
            self.publisher.drain(Drain::Ask { over: Duration::ZERO, inbound_only: false });
        }
    }

    /// Asks connections to end in the configured time; listeners stay open.
    pub(crate) fn drain_connections(&self, inbound_only: bool) {
        let over = if self.drain_gradually { self.drain_time } else { Duration::ZERO };
        self.publisher.drain(Drain::Ask { over, inbound_only });
    }

    /// What `/drain_listeners` does: at once, or in the configured time with listeners open until it is over.
    pub(crate) fn drain_listeners(self: &Arc<Self>, graceful: bool, inbound_only: bool) {
        if !graceful || self.drain_time.is_zero() {
            return self.publisher.drain(Drain::Close { inbound_only });
        }
        let over = if self.drain_gradually { self.drain_time } else { Duration::ZERO };
        self.publisher.drain(Drain::Ask { over, inbound_only });
        let main = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(main.drain_time).await;
            main.publisher.drain(Drain::Close { inbound_only });
        });
    }

    pub fn connections(&self) -> u64 {
        self.publisher.connections()
    }

    pub fn set_failing_health_check(&self, failing: bool) {
        if self.failing_health_check.swap(failing, Relaxed) != failing {
            self.publisher.drain(Drain::Failing(failing));
        }
    }

    pub fn is_failing_health_check(&self) -> bool {
        self.failing_health_check.load(Relaxed)
    }

    /// The clock that choices and ejections go by, which is the workers' too.
    pub(crate) fn millis(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// A number that goes round, to try the hosts of a discovery cluster in turn.
    pub(crate) fn next_turn(&self) -> usize {
        self.rotation.fetch_add(1, Relaxed) as usize
    }
}

fn shown(source: Option<&DynamicSource>) -> String {
    match source {
        Some(DynamicSource::Ads) => "the aggregated stream".to_owned(),
        Some(DynamicSource::Path(path)) => path.clone(),
        Some(DynamicSource::Api(source)) => format!("cluster {}", source.cluster),
        None => "nowhere".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use lateen_proto::any::pack;
    use lateen_proto::envoy::config::core::v3::TypedExtensionConfig;
    use lateen_proto::envoy::extensions::filters::http::{cors::v3::Cors, csrf::v3::CsrfPolicy};

    use super::*;

    #[tokio::test]
    async fn only_the_end_of_the_process_ends_its_being_live() {
        let main = super::super::test_support::main("{node: {id: n, cluster: c}}");
        for graceful in [true, false] {
            main.drain_listeners(graceful, false);
            assert_eq!(main.phase(), Phase::Live, "listeners alone have gone");
        }
        main.ask_to_leave();
        assert_eq!(main.phase(), Phase::Draining);
    }

    #[test]
    fn reloads_of_discovered_filters_are_counted() {
        let manager = "'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
                       stat_prefix: t, route_config: {name: r}, http_filters: [{name: extra, config_discovery: {config_source: {ads: {}}, \
                       type_urls: [type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors]}}, \
                       {name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]";
        let listener = format!(
            "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}, \
             filter_chains: [{{filters: [{{name: h, typed_config: {{{manager}}}}}]}}]}}"
        );
        let main =
            super::super::test_support::main(&format!("{{node: {{id: n, cluster: c}}, static_resources: {{listeners: [{listener}]}}}}"));
        let figures = || {
            ["config_reload", "config_fail", "config_conflict"].map(|figure| {
                let name = format!("extension_config_discovery.http_filter.extra.{figure}");
                let found = main.registry.scrape(false, &|n| n == name);
                found
                    .first()
                    .map(|sample| format!("{:?}", sample.value))
                    .unwrap_or_default()
                    .chars()
                    .filter(char::is_ascii_digit)
                    .collect::<String>()
            })
        };
        let shown = |all: [u32; 3]| all.map(|n| n.to_string());
        assert_eq!(figures(), shown([0, 0, 0]));
        let discover = |config| {
            let body = pack(&TypedExtensionConfig { name: "extra".to_owned(), typed_config: Some(config) });
            let update = Update { name: "extra".to_owned(), version: String::new(), body };
            main.apply(&SecretSource::Ads, types::EXTENSION, vec![update], &[]).len()
        };
        assert_eq!((discover(pack(&Cors::default())), discover(pack(&Cors::default()))), (0, 0));
        assert_eq!(figures(), shown([1, 0, 0]), "the same again is no other");
        assert_eq!(discover(pack(&CsrfPolicy::default())), 1);
        assert_eq!(main.apply(&SecretSource::Ads, types::EXTENSION, Vec::new(), &["extra".to_owned()]), []);
        assert_eq!(figures(), shown([2, 1, 0]));
    }
}
