//! The main thread's end of a worker.
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lateen_snapshot::Snapshot;
use lateen_telemetry::istio::IstioShard;
use lateen_telemetry::{Registry, Shard};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, oneshot, watch};

use crate::main_thread::Panics;
use crate::restart::Inherited;

use super::{DrainTime, Handed, LogFiles, NodeText, Overload, Peers, TICK, Wishes, Worker, guard, queues};

/// What a worker is made from.
pub struct WorkerConfig {
    /// From 0; each worker has its own.
    pub index: usize,
    /// Pins the thread to the CPU of this number.
    pub pin: Option<usize>,
    pub shard: Shard,
    pub registry: Arc<Registry>,
    pub istio: IstioShard,
    /// Shared by all workers.
    pub logs: Arc<LogFiles>,
    /// `SO_MARK` of connections upstream.
    pub upstream_mark: Option<u32>,
    pub node: Arc<NodeText>,
    /// Shared by all workers.
    pub overload: Arc<Overload>,
    /// Zero of the clock given to outlier detection; the main thread's ticks must use the same.
    pub epoch: Instant,
    /// Where clusters are asked for that are not there.
    pub wishes: Wishes,
    /// Shared by all workers.
    pub peers: Peers,
    /// How connections end whose chain or listener is replaced.
    pub drain: DrainTime,
}

pub(super) enum Command {
    Publish(Arc<Snapshot>),
    Drain(Drain),
    HoldListeners(Arc<Inherited>),
    OpenListeners,
    Sockets(oneshot::Sender<Sockets>),
    /// Another worker accepted this connection.
    Take(Box<Handed>),
    /// Sent by nobody: the worker's own clock.
    Tick,
    Stop,
    #[cfg(test)]
    BreakDown,
}

/// Duplicates of listening sockets, with the address that was configured.
pub type Sockets = Vec<(SocketAddr, OwnedFd)>;

/// What connections and listeners are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Connections are to end, spread over this time; new ones are still taken.
    Ask { over: Duration, inbound_only: bool },
    /// Listeners close; connections are to end.
    Close { inbound_only: bool },
    /// Listeners close, since another process has their sockets too; connections are to end, spread over this time.
    HandOver { over: Duration },
    /// The process fails its health check, or passes again: connections of listeners that drain by it are to end.
    Failing(bool),
}

/// What a worker tells.
pub(super) struct Shared {
    pub(super) applied: watch::Sender<u64>,
    pub(super) connections: AtomicU64,
    pub(super) bound: Mutex<Vec<(Arc<str>, SocketAddr)>>,
    pub(super) problems: Mutex<Vec<String>>,
    /// Listeners that were held back are open.
    opened: AtomicBool,
    /// Why the thread ended by itself, which it never does unless it is broken.
    pub(super) died: watch::Sender<Option<String>>,
}

/// A running worker. Dropping the handle stops it.
pub struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts the thread. It serves nothing until a snapshot is published.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn spawn(config: WorkerConfig) -> io::Result<Self> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            applied: watch::channel(0).0,
            connections: AtomicU64::new(0),
            bound: Mutex::default(),
            problems: Mutex::default(),
            opened: AtomicBool::new(false),
            died: watch::channel(None).0,
        });
        config.peers.add(config.index, commands.clone());
        guard::install();
        let name = format!("worker-{}", config.index);
        let theirs = Arc::clone(&shared);
        let (made, runtime_made) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Some(cpu) = config.pin {
                pin(cpu);
            }
            // Of this thread alone: a task is polled by the event loop itself, with no set of tasks in between.
            let runtime = match runtime() {
                Ok(runtime) => runtime,
                Err(e) => return drop(made.send(Err(e))),
            };
            let _ = made.send(Ok(()));
            let shared = Arc::clone(&theirs);
            let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let index = config.index;
                let worker = Worker::new(config, theirs);
                runtime.block_on(async {
                    tokio::task::spawn_local(queues::watch(Arc::clone(&worker.overload), index));
                    run(worker, receiver).await;
                });
            }));
            if end.is_err() {
                // Its listeners and counters went with it: the process cannot serve what it promised.
                shared.died.send_replace(Some(guard::last_words()));
            }
            // Tasks still running end here, with their connections.
            runtime.shutdown_timeout(Duration::from_millis(100));
        })?;
        // It ends before it has an answer only if it panicked.
        runtime_made.recv().unwrap_or_else(|_| Err(io::Error::other("the worker's thread did not start")))?;
        Ok(Self { commands, shared, thread: Some(thread) })
    }

    /// Hands a snapshot over; see [`Self::applied`] for when it is in force.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let _ = self.commands.send(Command::Publish(snapshot));
    }

    /// No new connections; open ones are told to end.
    pub fn drain(&self) {
        self.tell(Drain::Close { inbound_only: false });
    }

    pub fn tell(&self, drain: Drain) {
        let _ = self.commands.send(Command::Drain(drain));
    }

    /// Nothing is accepted until [`Self::open_listeners`], which takes sockets of the process before. To be called before
    /// the first snapshot.
    pub(crate) fn hold_listeners(&self, inherited: Arc<Inherited>) {
        let _ = self.commands.send(Command::HoldListeners(inherited));
    }

    pub(crate) fn open_listeners(&self) {
        let _ = self.commands.send(Command::OpenListeners);
    }

    pub(crate) fn has_opened_listeners(&self) -> bool {
        self.shared.opened.load(Relaxed)
    }

    /// Duplicates of the listening sockets; an error from the receiver means that the worker has ended.
    pub(crate) fn sockets(&self) -> oneshot::Receiver<Sockets> {
        let (sender, receiver) = oneshot::channel();
        let _ = self.commands.send(Command::Sockets(sender));
        receiver
    }

    /// A mistake of this program, for tests.
    #[cfg(test)]
    pub(super) fn break_down(&self) {
        let _ = self.commands.send(Command::BreakDown);
    }

    /// Why the thread ended, if it ended other than by [`Self::stop`].
    pub fn died(&self) -> watch::Receiver<Option<String>> {
        self.shared.died.subscribe()
    }

    /// Ends everything at once.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }

    /// The version of the snapshot in force, as it changes.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    /// Open downstream connections.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    /// Addresses bound, by listener name: with port 0, those that the kernel chose.
    pub fn bound(&self) -> Vec<(Arc<str>, SocketAddr)> {
        self.shared.bound.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Listeners that could not be bound, in words, as of the last snapshot.
    pub fn problems(&self) -> Vec<String> {
        self.shared.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether its thread has ended.
    pub fn has_stopped(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops it and waits for the thread's end.
    pub fn join(mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    pub(super) fn report(&self, bound: Vec<(Arc<str>, SocketAddr)>, problems: Vec<String>) {
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner) = bound;
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }
}

fn runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().event_interval(61).build_local(LocalOptions::default())
}

/// A worker's own business. A panic in it concerns that piece of business alone: the last good configuration serves on, and
/// the next one may succeed. Connections are tasks of their own, which [`guard::spawn`] looks after.
async fn run(worker: Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut panics = Panics::default();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let business = tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Publish(snapshot)) => newest(snapshot, &mut commands),
                Some(command) => vec![command],
                None => break,
            },
            _ = tick.tick() => vec![Command::Tick],
        };
        if business.into_iter().any(|command| worker.try_obey(command, &mut panics).is_break()) {
            break;
        }
    }
    worker.logs.flush();
}

