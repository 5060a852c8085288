//! Keeps the world current: collects changes of all sources, builds the next snapshot, hands it to the streams.
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::future::select_all;
use lateen_model::analyze::analyze_with;
use lateen_model::yaml::Position;
use lateen_model::{Diagnostic, MeshConfig, ResourceSet, Severity};
use lateen_translate::world::{Live, World};
use lateen_xds::server::Types;
use lateen_xds::types::ENDPOINT;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::backend::Streams;
use crate::change::{Before, Reach, reach};
use crate::config::Debounce;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::source::{Source, State, join};

/// Messages about the configuration that one change may log; a wrong folder could hold any number.
const MAX_LOGGED: usize = 50;

/// Follows the sources.
pub(crate) struct Keeper {
    sources: Vec<Box<dyn Source>>,
    /// The last state of each source; `None` until it has been read once.
    states: Vec<Option<State>>,
    mesh: MeshConfig,
    debounce: Debounce,
    streams: Arc<Streams>,
    metrics: Arc<Metrics>,
    current: watch::Sender<Option<Arc<Snapshot>>>,
}

impl Keeper {
    pub(crate) fn new(
        sources: Vec<Box<dyn Source>>,
        mesh: MeshConfig,
        debounce: Debounce,
        streams: Arc<Streams>,
        metrics: Arc<Metrics>,
        current: watch::Sender<Option<Arc<Snapshot>>>,
    ) -> Self {
        let states = sources.iter().map(|_| None).collect();
        Self { sources, states, mesh, debounce, streams, metrics, current }
    }

    /// Runs for ever; ends when dropped.
    pub(crate) async fn run(mut self) {
        let all = vec![true; self.sources.len()];
        self.take_up(&all, Instant::now()).await;
        loop {
            let (dirty, since) = self.collect().await;
            self.take_up(&dirty, since).await;
        }
    }

    /// Waits for a change and for the calm after it; says which sources changed and since when.
    async fn collect(&mut self) -> (Vec<bool>, Instant) {
        let mut dirty = vec![false; self.sources.len()];
        let first = self.next_change().await;
        let since = Instant::now();
        mark(&mut dirty, first);
        let mut calm = since + self.debounce.quiet;
        let latest = since + self.debounce.max;
        loop {
            tokio::select! {
                () = sleep_until(calm.min(latest)) => return (dirty, since),
                at = self.next_change() => {
                    mark(&mut dirty, at);
                    calm = Instant::now() + self.debounce.quiet;
                }
            }
        }
    }

    /// The position of the next source that changes.
    async fn next_change(&mut self) -> usize {
        if self.sources.is_empty() {
            return std::future::pending().await;
        }
        select_all(self.sources.iter_mut().map(|source| source.changed())).await.1
    }

    /// Loads the sources that changed, and builds and publishes the world when all are ready.
    async fn take_up(&mut self, dirty: &[bool], since: Instant) {
        let waited = since.elapsed();
        self.load(dirty).await;
        if self.states.iter().any(Option::is_none) {
            return;
        }
        let joined = join(self.states.iter().flatten());
        let previous = self.current.borrow().clone();
        let number = previous.as_ref().map_or(1, |p| p.number + 1);
        let mesh = self.mesh.clone();
        let started = Instant::now();
        let built = tokio::task::spawn_blocking(move || build(number, joined, &mesh)).await;
        match built {
            Ok(snapshot) => {
                self.metrics.built(waited, started.elapsed());
                self.publish(previous, Arc::new(snapshot), since);
            }
            Err(error) => self.build_failed(previous, &error),
        }
    }

    async fn load(&mut self, dirty: &[bool]) {
        let mut sources = std::mem::take(&mut self.sources);
        let dirty = dirty.to_vec();
        let loaded = tokio::task::spawn_blocking(move || {
            let mut states = Vec::new();
            for (at, source) in sources.iter_mut().enumerate() {
                if !dirty.get(at).copied().unwrap_or(false) {
                    continue;
                }
                match catch_unwind(AssertUnwindSafe(|| source.load())) {
                    Ok(Some(state)) => states.push((at, state)),
                    Ok(None) => {}
                    Err(_) => tracing::error!(source = source.name(), "reading failed with an internal error; its last state stays"),
                }
            }
            (sources, states)
        });
        match loaded.await {
            Ok((sources, states)) => {
                self.sources = sources;
                for (at, state) in states {
                    if let Some(slot) = self.states.get_mut(at) {
                        *slot = Some(state);
                    }
                }
            }
            // Only when the runtime shuts down: panics are caught above.
            Err(error) => tracing::error!(%error, "the sources cannot be read"),
        }
    }

