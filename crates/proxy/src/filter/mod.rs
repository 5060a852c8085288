//! Filters: of connections, and of requests. One file each.
pub(crate) mod http;
pub(crate) mod network;
