//! How the proxy's own replies are worded.
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::filters::network::http_connection_manager::v3 as proto;

use super::common::data;
use super::header;
use super::invalid::{Invalid, Result, Within};
use super::{access_log, log_filter};
use crate::http::LogFormat;
use crate::local_reply::{BodyFormat, LocalReplies, ReplyMapper};

pub(crate) fn replies(value: proto::LocalReplyConfig) -> Result<LocalReplies> {
    let proto::LocalReplyConfig { mappers, body_format } = value;
    Ok(LocalReplies {
        mappers: mappers.into_iter().enumerate().map(|(i, m)| mapper(m).within_item("mappers", i)).collect::<Result<_>>()?,
        format: body_format.map(format).transpose().within("body_format")?,
    })
}

fn mapper(value: proto::ResponseMapper) -> Result<ReplyMapper> {
    let proto::ResponseMapper { filter, status_code, body, body_format_override, headers_to_add } = value;
    let filter = filter.ok_or_else(|| Invalid::new("is missing; say which replies are meant")).and_then(log_filter::filter);
    let status = |code: u32| {
        let known = u16::try_from(code).ok().filter(|c| (200..600).contains(c)).and_then(|c| StatusCode::from_u16(c).ok());
        known.ok_or_else(|| Invalid::field("status_code", format!("{code} is not a status from 200 to 599")))
    };
    Ok(ReplyMapper {
        filter: filter.within("filter")?,
        status: status_code.map(status).transpose()?,
        body: body.map(|b| data(b).map(Bytes::from)).transpose().within("body")?,
        format: body_format_override.map(format).transpose().within("body_format_override")?,
        headers: header::additions(headers_to_add, "headers_to_add")?,
    })
}

fn format(value: core::SubstitutionFormatString) -> Result<BodyFormat> {
    let content_type = value.content_type.clone();
    let format = access_log::body(value)?;
    let content_type = match (content_type.is_empty(), &format) {
        (false, _) => HeaderValue::from_str(&content_type)
            .map_err(|_| Invalid::field("content_type", "holds a character that a header value must not have"))?,
        (true, LogFormat::Json { .. }) => HeaderValue::from_static("application/json"),
        (true, _) => HeaderValue::from_static("text/plain"),
    };
    Ok(BodyFormat { format, content_type })
}
