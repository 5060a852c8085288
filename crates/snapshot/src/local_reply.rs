//! Replies of the proxy's own, as the configuration words them (Envoy `LocalReplyConfig`).
use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use crate::header::HeaderMutations;
use crate::http::LogFormat;
use crate::log_filter::LogFilter;

#[derive(Debug)]
pub struct LocalReplies {
    /// The first whose filter holds counts.
    pub mappers: Vec<ReplyMapper>,
    /// Where no mapper has a format of its own.
    pub format: Option<BodyFormat>,
}

#[derive(Debug)]
pub struct ReplyMapper {
    pub filter: LogFilter,
    pub status: Option<StatusCode>,
    pub body: Option<Bytes>,
    pub format: Option<BodyFormat>,
    pub headers: HeaderMutations,
}

#[derive(Debug)]
pub struct BodyFormat {
    pub format: LogFormat,
    pub content_type: HeaderValue,
}
