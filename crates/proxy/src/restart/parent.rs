//! The old process: waits for a new one, hands its sockets over, and leaves when the new one serves.
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, UNIX_EPOCH};

use lateen_telemetry::stats::Exporter;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::channel::Channel;
use super::message::{Answer, Ask, MOST_SOCKETS, Piece, SocketName, VERSION};
use super::place::Bound;
use crate::admin::Ports;
use crate::main_thread::{Main, Phase};

/// A child asks at least once a second; one that is silent for so long is as good as dead.
const SILENCE: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Workers are asked for their sockets; one that is that busy has other worries.
const SOCKETS_WITHIN: Duration = Duration::from_secs(5);
/// How long the end waits for the child to ask for the last figures.
const LAST_FIGURES: Duration = Duration::from_secs(3);
/// Connections at once; each but one is only told why it is refused.
const MOST_CHILDREN: usize = 8;

/// What there is to know about a process that can be followed by another.
pub(crate) struct Parent {
    main: Arc<Main>,
    bound: Bound,
    ports: Ports,
    busy: AtomicBool,
    /// Set when a child serves: how long this process may go on.
    left: watch::Sender<Option<Duration>>,
    /// Nothing is open any more.
    over: watch::Sender<bool>,
    /// The child knows the last figures.
    told: watch::Sender<bool>,
}

impl Parent {
    pub(crate) fn new(main: Arc<Main>, bound: Bound, ports: Ports) -> Arc<Self> {
        let (left, over, told) = (watch::channel(None).0, watch::channel(false).0, watch::channel(false).0);
        Arc::new(Self { main, bound, ports, busy: AtomicBool::new(false), left, over, told })
    }

