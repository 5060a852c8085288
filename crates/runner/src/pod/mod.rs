//! Pods: from a spec to processes ([`plan`], [`inject`]), running them ([`process`], [`probe`], [`restart`]), what they print ([`logs`]).
pub mod inject;
pub mod logs;
pub mod plan;
pub mod probe;
pub mod process;
pub mod restart;
