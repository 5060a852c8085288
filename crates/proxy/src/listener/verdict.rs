//! What the first bytes of a connection are taken for, in words: for the fuzzer.
use lateen_snapshot::proxy_protocol::{PassThrough, ProxyProtocolFilter};

use super::{hello, inspect, proxy_header};

/// The verdict on a PROXY header; `None` while more bytes could change it.
pub fn proxy_header(data: &[u8]) -> Option<String> {
    let filter = ProxyProtocolFilter { pass_through: PassThrough::All, ..ProxyProtocolFilter::default() };
    match proxy_header::parse(data, &filter) {
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
