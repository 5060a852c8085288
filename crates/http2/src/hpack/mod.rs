//! HPACK: header compression (RFC 7541).
mod decode;
mod encode;
mod huffman;
mod table;

pub(crate) use decode::{Block, CompressionError, Decoder};
pub(crate) use encode::Encoder;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};

/// A header field, parsed once when it enters a table.
#[derive(Clone, Debug)]
pub(crate) enum Field {
    Authority(Bytes),
    Method(Method),
    Scheme(Bytes),
    Path(Bytes),
    Protocol(Bytes),
    Status(StatusCode),
    Header(HeaderName, HeaderValue),
}

impl Field {
    fn name_len(&self) -> usize {
        match self {
            Self::Authority(_) => 10,
            Self::Method(_) | Self::Scheme(_) | Self::Status(_) => 7,
            Self::Path(_) => 5,
            Self::Protocol(_) => 9,
            Self::Header(name, _) => name.as_str().len(),
        }
    }

    fn value_len(&self) -> usize {
        match self {
            Self::Authority(v) | Self::Scheme(v) | Self::Path(v) | Self::Protocol(v) => v.len(),
            Self::Method(m) => m.as_str().len(),
            Self::Status(_) => 3,
            Self::Header(_, value) => value.len(),
        }
    }

    /// Size as limits count it: both parts and 32.
    fn size(&self) -> usize {
        self.name_len() + self.value_len() + table::OVERHEAD
    }
}
