//! The new process: asks the old one for its sockets, prepares itself, accepts, and then tells the old one to leave.
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, bail};
use lateen_telemetry::stats::Figures;
use tokio::net::UnixStream;

use super::channel::Channel;
use super::inherited::Inherited;
use super::message::{Answer, Ask, VERSION};
use super::{Lineage, Options};
use crate::main_thread::Main;

/// Sockets of busy workers take a moment.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often figures are asked for, which also tells the parent that we live.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the workers may take to open their sockets.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// How long a parent that does not answer is waited for; it may read that it is to leave even later.
const LEAVE_WITHIN: Duration = Duration::from_secs(60);
/// The most answers to one question.
const MOST_ANSWERS: usize = 100_000;

/// The way to the old process.
pub(crate) struct Child {
    channel: Channel,
    parent_shutdown: Duration,
    skip_figures: bool,
}

impl Child {
    /// Asks the parent for leave to follow it; `None` when there is none and none is needed.
    ///
    /// # Errors
    /// When there is no parent, or it refuses.
    pub(crate) async fn greet(options: &Options) -> anyhow::Result<Option<(Self, Lineage)>> {
        let Some(place) = options.place.parent() else { return Ok(None) };
        let channel = match place.connect().and_then(UnixStream::from_std).and_then(Channel::new) {
            Ok(channel) => channel,
            Err(e) if options.parent_optional && e.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
            Err(e) if options.parent_optional && e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                let advice = "--restart-epoch says how many restarts there were; the first process has 0, and needs the same --base-id";
                return Err(e).with_context(|| format!("no process to take over from at {place} ({advice})"));
            }
        };
        let epoch = options.place.epoch;
        let lineage = match ask(&channel, &Ask::Hello { version: VERSION, epoch }).await?.0 {
            Answer::Welcome { generation, first_started_ms, .. } => Lineage {
                epoch,
                generation: generation.saturating_add(1),
                first_started: UNIX_EPOCH.checked_add(Duration::from_millis(first_started_ms)).unwrap_or(UNIX_EPOCH),
            },
            Answer::Refused { reason } => bail!("the running process refuses to be taken over: {reason}"),
            other => bail!("the running process answers what nobody asked: {other:?}"),
        };
        let child = Self { channel, parent_shutdown: options.parent_shutdown, skip_figures: options.skip_figures };
        Ok(Some((child, lineage)))
    }

    /// Duplicates of the parent's listening sockets.
    ///
    /// # Errors
    /// When the parent does not hand them over.
    pub(crate) async fn sockets(&self) -> anyhow::Result<Inherited> {
        let inherited = Inherited::default();
        for _ in 0..MOST_ANSWERS {
            let (answer, descriptors) =
                ask(&self.channel, &Ask::Sockets).await.context("the running process does not hand over its sockets")?;
            let Answer::Sockets { sockets, more } = answer else { bail!("no sockets but {answer:?}") };
            if sockets.len() != descriptors.len() {
                bail!(
                    "{} sockets are named and {} came; are there too few file descriptors (ulimit -n)?",
                    sockets.len(),
                    descriptors.len()
                );
            }
            for (name, socket) in sockets.into_iter().zip(descriptors) {
                inherited.add(name, socket)?;
            }
            if !more {
                return Ok(inherited);
            }
        }
        bail!("sockets without end")
    }

    /// Tells the parent to leave, and waits until it does. One that is too busy to answer reads it later.
    async fn serving(&self) -> io::Result<()> {
        let parent_shutdown_ms = self.parent_shutdown.as_millis() as u64;
        let ask = Ask::Serving { parent_shutdown_ms };
        let deadline = Instant::now() + LEAVE_WITHIN;
        while let Err(e) = self.channel.send(&ask, &[], ANSWER_WITHIN).await {
            if e.kind() != io::ErrorKind::TimedOut || Instant::now() >= deadline {
                return Err(e);
            }
            tracing::error!("hot restart: the old process takes no messages; until it does, both processes serve");
        }
        loop {
            match self.channel.receive(ANSWER_WITHIN).await {
                Ok(Some((Answer::Leaving, _))) => return Ok(()),
                // Answers a question that was given up.
                Ok(Some((Answer::Figures(_), _))) if Instant::now() < deadline => {}
                Ok(Some((other, _))) => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{other:?}"))),
                Ok(None) => return Err(gone()),
                Err(e) if e.kind() == io::ErrorKind::TimedOut && Instant::now() < deadline => {
                    tracing::error!("hot restart: the old process does not answer; until it leaves, both processes serve");
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// A question that only shows that both processes live. One that is not answered in time stays open, which [`Self::serving`]
    /// knows of.
    async fn shows_life(&self) -> io::Result<()> {
        match tokio::time::timeout(INTERVAL, ask(&self.channel, &Ask::Figures)).await {
            Ok(answer) => answer.map(drop),
            Err(late) => Err(late.into()),
        }
    }

    /// What the parent counted since the last time, how many connections it has, and whether that was the last.
    async fn figures(&self) -> io::Result<(Figures, u64, bool)> {
        let mut figures = Figures::default();
        for _ in 0..MOST_ANSWERS {
            let Answer::Figures(piece) = ask(&self.channel, &Ask::Figures).await?.0 else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no figures"));
            };
            let (connections, more, last) = (piece.connections, piece.more, piece.last);
            piece.add_to(&mut figures);
            if !more {
                return Ok((figures, connections, last));
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "figures without end"))
    }
}

async fn ask(channel: &Channel, ask: &Ask) -> io::Result<(Answer, Vec<std::os::fd::OwnedFd>)> {
    channel.send(ask, &[], ANSWER_WITHIN).await?;
    channel.receive(ANSWER_WITHIN).await?.ok_or_else(gone)
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the running process is gone")
}

/// Whether nobody is at the other end any more. All else may pass.
fn says_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Takes the parent's place as soon as this process is ready, and takes its figures over until it has ended.
pub(crate) async fn take_over(main: Arc<Main>, child: Child, inherited: Arc<Inherited>) {
    let mut child = Some(child);
    let mut asked = Instant::now();
    while !main.is_warm() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if asked.elapsed() >= INTERVAL {
            asked = Instant::now();
            child = still_there(child).await;
        }
    }
    main.open_listeners();
    let deadline = Instant::now() + OPEN_WITHIN;
    while !main.has_opened_listeners() {
        if Instant::now() >= deadline {
            tracing::error!("hot restart: a worker did not open its listeners within {OPEN_WITHIN:?}");
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    main.release();
    if let Some(parent) = &child
        && let Err(e) = parent.serving().await
    {
        tracing::error!("hot restart: the old process does not leave; unless it has ended, both serve: {e}");
        child = None;
    }
    // What is left belongs to listeners that this configuration has not.
    inherited.clear();
    if let Some(parent) = child {
        take_figures(&main, &parent).await;
    }
}

/// The parent, unless it has ended in the meantime: its sockets are here, so that is no reason not to go on. One that is only
/// slow must yet be told to leave.
async fn still_there(child: Option<Child>) -> Option<Child> {
    let child = child?;
    match child.shows_life().await {
        Err(e) if says_gone(&e) => {
            tracing::warn!("hot restart: the old process ended before this one was ready: {e}");
            return None;
        }
        Err(e) => tracing::warn!("hot restart: the old process is slow to answer: {e}"),
        Ok(()) => {}
    }
    Some(child)
}

async fn take_figures(main: &Main, parent: &Child) {
    loop {
        match parent.figures().await {
            Ok((figures, connections, last)) => {
                if !parent.skip_figures {
                    main.registry.absorb(figures);
                    main.set_parent_connections(connections);
                }
                if last {
                    tracing::info!("hot restart: the old process has ended");
                    break;
                }
            }
            Err(e) => {
                tracing::warn!("hot restart: the old process ended before its last figures were here: {e}");
                break;
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
    main.registry.absorb(Figures::default());
    main.set_parent_connections(0);
}
