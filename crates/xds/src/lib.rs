//! The ADS protocol: what carries a change from control plane to proxy.
//!
//! Both variants, state of the world and delta, are state machines without sockets, so every
//! ordering of requests, ACKs, NACKs and pushes can be tested; thin shells connect them to gRPC.
pub mod backoff;
pub mod canonical;
pub mod client;
pub mod resource;
pub mod server;
pub mod types;

pub use client::{Client, ClientState, ConnectionEvent, Connector, Handler, Mode, Options, Rejected, Service, Subscriptions};
pub use resource::Resource;
pub use server::{Backend, Discovery, Hub};

#[cfg(test)]
mod convergence_tests;
#[cfg(test)]
mod loopback_tests;
#[cfg(test)]
mod wire_tests;
