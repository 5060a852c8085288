//! Bodies of HTTP/1 messages: by length, chunked, or until the connection closes.
use bytes::{Buf, BytesMut};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::http::message::Frame;

/// A chunk-size line with its extensions may be this long.
const LINE_LIMIT: usize = 1024;
const TRAILER_LIMIT: usize = 16 * 1024;
const TRAILER_COUNT: usize = 64;

/// A body that breaks the rules of its framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed")]
pub(crate) struct InvalidBody;

/// Where in a body the reader stands.
#[derive(Debug)]
pub(crate) enum Decoder {
    Done,
    Length(u64),
    Chunked(Chunk),
    UntilClose,
}

#[derive(Debug)]
pub(crate) enum Chunk {
    Size,
    Data(u64),
    /// The CRLF after a chunk's data.
    End,
    Trailers,
}

impl Decoder {
    pub(crate) fn chunked() -> Self {
        Self::Chunked(Chunk::Size)
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// The next piece in `input`; `None` when more bytes are needed or the body is done.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, InvalidBody> {
        loop {
            match self {
                Self::Done => return Ok(None),
                _ if input.is_empty() => return Ok(None),
                Self::Length(left) => {
                    let n = (*left).min(input.len() as u64);
                    *left -= n;
                    if *left == 0 {
                        *self = Self::Done;
                    }
                    return Ok(Some(Frame::Data(input.split_to(n as usize).freeze())));
                }
                Self::UntilClose => return Ok(Some(Frame::Data(input.split().freeze()))),
                Self::Chunked(Chunk::Size) => {
                    let Some(size) = chunk_size(input)? else { return Ok(None) };
                    *self = Self::Chunked(if size == 0 { Chunk::Trailers } else { Chunk::Data(size) });
                }
                Self::Chunked(Chunk::Data(left)) => {
                    let n = (*left).min(input.len() as u64);
                    *left -= n;
                    if *left == 0 {
                        *self = Self::Chunked(Chunk::End);
                    }
                    return Ok(Some(Frame::Data(input.split_to(n as usize).freeze())));
                }
                Self::Chunked(Chunk::End) => match (input.first(), input.get(1)) {
                    (Some(b'\r'), Some(b'\n')) => {
                        input.advance(2);
                        *self = Self::Chunked(Chunk::Size);
                    }
                    (Some(b'\r'), None) => return Ok(None),
                    _ => return Err(InvalidBody),
                },
                Self::Chunked(Chunk::Trailers) => {
                    let Some(trailers) = trailers(input)? else { return Ok(None) };
                    *self = Self::Done;
                    return Ok((!trailers.is_empty()).then(|| Frame::Trailers(Box::new(trailers))));
                }
            }
        }
    }
}

/// Reads `SIZE[;extension]CRLF`. Extensions are dropped; a bare LF or a control character in one is refused,
/// since parsers disagree on where such a line ends.
fn chunk_size(input: &mut BytesMut) -> Result<Option<u64>, InvalidBody> {
    let Some(end) = input.iter().take(LINE_LIMIT).position(|b| *b == b'\n') else {
        return if input.len() >= LINE_LIMIT { Err(InvalidBody) } else { Ok(None) };
    };
    let line = input.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(InvalidBody)?;
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    let extension_is_sane = extension.is_empty()
        || (extension.trim_ascii_start().starts_with(b";") && extension.iter().all(|b| *b == b'\t' || !b.is_ascii_control()));
    if digits == 0 || digits > 15 || !extension_is_sane {
        return Err(InvalidBody);
    }
    let size = size.iter().fold(0u64, |n, d| n << 4 | u64::from(char::from(*d).to_digit(16).unwrap_or(0)));
    input.advance(end + 1);
    Ok(Some(size))
}

fn trailers(input: &mut BytesMut) -> Result<Option<HeaderMap>, InvalidBody> {
    if input.starts_with(b"\r\n") {
        input.advance(2);
        return Ok(Some(HeaderMap::new()));
    }
    let mut slots = [httparse::EMPTY_HEADER; TRAILER_COUNT];
    let (size, map) = match httparse::parse_headers(input, &mut slots) {
        Ok(httparse::Status::Complete((size, headers))) => {
            let mut map = HeaderMap::with_capacity(headers.len());
            for h in headers {
                let name = HeaderName::from_bytes(h.name.as_bytes()).map_err(|_| InvalidBody)?;
                if super::encode::is_of_the_head(&name) {
                    continue;
                }
                map.append(name, HeaderValue::from_bytes(h.value).map_err(|_| InvalidBody)?);
            }
            (size, map)
        }
        Ok(httparse::Status::Partial) if input.len() < TRAILER_LIMIT => return Ok(None),
        _ => return Err(InvalidBody),
    };
    if size > TRAILER_LIMIT {
        return Err(InvalidBody);
    }
    input.advance(size);
    Ok(Some(map))
}
