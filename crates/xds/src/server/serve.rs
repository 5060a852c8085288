//! Runs one stream: requests in, responses out, pushes when the world changes.
use std::pin::pin;
use std::sync::Arc;

use lateen_proto::envoy::config::core::v3::Node;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::hub::{Connection, Hub, Push, Types};
use super::service::Limits;
use super::watch::Asking;
use super::{Answer, Backend, Because, Event, Feedback, Stream};
use crate::client::Mode;
use crate::types::{CLUSTER, ENDPOINT};

/// What every stream of a service shares.
pub(crate) struct Core<B: Backend> {
    pub(crate) backend: B,
    pub(crate) hub: Arc<Hub<B::Proxy, B::Snapshot>>,
    pub(crate) limits: Limits,
    pub(crate) identifier: Arc<str>,
}

/// A stream before its first request.
pub(crate) struct Arriving<B: Backend, T: Stream> {
    pub(crate) core: Arc<Core<B>>,
    pub(crate) identity: B::Identity,
    pub(crate) stream: T,
    pub(crate) mode: Mode,
    /// The only type of the service; `None` for the aggregated one.
    pub(crate) only_type: Option<&'static str>,
    pub(crate) inbound: Streaming<T::Request>,
    pub(crate) outbound: mpsc::Sender<Result<T::Response, Status>>,
}

struct Session<B: Backend, T: Stream> {
    core: Arc<Core<B>>,
    connection: Arc<Connection<B::Proxy, B::Snapshot>>,
    stream: T,
    snapshot: B::Snapshot,
    only_type: Option<&'static str>,
    outbound: mpsc::Sender<Result<T::Response, Status>>,
    /// When removals are no longer held back for a client that does not answer.
    flush_at: Option<Instant>,
    /// The second half of a push, waiting for the client to ask for endpoints of new clusters.
    second_half: Option<SecondHalf>,
}

/// Listeners, routes and what follows them.
struct SecondHalf {
    types: Types,
    since: Instant,
    /// When it goes out regardless.
    until: Instant,
}

impl<B: Backend, T: Stream> Arriving<B, T> {
    /// Serves until either side ends the stream.
    pub(crate) async fn serve(mut self) {
        let outbound = self.outbound.clone();
        let first = match timeout(self.core.limits.first_request, self.inbound.message()).await {
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None) | Err(_)) => return,
            Err(_) => return refuse(&outbound, Status::deadline_exceeded("no request arrived on the stream")).await,
        };
        let mut first = first;
        let node = first.take_node().unwrap_or_default();
        if let Err(status) = self.run(first, node).await {
            refuse(&outbound, status).await;
        }
    }

    async fn run(self, first: T::Request, node: Node) -> Result<(), Status> {
        let Self { core, identity, stream, mode, only_type, inbound, outbound } = self;
        let proxy = core.backend.accept(&node, identity)?;
        let (connection, snapshot) = core.hub.register(&node.id, mode, proxy);
        // From here on every way out must leave the hub.
        let _leave = Leave { core: core.clone(), connection: connection.clone() };
        core.backend.event(&connection.proxy, Event::Connected);
        let snapshot = match snapshot {
            Some(snapshot) => snapshot,
            None => tokio::select! {
                push = connection.next_push() => push.snapshot,
                () = core.hub.closed() => return Err(shutting_down()),
                () = outbound.closed() => return Ok(()),
            },
        };
        let session = Session {
            core: core.clone(),
            connection: connection.clone(),
            stream,
            snapshot,
            only_type,
            outbound,
            flush_at: None,
            second_half: None,
        };
        let end = session.run(first, inbound).await;
        let reason = match &end {
            Ok(()) => "closed by the client".to_owned(),
            Err(status) => status.message().to_owned(),
        };
        core.backend.event(&connection.proxy, Event::Disconnected { reason: &reason });
        end
    }
}

/// Takes a connection off the hub however its task ends.
struct Leave<B: Backend> {
    core: Arc<Core<B>>,
    connection: Arc<Connection<B::Proxy, B::Snapshot>>,
}

impl<B: Backend> Drop for Leave<B> {
    fn drop(&mut self) {
        self.core.hub.forget(self.connection.id);
    }
}

async fn refuse<R>(outbound: &mpsc::Sender<Result<R, Status>>, status: Status) {
    // The client may be gone; then nobody needs to know.
    let _ = outbound.send(Err(status)).await;
}