    /// Waits until a child serves; then for how long this process may go on.
    pub(crate) async fn left(&self) -> Duration {
        let mut left = self.left.subscribe();
        loop {
            if let Some(limit) = *left.borrow_and_update() {
                return limit;
            }
            if left.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Lets the child have the last figures, if there is one that asks.
    pub(crate) async fn finish(&self) {
        if self.left.borrow().is_none() || !self.busy.load(SeqCst) {
            return;
        }
        self.over.send_replace(true);
        // Without them the child's counters lack the last second of ours.
        let _ = tokio::time::timeout(LAST_FIGURES, self.told.subscribe().wait_for(|told| *told)).await;
    }

    /// Attends to children for as long as the process runs.
    pub(crate) async fn run(self: Arc<Self>) {
        let listener = match self.bound.socket.try_clone().and_then(|socket| UnixListener::from_std(socket.into())) {
            Ok(listener) => listener,
            Err(e) => return tracing::error!("this process cannot be hot restarted: {e}"),
        };
        let mut children = JoinSet::new();
        loop {
            match listener.accept().await {
                Ok((socket, _)) if children.len() < MOST_CHILDREN => {
                    children.spawn(Arc::clone(&self).attend(socket));
                }
                Ok(_) => {}
                Err(e) => {
                    tracing::warn!("hot restart: accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            while children.try_join_next().is_some() {}
        }
    }

    async fn attend(self: Arc<Self>, socket: UnixStream) {
        let talk = async {
            let channel = Channel::new(socket)?;
            self.talk(&channel).await
        };
        match talk.await {
            Ok(()) => {}
            Err(e) if self.left.borrow().is_some() => tracing::warn!("hot restart: the new process is gone: {e}"),
            Err(e) => tracing::warn!("hot restart: the new process did not become ready, this one goes on: {e}"),
        }
    }

    async fn talk(&self, channel: &Channel) -> io::Result<()> {
        let Some((hello, _)) = channel.receive::<Ask>(ANSWER_WITHIN).await? else { return Ok(()) };
        let taken = self.judge(&hello);
        let _busy = match taken {
            Ok(busy) => busy,
            Err(reason) => {
                tracing::warn!("hot restart refused: {reason}");
                return channel.send(&Answer::Refused { reason }, &[], ANSWER_WITHIN).await;
            }
        };
        let lineage = self.main.lineage;
        let first_started_ms = lineage.first_started.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let welcome = Answer::Welcome { epoch: lineage.epoch, generation: lineage.generation, first_started_ms };
        channel.send(&welcome, &[], ANSWER_WITHIN).await?;
        let mut sockets = None;
        let mut figures = FiguresToTell::default();
        while let Some((ask, _)) = channel.receive::<Ask>(SILENCE).await? {
            let (answer, descriptors) = match ask {
                Ask::Hello { .. } => return Err(io::Error::new(io::ErrorKind::InvalidData, "a second greeting")),
                Ask::Sockets => {
                    let rest = match &mut sockets {
                        Some(rest) => rest,
                        None => sockets.insert(self.sockets().await?),
                    };
                    next_sockets(rest)
                }
                Ask::Serving { parent_shutdown_ms } => {
                    self.leave(Duration::from_millis(parent_shutdown_ms));
                    (Answer::Leaving, Vec::new())
                }
                Ask::Figures => (Answer::Figures(figures.next(self)), Vec::new()),
            };
            let is_last = matches!(&answer, Answer::Figures(piece) if piece.last && !piece.more);
            channel.send(&answer, &descriptors, ANSWER_WITHIN).await?;
            if is_last {
                self.told.send_replace(true);
                return Ok(());
            }
        }
        match *self.left.borrow() {
            Some(_) => tracing::warn!("hot restart: the new process is gone"),
            None => tracing::warn!("hot restart: the new process ended before it was ready, this one goes on"),
        }
        Ok(())
    }

    /// Whether this child may follow; there is one at a time.
    fn judge(&self, hello: &Ask) -> Result<Busy<'_>, String> {
        let Ask::Hello { version, epoch } = hello else { return Err("it did not greet".to_owned()) };
        let ours = self.main.lineage.epoch;
        if *version != VERSION {
            return Err(format!("it speaks version {version} of the hand-over, this process version {VERSION}"));
        }
        if ours.checked_add(1) != Some(*epoch) {
            return Err(format!("its epoch is {epoch}, and this process has epoch {ours}"));
        }
        if self.left.borrow().is_some() {
            return Err("this process has handed over already".to_owned());
        }
        match self.main.phase() {
            Phase::Live => {}
            Phase::Draining => return Err("this process is ending".to_owned()),
            Phase::PreInitializing | Phase::Initializing => return Err("this process is not ready itself; try again".to_owned()),
        }
        if self.busy.swap(true, SeqCst) {
            return Err("another process is about to follow already".to_owned());
        }
        Ok(Busy(&self.busy))
    }

    /// Duplicates of all listening sockets.
    async fn sockets(&self) -> io::Result<VecDeque<(SocketName, OwnedFd)>> {
        let mut all: VecDeque<(SocketName, OwnedFd)> =
            self.ports.duplicates()?.into_iter().map(|(name, socket)| (SocketName::Port { name }, socket)).collect();
        let mut numbers = HashMap::new();
        for worker in self.main.worker_sockets() {
            let sockets = tokio::time::timeout(SOCKETS_WITHIN, worker).await?;
            for (address, socket) in sockets.map_err(|_| io::Error::other("a worker has ended"))? {
                let number = numbers.entry(address).or_insert(0);
                all.push_back((SocketName::Listener { address, number: *number }, socket));
                *number += 1;
            }
        }
        Ok(all)
    }

    fn leave(&self, limit: Duration) {
        tracing::info!("hot restart: the new process serves; this one finishes what it has, for {limit:?} at most");
        self.ports.close();
        self.main.hand_over();
        self.left.send_replace(Some(limit));
    }
}

fn next_sockets(rest: &mut VecDeque<(SocketName, OwnedFd)>) -> (Answer, Vec<OwnedFd>) {
    let count = rest.len().min(MOST_SOCKETS);
    let (sockets, descriptors) = rest.drain(..count).unzip();
    (Answer::Sockets { sockets, more: !rest.is_empty() }, descriptors)
}

/// Pieces that are on their way, and what comes after them.
#[derive(Default)]
struct FiguresToTell {
    exporter: Exporter,
    pieces: VecDeque<Piece>,
}

impl FiguresToTell {
    fn next(&mut self, parent: &Parent) -> Piece {
        if parent.left.borrow().is_none() {
            // Until then everything may yet go on without the child.
            return Piece::default();
        }
        if self.pieces.is_empty() {
            let last = *parent.over.borrow();
            self.pieces = Piece::cut(self.exporter.next(&parent.main.registry), parent.main.connections(), last).into();
        }
        self.pieces.pop_front().unwrap_or_default()
    }
}

/// Makes room for the next child.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}
