//! The buffer filter.
use lateen_proto::envoy::extensions::filters::http::buffer::v3 as proto;

use super::invalid::{Invalid, Result, Within};
use crate::http::{Buffer, BufferPerRoute};

pub(crate) fn filter(value: proto::Buffer) -> Result<Buffer> {
    let proto::Buffer { max_request_bytes } = value;
    match max_request_bytes {
        Some(most @ 1..) => Ok(Buffer { max_request_bytes: most }),
        _ => Err(Invalid::field("max_request_bytes", "is missing or 0; give the most bytes that a request may have")),
    }
}

pub(crate) fn per_route(value: proto::BufferPerRoute) -> Result<BufferPerRoute> {
    use proto::buffer_per_route::Override;
    match value.r#override {
        Some(Override::Disabled(true)) => Ok(BufferPerRoute::Disabled),
        Some(Override::Buffer(buffer)) => Ok(BufferPerRoute::Override(filter(buffer).within("buffer")?)),
        Some(Override::Disabled(false)) => Err(Invalid::field("disabled", "can only be true")),
        None => Err(Invalid::new("needs disabled or buffer")),
    }
}
