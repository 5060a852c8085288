//! What arrived and when, kept for `config_dump` and for telling whether an update changes anything.
use std::sync::Arc;
use std::time::SystemTime;

use lateen_proto::Any;

/// Whether a resource is part of the bootstrap or was discovered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    #[default]
    Static,
    Dynamic,
}

/// A resource as it arrived.
#[derive(Clone, Debug)]
pub struct Record {
    pub body: Arc<Any>,
    pub version: Arc<str>,
    pub updated: SystemTime,
}

/// The last update of a resource that was refused; the one before it stays in use.
#[derive(Clone, Debug)]
pub struct Failure {
    pub body: Arc<Any>,
    pub version: Arc<str>,
    pub at: SystemTime,
    pub reason: String,
}

/// The kinds of resources that are kept by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Listener,
    Route,
    Cluster,
    Endpoint,
    Extension,
    Scope,
}

/// One resource as it arrived, in the versions there are.
#[derive(Clone, Debug)]
pub struct Listed<'a> {
    pub name: &'a str,
    pub origin: Origin,
    /// In use.
    pub active: Option<&'a Record>,
    /// Waits for what it refers to.
    pub warming: Option<&'a Record>,
    /// The last refusal, if nothing was accepted since.
    pub failure: Option<&'a Failure>,
    /// Files of its certificates that cannot be used as they are: those before are, or it waits.
    pub unusable_files: Option<Failure>,
}
