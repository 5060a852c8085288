//! What both variants of the protocol keep of a type that a client watches, and what they ask of a request.
use std::collections::{BTreeMap, BTreeSet};

use lateen_proto::envoy::config::core::v3::Node;
use lateen_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::Names;
use super::status::Ledger;

/// The types of one stream.
pub(crate) type Watches<H> = BTreeMap<String, Watch<H>>;

/// One type on one stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch<H> {
    pub(super) names: Names,
    /// What the client holds, as far as we know.
    pub(super) held: H,
    pub(super) ledger: Ledger,
    /// Removals that wait until the client has moved away from what they remove.
    pub(super) deferred: BTreeSet<String>,
}

/// What a client holds of a type.
pub(crate) trait Held {
    fn count(&self) -> usize;
}

impl<H> Watch<H> {
    /// Those names that the client still wants, if it gave up others after it had refused something. Nobody says which of them
    /// it refused: sent once more, its answer tells whether it refuses any of those that are left.
    pub(super) fn in_doubt(&self, gave_up: bool) -> Option<BTreeSet<String>> {
        let doubtful = gave_up && self.ledger.nacked.is_some() && !self.names.names.is_empty();
        doubtful.then(|| self.names.names.clone())
    }
}

/// What the shell reads of a request.
pub(crate) trait Asking: Send {
    /// Takes out the node, if there is one.
    fn take_node(&mut self) -> Option<Node>;
    fn type_url_mut(&mut self) -> &mut String;
}

impl Asking for DiscoveryRequest {
    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn type_url_mut(&mut self) -> &mut String {
        &mut self.type_url
    }
}

impl Asking for DeltaDiscoveryRequest {
    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn type_url_mut(&mut self) -> &mut String {
        &mut self.type_url
    }
}