    fn publish(&self, previous: Option<Arc<Snapshot>>, next: Arc<Snapshot>, since: Instant) {
        let reach = match &previous {
            None => Reach::Everything,
            Some(previous) => reach(
                &Before { resources: &previous.resources, world: &previous.world },
                &Before { resources: &next.resources, world: &next.world },
            ),
        };
        tracing::info!(
            number = next.number,
            resources = next.resources.len(),
            services = next.world.services().len(),
            diagnostics = next.diagnostics.len(),
            reach = ?Shown(&reach),
            "the world changed"
        );
        report_new(previous.as_deref(), &next);
        match reach {
            Reach::Nothing => {}
            Reach::Everything => self.streams.publish(next.clone(), Types::All, since),
            Reach::Endpoints { addresses } => self.streams.publish_with(next.clone(), since, |client| {
                let itself = client.view.addresses.iter().any(|a| addresses.contains(&a.to_string()));
                if itself { Types::All } else { Types::Only([ENDPOINT].into()) }
            }),
        }
        self.current.send_replace(Some(next));
    }

    /// The last good world stays, and the diagnostics say so.
    fn build_failed(&self, previous: Option<Arc<Snapshot>>, error: &tokio::task::JoinError) {
        tracing::error!(%error, "the configuration could not be taken over; the last one stays");
        let Some(previous) = previous else { return };
        let mut diagnostics = previous.diagnostics.clone();
        let message = "internal error: the configuration could not be taken over; the last one stays in force";
        diagnostics.push(Diagnostic::new(Severity::Error, &"control plane".into(), Position::default(), message));
        let same = Snapshot::new(previous.number, previous.resources.clone(), previous.world.clone(), diagnostics);
        self.current.send_replace(Some(Arc::new(same)));
    }
}

fn mark(dirty: &mut [bool], at: usize) {
    if let Some(flag) = dirty.get_mut(at) {
        *flag = true;
    }
}

/// Logs what there is to say about the configuration that was not said before.
fn report_new(previous: Option<&Snapshot>, next: &Snapshot) {
    let known: HashSet<String> = previous.into_iter().flat_map(|p| &p.diagnostics).map(ToString::to_string).collect();
    let new = next.diagnostics.iter().filter(|d| d.severity >= Severity::Warning && !known.contains(&d.to_string()));
    for (at, diagnostic) in new.enumerate() {
        if at == MAX_LOGGED {
            tracing::warn!("more messages at /debug/diagnostics");
            break;
        }
        tracing::warn!("{diagnostic}");
    }
}

/// Without the addresses, which would fill the log.
struct Shown<'a>(&'a Reach);

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Reach::Nothing => f.write_str("nothing"),
            Reach::Everything => f.write_str("everything"),
            Reach::Endpoints { addresses } => write!(f, "endpoints ({})", addresses.len()),
        }
    }
}

fn build(number: u64, state: State, fallback: &MeshConfig) -> Snapshot {
    let State { resources, live, mut diagnostics } = state;
    let (world, more) = world_of(&resources, &live, fallback);
    diagnostics.extend(more);
    Snapshot::new(number, resources, world, diagnostics)
}

/// The world of these resources under the mesh configuration they hold, or `fallback`.
fn world_of(resources: &ResourceSet, live: &Live, fallback: &MeshConfig) -> (World, Vec<Diagnostic>) {
    let (mesh, mut diagnostics) = match resources.config_map(&fallback.root_namespace, "istio") {
        Some(_) => MeshConfig::of(resources, &fallback.root_namespace),
        None => (fallback.clone(), Vec::new()),
    };
    let world = World::build_with(resources, live, (&mesh).into());
    diagnostics.extend(world.diagnostics.iter().cloned());
    // Building and analysis can find the same thing; the builder knows its effect.
    let place = |d: &Diagnostic| (d.file.clone(), d.line, d.column, d.field_path.clone());
    let known: HashSet<_> = diagnostics.iter().map(place).collect();
    diagnostics.extend(analyze_with(resources, &mesh).into_iter().filter(|d| !known.contains(&place(d))));
    (world, diagnostics)
}
