//! What a request asks for: its target and the host.
use http::Method;

use super::InvalidHead;
use super::fields::Fields;
use crate::http::host_port;
use crate::io::Text;

impl Fields {
    /// Splits the request target: origin form, absolute form, authority form (CONNECT) or `*`.
    pub(super) fn target(&mut self, method: &Method, target: Text) -> Result<(Text, Text, Option<&'static str>), InvalidHead> {
        if target.bytes().any(|b| !b.is_ascii_graphic()) {
            return Err(InvalidHead::Syntax);
        }
        if *method == Method::CONNECT {
            let complete = valid_host(&target) && host_port::split(&target).is_some_and(|(host, _)| !host.is_empty());
            return if complete { Ok((target, Text::EMPTY, None)) } else { Err(InvalidHead::Target) };
        }
        let host = match self.host.take() {
            Some(host) => host,
            // The absolute form names a host, but RFC 9112 3.2 demands the header all the same; HTTP/1.0 does not
            // know it, and without one no virtual host could be chosen.
            None => return Err(InvalidHead::NoHost),
        };
        if target.starts_with('/') || (target.as_str() == "*" && *method == Method::OPTIONS) {
            return Ok((host, without_fragment(target), None));
        }
        let nothing = if target.as_str() == "*" { InvalidHead::Target } else { InvalidHead::Syntax };
        let (scheme, rest) = target.split_once("://").ok_or(nothing)?;
        let scheme = match scheme {
            s if s.eq_ignore_ascii_case("http") => "http",
            s if s.eq_ignore_ascii_case("https") => "https",
            _ => return Err(InvalidHead::Target),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.is_empty() || !valid_host(authority) {
            return Err(InvalidHead::Target);
        }
        let path = if path.starts_with('/') { Text::from(path) } else { Text::from(format!("/{path}")) };
        Ok((Text::from(authority), without_fragment(path), Some(scheme)))
    }
}

/// A fragment never belongs into a request: policies and upstreams would disagree on where the path ends.
fn without_fragment(path: Text) -> Text {
    match path.find('#') {
        Some(at) => Text::from(path.split_at(at).0),
        None => path,
    }
}

/// Whether text could be a `Host`.
pub(crate) fn valid_host(host: &str) -> bool {
    const VALID: [bool; 256] = {
        let (mut valid, mut byte) = ([false; 256], 0);
        while byte < 256 {
            let b = byte as u8;
            valid[byte] = b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#' | b'@' | b'\\' | b'<' | b'>' | b'"' | b',');
            byte += 1;
        }
        valid
    };
    host.bytes().all(|b| VALID[usize::from(b)])
}
