//! Istio's standard metrics: `istio_requests_total` and its family, label for label.
//!
//! The labels of a stream are known in pieces before it ends: the own workload, the destination of the
//! cluster, the peer, its principal. Each piece is interned when first seen, so that a finished request is
//! one hash lookup of a small key, and no text is formed before a scrape.
mod catch_all;
mod intern;
mod labels;
mod peer;
mod remembered;
mod series;
mod store;

pub use catch_all::CatchAll;
pub use intern::{DestinationId, PeerId, PrincipalId};
pub use labels::{Destination, Protocol, Reporter};
pub use peer::{InvalidPeer, PEER_HEADER, PEER_ID_HEADER, PeerMetadata};
pub use series::{HttpOutcome, StreamLabels};
pub use store::{Config, IstioMetrics, IstioShard, TcpSeries};