impl<B: Backend, T: Stream> Session<B, T> {
    async fn run(mut self, first: T::Request, mut inbound: Streaming<T::Request>) -> Result<(), Status> {
        self.request(first).await?;
        let core = self.core.clone();
        let mut closed = pin!(core.hub.closed());
        loop {
            let (flush_at, until) = (self.flush_at, self.second_half.as_ref().map(|s| s.until));
            tokio::select! {
                () = &mut closed => return Err(shutting_down()),
                request = inbound.message() => match request {
                    Ok(Some(request)) => self.request(request).await?,
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(status),
                },
                push = self.connection.next_push() => self.push(push).await?,
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    self.stream.stop_awaiting();
                    self.finish_push().await?;
                }
                () = sleep_until(flush_at.unwrap_or_else(Instant::now)), if flush_at.is_some() => {
                    self.flush_at = None;
                    self.flush(true).await?;
                }
                () = self.outbound.closed() => return Ok(()),
            }
        }
    }

    async fn request(&mut self, mut request: T::Request) -> Result<(), Status> {
        if let Some(type_url) = self.only_type {
            // Requests to a service of one type need not repeat it.
            let given = request.type_url_mut();
            if given.is_empty() {
                type_url.clone_into(given);
            }
        }
        let outcome = self.stream.on_request(request).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let type_url = outcome.type_url.as_str();
        if self.only_type.is_some_and(|only| only != type_url) {
            return Err(Status::invalid_argument(format!("this service does not serve {type_url}")));
        }
        match &outcome.feedback {
            Feedback::None => {}
            Feedback::Ack => self.event(Event::Acked { type_url }),
            Feedback::Nack { message } => self.event(Event::Nacked { type_url, message }),
            Feedback::Stale => self.event(Event::Stale { type_url }),
        }
        let mut answers = Vec::new();
        if let Some(because) = &outcome.respond {
            let _permit = self.core.hub.permits.acquire().await.map_err(|_| shutting_down())?;
            answers.extend(generate(&self.core, &self.connection.proxy, &self.snapshot, &mut self.stream, type_url, because));
            if type_url == CLUSTER && self.stream.endpoints_due() {
                answers.extend(generate(&self.core, &self.connection.proxy, &self.snapshot, &mut self.stream, ENDPOINT, &Because::Push));
            }
        }
        self.show(type_url);
        self.send(answers, false).await?;
        self.finish_push().await?;
        self.flush(false).await
    }

    /// Sends clusters and endpoints, and the rest unless clusters are new to the client: it can use
    /// them only after it asked for their endpoints, and a route sent before would fail until then.
    async fn push(&mut self, push: Push<B::Snapshot>) -> Result<(), Status> {
        let core = self.core.clone();
        let permit = core.hub.permits.acquire().await.map_err(|_| shutting_down())?;
        // What arrived while waiting for the permit goes along, as does what an earlier push left.
        let push = match self.connection.take() {
            Some(later) => push.followed_by(later),
            None => push,
        };
        let (mut types, mut since) = (push.types, push.since);
        let mut until = Instant::now() + self.core.limits.endpoint_patience;
        if let Some(earlier) = self.second_half.take() {
            types.merge(earlier.types);
            since = since.min(earlier.since);
            until = earlier.until;
        }
        self.snapshot = push.snapshot;
        let mut answers = Vec::new();
        for type_url in [CLUSTER, ENDPOINT] {
            let follows = type_url == ENDPOINT && self.stream.endpoints_due();
            if (types.contains(type_url) || follows) && self.stream.names(type_url).is_some_and(|n| !n.is_empty()) {
                answers.extend(self.generate(type_url));
            }
        }
        drop(permit);
        self.send(answers, true).await?;
        self.second_half = Some(SecondHalf { types, since, until });
        self.finish_push().await
    }

    /// Sends the second half of a push, if there is one and its time has come.
    async fn finish_push(&mut self) -> Result<(), Status> {
        if self.stream.awaits_endpoints() {
            return Ok(());
        }
        let Some(SecondHalf { types, since, .. }) = self.second_half.take() else { return Ok(()) };
        let core = self.core.clone();
        let permit = core.hub.permits.acquire().await.map_err(|_| shutting_down())?;
        let mut answers = Vec::new();
        for type_url in self.stream.watched() {
            if types.contains(&type_url) && !matches!(type_url.as_str(), CLUSTER | ENDPOINT) {
                answers.extend(self.generate(&type_url));
            }
        }
        drop(permit);
        self.send(answers, true).await?;
        if self.stream.has_deferred() && self.flush_at.is_none() {
            self.flush_at = Some(Instant::now() + self.core.limits.removal_patience);
        }
        self.flush(false).await?;
        self.event(Event::Converged { after: since.elapsed() });
        Ok(())
    }

    /// What a push says about one type.
    fn generate(&mut self, type_url: &str) -> Option<Answer<T::Response>> {
        generate(&self.core, &self.connection.proxy, &self.snapshot, &mut self.stream, type_url, &Because::Push)
    }

    /// Sends removals that were held back, if their time has come.
    async fn flush(&mut self, force: bool) -> Result<(), Status> {
        // Before the second half, the client still uses the old routes.
        if !self.stream.has_deferred() || self.second_half.is_some() {
            self.flush_at = None;
            return Ok(());
        }
        let answers = self.stream.flush(force);
        self.send(answers, true).await
    }

    async fn send(&mut self, answers: Vec<Answer<T::Response>>, push: bool) -> Result<(), Status> {
        for Answer { response, type_url, resources, removed } in answers {
            match timeout(self.core.limits.send, self.outbound.send(Ok(response))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Status::cancelled("the client is gone")),
                Err(_) => return Err(Status::deadline_exceeded("the client does not read its stream")),
            }
            self.show(&type_url);
            self.event(Event::Sent { type_url: &type_url, resources, removed, push });
        }
        Ok(())
    }

    fn show(&self, type_url: &str) {
        if let Some(status) = self.stream.status(type_url) {
            self.connection.set_status(status);
        }
    }

    fn event(&self, event: Event<'_>) {
        self.core.backend.event(&self.connection.proxy, event);
    }
}

fn generate<B: Backend, T: Stream>(
    core: &Core<B>,
    proxy: &B::Proxy,
    snapshot: &B::Snapshot,
    stream: &mut T,
    type_url: &str,
    because: &Because,
) -> Option<Answer<T::Response>> {
    let names = stream.scope(type_url, because);
    let generated = core.backend.generate(snapshot, proxy, type_url, &names);
    stream.answer(type_url, because, generated)
}

fn shutting_down() -> Status {
    Status::unavailable("the control plane is shutting down")
}
