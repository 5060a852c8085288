//! Heads of HTTP/1 messages: bytes to [`Request`] and [`Response`], refusing whatever two parsers could
//! read in two ways (RFC 9112 sections 3, 5 and 6).
mod fields;
mod request;
mod response;
mod scan;
mod spans;
mod target;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use lateen_snapshot::http::NameCase;

pub(super) use request::request;
pub(super) use response::{AnswerTo, response};
pub(super) use scan::HeadScan;
pub(crate) use target::valid_host;

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    pub(crate) bytes: usize,
    pub(crate) count: usize,
    pub(crate) accept_http_10: bool,
    /// What says how long it is and is chunked all the same counts as chunked, and is no longer said to have a length.
    pub(crate) allow_chunked_length: bool,
    /// Whether the names' spelling is kept.
    pub(crate) names: NameCase,
}

impl HeadLimits {
    /// Of a head that is not all there: nothing yet, unless it is too large already.
    fn more_may_come<T>(&self, input: &[u8]) -> Result<Option<T>, InvalidHead> {
        if input.len() > self.bytes { Err(InvalidHead::TooLarge) } else { Ok(None) }
    }

    /// For more headers than there is room for at first.
    fn more<'a>(&self) -> Vec<MaybeUninit<httparse::Header<'a>>> {
        // No header is shorter than `a:` with its line end, or with a line feed alone.
        let most = self.count.min(self.bytes / 3) + 1;
        std::iter::repeat_with(MaybeUninit::uninit).take(most).collect()
    }
}

/// Why a head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidHead {
    #[error("the head is not HTTP/1")]
    Syntax,
    #[error("the head has control characters")]
    Characters,
    #[error("the head is too large")]
    TooLarge,
    #[error("there are too many headers")]
    TooMany,
    #[error("HTTP/1.0 is not enabled")]
    OldVersion,
    #[error("Host is missing")]
    NoHost,
    #[error("Host is given twice, or is no host")]
    Host,
    #[error("the request target is not valid")]
    Target,
    #[error("Content-Length is not one number")]
    ContentLength,
    #[error("Transfer-Encoding is not exactly chunked")]
    TransferEncoding,
    #[error("Transfer-Encoding comes with Content-Length")]
    TwoLengths,
    #[error("CONNECT has no body")]
    ConnectBody,
    #[error("Connection names too much, or what is not of this hop")]
    Connection,
}

const MOST_HEADERS: usize = 128;
