//! HTTP: codecs, the connection manager, the steps of a request that come before routing, the answer's end.
pub(crate) mod access;
mod downstream;
mod exchange;
pub(crate) mod h1;
pub(crate) mod h2;
mod hcm;
pub(crate) mod headers;
mod host_port;
mod local_reply;
pub(crate) mod message;
mod normalize;
mod original_ip;
pub(crate) mod reply;
mod report;
mod routing;
mod sanitize;
pub(crate) mod stream;
pub(crate) mod tcp;
mod upgrade;
mod xfcc;

pub(crate) use access::{ConnectionRecord, LogSet, log_refused};
pub(crate) use downstream::serve;
pub(crate) use exchange::{End, Exchange, Info, Matched};
pub(crate) use h1::valid_host;
pub(crate) use hcm::Hcm;
pub(crate) use host_port::host as host_of;
pub(crate) use report::{destination_of, endpoint_peer};
