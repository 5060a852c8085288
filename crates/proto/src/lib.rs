//! Wire messages: what travels between control plane and proxy on the path of a change.
//!
//! Envoy's v3 API, the aggregated and secret discovery services, Istio's certificate service and
//! filter configurations, generated at build time; [`any`] packs and opens `Any`, [`json`] reads and
//! writes Envoy's canonical JSON (bootstrap files, `config_dump`), by the shapes that [`schema`] knows;
//! [`wire`] takes encoded messages apart.
pub mod any;
pub mod json;
pub mod schema;
pub mod wire;

#[allow(clippy::all, rustdoc::all, unused_qualifications, unreachable_pub, missing_docs)]
mod messages {
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}
pub use messages::*;
pub use prost_types::{Any, Duration, Struct, Timestamp, Value};

/// The encoded `FileDescriptorSet` of every message in this crate.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
