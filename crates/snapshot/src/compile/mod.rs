//! Compiling: Envoy's v3 resources into the runtime form of this crate.
//!
//! Each message is taken apart field by field, so that the compiler asks for a decision about every
//! field there is: honoured, accepted because nothing a caller can observe depends on it
//! (`harmless!`), or refused (`refuse!`). A refusal names the field by its path and says what to do.
#![allow(deprecated)] // Older fields of the messages still arrive and must be judged like any other.
mod access_log;
mod action;
mod admission;
mod balance;
mod bandwidth;
mod buffer;
mod circuit_breakers;
mod cluster;
mod common;
mod compiler;
mod compressor;
mod connection_services;
mod context;
mod discovery;
mod dns;
mod dns_cache;
mod endpoint;
mod ext_authz;
mod ext_proc;
mod extension;
mod fault;
mod filter;
mod global_ratelimit;
mod grpc_stats;
mod hcm;
mod header;
mod header_mutation;
mod health_check;
mod internal_redirect;
pub(crate) mod invalid;
mod istio;
mod jwt_authn;
mod listener;
mod listener_filter;
mod local_ratelimit;
mod local_reply;
mod matcher;
mod matcher_tree;
mod metadata;
mod names;
mod network;
mod on_demand;
mod outlier;
pub(crate) mod parts;
mod proxy_protocol;
mod ratelimit;
mod rbac;
mod record;
mod retry;
mod route;
mod scoped_routes;
mod secret;
mod service;
mod set_filter_state;
mod shared;
mod small_filters;
mod source;
mod stateful_session;
mod subset;
mod tcp_proxy;
mod tls;
mod tracing;
mod transport;
mod upstream_connection;
mod upstream_http;
mod warming;

pub(crate) use common::value_json;
pub use compiler::{Compiler, Rejected, Update, Wanted, Wish};
pub use invalid::Invalid;
pub use record::{Failure, Kind, Listed, Origin, Record};
pub use secret::{Certificate, SecretKey, SecretValue, Validation};
pub use source::SecretSource;
