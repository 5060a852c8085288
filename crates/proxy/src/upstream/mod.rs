//! Upstream connections of one worker: made, pooled, shared and given up. Nothing here crosses threads.
pub(crate) mod call;
mod cluster;
mod connect;
mod eyeballs;
pub(crate) mod grpc;
mod lease;
mod pool;

pub(crate) use cluster::{ClusterState, Pools, Target, TargetWish};
pub(crate) use connect::{ConnectFailure, ConnectPlan, Dialer, keep_alive};
pub(crate) use lease::Lease;
pub(crate) use pool::NoConnection;
