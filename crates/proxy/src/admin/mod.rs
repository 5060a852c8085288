//! The admin server, in Envoy's formats; and the ports that Istio's agent opens beside it.
mod agent;
mod certs;
mod clusters;
mod dump;
mod endpoints;
mod listeners;
mod mask;
mod pages;
mod ports;
mod runtime;
mod server;

pub use server::{AdminOptions, LogControl};

pub(crate) use ports::Ports;
pub(crate) use server::serve;
