//! The desired state and how the pods are made to follow it.
//!
//! [`mesh`] owns everything mutable, on one thread; [`start`] makes a pod with its [`volumes`], [`containers`] keeps its processes
//! running under the eyes of [`watch`], [`end`] ends it, [`sync`] tells the network and the control plane what changed. [`rollout`], [`services`] and [`addresses`] decide, without doing.
pub mod addresses;
pub mod builtin;
pub mod change;
pub mod containers;
pub mod end;
pub mod mesh;
pub mod read;
pub mod rollout;
pub mod services;
pub mod start;
pub mod sync;
pub mod volumes;
pub mod watch;
