//! The server of a discovery service: what the control plane runs.
//!
//! [`DeltaStream`] and [`SotwStream`] are the protocol of one stream without sockets: they classify
//! what a client sends, know what it holds, and reduce generated resources to what has to be said.
//! [`Discovery`] is the gRPC service around them. Resources come from a [`Backend`]; a change of the
//! world is announced through [`Hub::publish`], which leaves at most one pending push per client.
mod delta;
mod hub;
mod serve;
mod service;
mod sotw;
mod status;
mod watch;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lateen_proto::envoy::config::core::v3::Node;
use tonic::Status;
use tonic::metadata::MetadataMap;

pub use delta::DeltaStream;
pub use hub::{Connection, Hub, Push, Types};
pub use service::{Discovery, Limits};
pub use sotw::SotwStream;
pub use status::{Nacked, Sent, TypeStatus};

use self::watch::{Asking, Held, Watches};
use crate::resource::Resource;
use crate::types::{ENDPOINT, is_namespaced, rank};

/// A client may name this many resources of one type; more ends its stream.
pub const MAX_NAMES: usize = 100_000;
/// A client may open this many types on one stream.
pub const MAX_TYPES: usize = 64;

/// What a client is subscribed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Every resource of the type.
    pub wildcard: bool,
    /// These, also when there is a wildcard.
    pub names: BTreeSet<String>,
}

impl Names {
    pub fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// [`Names::wants`], where a name may stand for all that are below it.
    pub fn wants_of(&self, type_url: &str, name: &str) -> bool {
        let below = || is_namespaced(type_url) && name.rsplit_once('/').is_some_and(|(above, _)| self.names.contains(above));
        self.wants(name) || below()
    }

    pub fn is_empty(&self) -> bool {
        !self.wildcard && self.names.is_empty()
    }

    /// Just these names.
    pub fn only(names: impl IntoIterator<Item = String>) -> Self {
        Self { wildcard: false, names: names.into_iter().collect() }
    }
}

/// Makes the resources that clients ask for.
pub trait Backend: Send + Sync + 'static {
    /// Who opened the stream, found before anything it says is read.
    type Identity: Send + Sync + 'static;
    /// What is known of the client after its first request.
    type Proxy: Send + Sync + 'static;
    /// One state of the world. All resources of one push come from one snapshot, and requests are
    /// answered from the snapshot pushed last: a route never travels ahead of its clusters.
    type Snapshot: Clone + Send + Sync + 'static;

    /// Says who the peer is, from its certificate (in `extensions`) or its token (in `metadata`).
    ///
    /// # Errors
    /// `UNAUTHENTICATED` with the reason.
    fn authenticate(
        &self,
        metadata: &MetadataMap,
        extensions: &tonic::Extensions,
    ) -> impl Future<Output = Result<Self::Identity, Status>> + Send;

    /// Takes a client in.
    ///
    /// # Errors
    /// When the node is malformed, or claims what `identity` does not allow.
    fn accept(&self, node: &Node, identity: Self::Identity) -> Result<Self::Proxy, Status>;

    /// The resources of `type_url` that exist for this proxy among `names`. Those left out do not exist.
    fn generate(&self, snapshot: &Self::Snapshot, proxy: &Self::Proxy, type_url: &str, names: &Names) -> Vec<Arc<Resource>>;

    /// Something worth counting or logging happened.
    fn event(&self, _proxy: &Self::Proxy, _event: Event<'_>) {}
}

/// What happens on a stream, for metrics and logs.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    Connected,
    Disconnected {
        reason: &'a str,
    },
    /// A response went out.
    Sent {
        type_url: &'a str,
        resources: usize,
        removed: usize,
        push: bool,
    },
    Acked {
        type_url: &'a str,
    },
    /// The client refused a response; `message` is its own.
    Nacked {
        type_url: &'a str,
        message: &'a str,
    },
    /// A request with a nonce that is not (or no longer) waited for.
    Stale {
        type_url: &'a str,
    },
    /// Everything of a push went out, this long after the change it carries.
    Converged {
        after: Duration,
    },
}

/// How a request relates to what was sent before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feedback {
    /// It answers nothing: the first of its type, or a mere change of subscription.
    None,
    Ack,
    Nack {
        message: String,
    },
    /// It answers a response that is not waited for.
    Stale,
}

/// Why a response is made: decides what may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// The first request of the type on this stream.
    First,
    /// These names were subscribed (again): they are sent whether or not they changed.
    Subscribed(BTreeSet<String>),
    /// The world changed.
    Push,
}

/// A request, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub type_url: String,
    pub feedback: Feedback,
    /// Whether to answer, and why.
    pub respond: Option<Because>,
}

/// A request that no correct client sends; the stream ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("a request without type_url on an aggregated stream")]
    NoType,
    #[error("more than {MAX_TYPES} resource types on one stream")]
    TooManyTypes,
    #[error("more than {MAX_NAMES} names subscribed for {0}")]
    TooManyNames(String),
}

/// The two variants of the protocol, seen by the shell.
pub(crate) trait Stream: Send {
    type Request: Asking;
    type Response: Send;
    type Held: Held;

    fn on_request(&mut self, request: Self::Request) -> Result<Outcome, ProtocolError>;
    fn watches(&self) -> &Watches<Self::Held>;
    /// Endpoints of clusters that were pushed and are new to the client, which it has not asked for yet: until then it cannot
    /// use them, and routes to them would fail.
    fn awaited(&self) -> &BTreeSet<String>;
    /// Gives up waiting for those.
    fn stop_awaiting(&mut self);
    /// The names to generate resources for.
    fn scope(&self, type_url: &str, because: &Because) -> Names;
    /// Reduces what was generated to what has to be said; `None` when that is nothing.
    fn answer(&mut self, type_url: &str, because: &Because, generated: Vec<Arc<Resource>>) -> Option<Answer<Self::Response>>;
    /// Endpoints must be sent (again) because their cluster was.
    fn endpoints_due(&self) -> bool;
    /// The waiting removals, when everything sent before them is answered; with `force` also when the
    /// client does not answer. A client that refused its new routes or listeners still uses the old
    /// ones, so what those may name stays in any case.
    fn flush(&mut self, force: bool) -> Vec<Answer<Self::Response>>;

    /// Types with a subscription, in push order.
    fn watched(&self) -> Vec<String> {
        let mut types: Vec<String> = self.watches().iter().filter(|(_, w)| !w.names.is_empty()).map(|(t, _)| t.clone()).collect();
        types.sort_by_key(|t| rank(t));
        types
    }

    fn names(&self, type_url: &str) -> Option<&Names> {
        self.watches().get(type_url).map(|w| &w.names)
    }

    fn awaits_endpoints(&self) -> bool {
        !self.awaited().is_empty() && self.watches().contains_key(ENDPOINT)
    }

    /// Whether removals wait for the client to have moved away from what they remove.
    fn has_deferred(&self) -> bool {
        self.watches().values().any(|w| !w.deferred.is_empty())
    }

    fn status(&self, type_url: &str) -> Option<TypeStatus> {
        self.watches().get(type_url).map(|w| w.ledger.status(type_url, &w.names, w.held.count()))
    }
}

/// A response, and what is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<R> {
    pub response: R,
    pub type_url: String,
    pub resources: usize,
    pub removed: usize,
}