/// Of snapshots that wait only the newest counts; what else was found while looking comes after it.
fn newest(mut snapshot: Arc<Snapshot>, commands: &mut mpsc::UnboundedReceiver<Command>) -> Vec<Command> {
    while let Ok(next) = commands.try_recv() {
        match next {
            Command::Publish(newer) => snapshot = newer,
            command => return vec![Command::Publish(snapshot), command],
        }
    }
    vec![Command::Publish(snapshot)]
}

impl Worker {
    /// Obeys, and survives it. A worker that panics again and again ends, and the process with it.
    fn try_obey(self: &Rc<Self>, command: Command, panics: &mut Panics) -> ControlFlow<()> {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.obey(command)));
        outcome.unwrap_or_else(|panic| {
            if !panics.bear(Instant::now()) {
                std::panic::resume_unwind(panic);
            }
            self.panicked("a worker was interrupted in its own business");
            ControlFlow::Continue(())
        })
    }

    fn obey(self: &Rc<Self>, command: Command) -> ControlFlow<()> {
        match command {
            Command::Publish(snapshot) => self.publish(snapshot),
            Command::Drain(drain) => self.drain(drain),
            Command::HoldListeners(inherited) => self.listeners.hold(inherited),
            Command::OpenListeners => {
                self.listeners.open_held(self, &self.live().snapshot);
                self.shared.opened.store(true, Relaxed);
            }
            // Nobody may be waiting any more.
            Command::Sockets(reply) => drop(reply.send(self.listeners.sockets())),
            Command::Take(handed) => crate::listener::take(self, *handed),
            Command::Tick => {
                self.tick();
                self.listeners.retry(self);
            }
            Command::Stop => return ControlFlow::Break(()),
            #[cfg(test)]
            Command::BreakDown => panic!("injected"),
        }
        ControlFlow::Continue(())
    }

    fn drain(&self, drain: Drain) {
        match drain {
            Drain::Ask { over, inbound_only } => {
                self.listeners.ask(over, inbound_only);
                if !inbound_only {
                    self.drain.ask(DrainTime { over, gradually: true });
                }
            }
            Drain::HandOver { over } => {
                self.listeners.close(false);
                self.drain(Drain::Ask { over, inbound_only: false });
            }
            Drain::Close { inbound_only } => {
                self.listeners.stop_accepting(inbound_only);
                if !inbound_only {
                    self.drain.start();
                }
            }
            Drain::Failing(true) => self.failing.start(),
            Drain::Failing(false) => self.failing.cancel(),
        }
    }

    pub(crate) fn report_listeners(&self, bound: Vec<(Arc<str>, SocketAddr)>, problems: Vec<String>) {
        self.shared.report(bound, problems);
    }
}

fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    if set.set(cpu).is_ok() {
        // Running unpinned is only slower.
        let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
    }
}
