//! Heads and chunk framing as bytes.
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode};
use lateen_core::framing::is_framing;

use crate::http::message::{Length, Request};

fn header(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn headers(out: &mut BytesMut, map: &HeaderMap) {
    // Room is made for some at once: to look for it before each piece costs more than to copy the piece.
    const AHEAD: usize = 512;
    let mut at = out.len();
    for (name, value) in map {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        let end = at + name.len() + value.len() + 4;
        if out.len() < end {
            out.resize(end + AHEAD, 0);
        }
        let Some((place, rest)) = out.get_mut(at..end).and_then(|line| line.split_at_mut_checked(name.len())) else { return };
        place.copy_from_slice(name);
        let Some((colon, rest)) = rest.split_first_chunk_mut() else { return };
        *colon = *b": ";
        let Some((place, line_end)) = rest.split_at_mut_checked(value.len()) else { return };
        place.copy_from_slice(value);
        line_end.copy_from_slice(b"\r\n");
        at = end;
    }
    out.truncate(at);
}

/// Names that have no business behind a body: whoever merges trailers into the head would be deceived about the message's end,
/// its host or its connection (RFC 9110, section 6.5.1).
pub(super) fn is_of_the_head(name: &HeaderName) -> bool {
    matches!(name.as_str(), "host" | "trailer") || is_framing(name.as_str())
}

/// The last chunk, and what follows it: almost always nothing.
pub(super) fn trailers(map: Option<&HeaderMap>) -> Bytes {
    let Some(map) = map.filter(|map| !map.is_empty()) else { return Bytes::from_static(b"0\r\n\r\n") };
    let mut out = BytesMut::from(&b"0\r\n"[..]);
    for (name, value) in map.iter().filter(|(name, _)| !is_of_the_head(name)) {
        header(&mut out, name.as_str().as_bytes(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.freeze()
}

/// How a message's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body, and no header that says so.
    None,
    Length(u64),
    /// Says a length, but sends no body: the answer to HEAD.
    LengthOnly(u64),
    Chunked,
    /// Says that the body would come in chunks, but sends none: the answer to HEAD.
    ChunkedOnly,
    /// Ends with the connection (HTTP/1.0), or raw bytes after a switch of protocols.
    UntilClose,
}

fn framing(out: &mut BytesMut, framing: Framing) {
    match framing {
        Framing::Length(n) | Framing::LengthOnly(n) => header(out, b"content-length", itoa::Buffer::new().format(n).as_bytes()),
        Framing::Chunked | Framing::ChunkedOnly => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
}

fn needs_no_body(method: &http::Method) -> bool {
    use http::Method;
    matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT)
}

/// A request's head; returns how its body will be framed.
pub(super) fn request(out: &mut BytesMut, request: &Request) -> Framing {
    out.reserve(256);
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    let connect = request.method == http::Method::CONNECT;
    out.extend_from_slice(if connect { request.authority.as_bytes() } else { request.path.as_bytes() });
    out.extend_from_slice(b" HTTP/1.1\r\n");
    header(out, b"host", request.authority.as_bytes());
    headers(out, &request.headers);
    if request.upgrade.is_some() && !connect {
        // Its name is among the headers.
        out.extend_from_slice(b"connection: upgrade\r\n");
    }
    let kind = match request.length {
        Length::Known(n) => Framing::Length(n),
        // That of an upgrade too: till protocols are switched, what has no frame would be read as further requests.
        Length::Unknown => Framing::Chunked,
        Length::None | Length::Empty if request.upgrade.is_some() => Framing::None,
        Length::None if needs_no_body(&request.method) => Framing::None,
        // Servers may wait for a body unless told that there is none, where the method does not say so.
        Length::None | Length::Empty => Framing::Length(0),
    };
    framing(out, kind);
    if request.accepts_trailers {
        out.extend_from_slice(b"te: trailers\r\n");
    }
    out.extend_from_slice(b"\r\n");
    kind
}

/// A response's head.
pub(super) fn response(out: &mut BytesMut, status: StatusCode, map: &HeaderMap, kind: Framing, http10: bool, connection: &[u8]) {
    out.reserve(256);
    out.extend_from_slice(if http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
    out.extend_from_slice(b"\r\n");
    headers(out, map);
    framing(out, kind);
    if !connection.is_empty() {
        header(out, b"connection", connection);
    }
    out.extend_from_slice(b"\r\n");
}

/// `SIZE CRLF` of a chunk.
pub(super) fn chunk_head(size: usize) -> ([u8; 18], usize) {
    let mut line = [0u8; 18];
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1) as usize;
    for (i, slot) in line.iter_mut().take(digits).enumerate() {
        let nibble = (size >> (4 * (digits - 1 - i))) & 0xf;
        *slot = b"0123456789abcdef"[nibble];
    }
    line[digits] = b'\r';
    line[digits + 1] = b'\n';
    (line, digits + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_into_a_head_does_not_go_out_behind_a_body() {
        let map = [("x-sum", "1"), ("content-length", "0"), ("host", "admin"), ("upgrade", "x"), ("grpc-status", "0")];
        let map: HeaderMap = map.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
        let mut lines: Vec<_> = std::str::from_utf8(&trailers(Some(&map))).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["", "0", "grpc-status: 0", "x-sum: 1"]);
        for none in [None, Some(&HeaderMap::new())] {
            let end = trailers(none);
            assert_eq!(end, "0\r\n\r\n");
            assert!(!end.is_unique(), "it is made for nobody");
        }
    }

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        for (size, text) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (65536, "10000\r\n")] {
            let (line, n) = chunk_head(size);
            assert_eq!(&line[..n], text.as_bytes());
        }
    }
}
