//! The desired state and how the pods are made to follow it.
//!
//! [`mesh`] owns everything mutable, on one thread; [`start`] makes a pod, [`end`] ends one, [`sync`]
//! tells the network and the control plane what changed. [`rollout`], [`services`] and [`addresses`] decide, without doing.
pub mod addresses;
pub mod builtin;
pub mod change;
pub mod end;
pub mod mesh;
pub mod read;
pub mod rollout;
pub mod services;
pub mod start;
pub mod sync;
pub mod tokens;
