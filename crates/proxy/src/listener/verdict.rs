//! What the first bytes of a connection are taken for, in words: for the fuzzer.
use super::{hello, inspect, proxy_header};

/// The verdict on a PROXY header; `None` while more bytes could change it.
pub fn proxy_header(data: &[u8]) -> Option<String> {
    match proxy_header::parse(data) {
        proxy_header::Header::NeedMore => None,
        header => Some(format!("{header:?}")),
    }
}

/// The verdict on a ClientHello.
pub fn hello(data: &[u8]) -> Option<String> {
    match hello::parse(data) {
        hello::Hello::NeedMore => None,
        hello => Some(format!("{hello:?}")),
    }
}

/// The HTTP version that the bytes begin with.
pub fn http_version(data: &[u8]) -> Option<String> {
    inspect::version_of(data)
}
