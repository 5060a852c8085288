//! Filters: of connections, and of requests. One file each.
pub(crate) mod authorizer;
mod discovered;
pub(crate) mod http;
pub(crate) mod network;

pub(crate) use discovered::Found;
