//! Upstream connections of one worker: made, pooled, shared and given up. Nothing here crosses threads.
mod aggregate;
mod ahead;
pub(crate) mod call;
mod caller;
mod cluster;
mod connect;
mod eyeballs;
pub(crate) mod grpc;
mod lease;
mod load_report;
mod named;
mod open;
mod pool;
mod shared;
mod waiting;
mod watch;

pub(crate) use aggregate::choose;
pub(crate) use caller::{Caller, Needs, Proxied, Source};
pub(crate) use cluster::{ClusterState, Pools, Sought, Target, TargetWish};
pub(crate) use connect::{ConnectFailure, ConnectPlan, Dialer, Names, handshake, keep_alive};
pub(crate) use lease::Lease;
pub(crate) use open::{Ending, Principals};
pub(crate) use pool::NoConnection;
pub(crate) use watch::Watched;
