//! Heads of HTTP/1 messages: bytes to [`Request`] and [`Response`], refusing whatever two parsers could
//! read in two ways (RFC 9112 sections 3, 5 and 6).
use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use lateen_core::recycle::maps;
use lateen_snapshot::http::NameCase;

use super::Decoder;
use super::names::{self, Meaning};
use super::spelling::Spelling;
use crate::http::host_port;
use crate::http::message::{Hints, Length, Request, Response, Version};
use crate::io::Text;

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

/// What a request's head says about its connection.
pub(crate) struct RequestFraming {
    pub(crate) keep_alive: bool,
    pub(crate) decoder: Decoder,
}

const MOST_HEADERS: usize = 128;
/// So many tokens in `Connection` are too many (as in Envoy).
const TOO_MANY_TOKENS: u32 = 10;
/// Most heads have no more.
const FEW_HEADERS: usize = 32;

/// How far `input` has been looked through for the end of a head, so that a slow sender costs no rescans. A head is nearly
/// always all there at the first look, which is left to the parser: only one that was not is looked through.
#[derive(Default)]
pub(crate) struct HeadScan {
    looked: usize,
    /// The parser has seen a part of this head.
    partial: bool,
}

impl HeadScan {
    /// Whether the parser is worth asking.
    fn may_be_complete(&mut self, input: &[u8]) -> bool {
        !self.partial || self.complete(input)
    }

    /// Whether the blank line that ends a head is there.
    fn complete(&mut self, input: &[u8]) -> bool {
        let mut at = self.looked;
        while let Some(found) = input.get(at..).and_then(|rest| rest.iter().position(|b| *b == b'\n')) {
            let end = at + found;
            match (input.get(end + 1), input.get(end + 2)) {
                (Some(b'\n'), _) | (Some(b'\r'), Some(b'\n')) => return true,
                (None, _) | (Some(b'\r'), None) => {
                    self.looked = end;
                    return false;
                }
                _ => at = end + 1,
            }
        }
        self.looked = input.len();
        false
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Reads a request's head off the front of `input`; `None` until it is all there.
pub(crate) fn request(
    input: &mut BytesMut,
    scan: &mut HeadScan,
    limits: HeadLimits,
    https: bool,
) -> Result<Option<(Request, RequestFraming)>, InvalidHead> {
    skip_blank_lines(input, scan);
    if !scan.may_be_complete(input) {
        return if input.len() > limits.bytes { Err(InvalidHead::TooLarge) } else { Ok(None) };
    }
    let mut slots = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut more;
    let mut parsed = httparse::Request::new(&mut []);
    let mut outcome = parsed.parse_with_uninit_headers(input, &mut slots);
    if outcome == Err(httparse::Error::TooManyHeaders) && limits.count > MOST_HEADERS {
        more = limits.more();
        parsed = httparse::Request::new(&mut []);
        outcome = parsed.parse_with_uninit_headers(input, &mut more);
    }
    let size = match outcome {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) => {
            scan.partial = true;
            return if input.len() > limits.bytes { Err(InvalidHead::TooLarge) } else { Ok(None) };
        }
        Err(httparse::Error::TooManyHeaders) => return Err(InvalidHead::TooMany),
        Err(error) => return Err(unreadable(input, error)),
    };
    if size > limits.bytes {
        return Err(InvalidHead::TooLarge);
    }
    if parsed.headers.len() > limits.count {
        return Err(InvalidHead::TooMany);
    }
    let base = input.as_ptr() as usize;
    let range = |part: &[u8]| {
        let start = part.as_ptr() as usize - base;
        start..start + part.len()
    };
    let version = if parsed.version == Some(1) { Version::Http11 } else { Version::Http10 };
    if version == Version::Http10 && !limits.accept_http_10 {
        return Err(InvalidHead::OldVersion);
    }
    let method = method(parsed.method.unwrap_or_default())?;
    let target = range(parsed.path.unwrap_or_default().as_bytes());
    let count = parsed.headers.len();
    let (mut few, mut many) = ([Span::default(); FEW_HEADERS], Vec::new());
    let spans = spans(base, parsed.headers, &mut few, &mut many);
    let head = input.split_to(size).freeze();
    scan.reset();
    let mut fields = Fields::new(count, limits.names);
    for span in spans {
        let (name, value) = ranges(*span);
        fields.add(&head, name, value)?;
    }
    let target = Text::new(head.slice(target)).ok_or(InvalidHead::Target)?;
    fields.into_request(method, target, version, https, limits.allow_chunked_length, size)
}

/// What was wrong with a head, told apart as Envoy's codec does: control characters in a value or the request line, or anything
/// else.
fn unreadable(input: &[u8], error: httparse::Error) -> InvalidHead {
    match error {
        httparse::Error::HeaderValue => InvalidHead::Characters,
        httparse::Error::Token => first_mistake(input),
        _ => InvalidHead::Syntax,
    }
}

/// Judges a request line by its first mistake: more of the line may or may not have arrived, and must not matter.
fn first_mistake(line: &[u8]) -> InvalidHead {
    // What does not even begin with a method is another protocol.
    if !line.first().is_some_and(u8::is_ascii_uppercase) {
        return InvalidHead::Syntax;
    }
    let mut in_method = true;
    for byte in line {
        match byte {
            b' ' if in_method => in_method = false,
            b' ' | b'\r' | b'\n' => break,
            byte if byte.is_ascii_control() => return InvalidHead::Characters,
            byte if in_method && !is_token(*byte) => break,
            _ => {}
        }
    }
    InvalidHead::Syntax
}

/// Whether a method may hold it (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Where a header's name and value lie in the head: start and length of each.
type Span = [u32; 4];

fn span(base: usize, header: &httparse::Header<'_>) -> Span {
    let at = |part: &[u8]| (part.as_ptr() as usize).wrapping_sub(base) as u32;
    [at(header.name.as_bytes()), header.name.len() as u32, at(header.value), header.value.len() as u32]
}

/// Those of all headers, in `few` if they fit: it is short because it is cleared for each head.
fn spans<'a>(base: usize, headers: &[httparse::Header<'_>], few: &'a mut [Span; FEW_HEADERS], many: &'a mut Vec<Span>) -> &'a [Span] {
    match few.get_mut(..headers.len()) {
        Some(few) => {
            for (slot, header) in few.iter_mut().zip(headers) {
                *slot = span(base, header);
            }
            few
        }
        None => {
            many.extend(headers.iter().map(|header| span(base, header)));
            many
        }
    }
}

fn ranges([name, name_len, value, value_len]: Span) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let range = |start: u32, len: u32| start as usize..start as usize + len as usize;
    (range(name, name_len), range(value, value_len))
}

/// Clients that send a stray CRLF after a body are tolerated (RFC 9112 2.2). Whole lines only: what is skipped must not
/// depend on how the bytes were cut on their way.
fn skip_blank_lines(input: &mut BytesMut, scan: &mut HeadScan) {
    let mut blank = 0;
    loop {
        blank += match (input.get(blank), input.get(blank + 1)) {
            (Some(b'\n'), _) => 1,
            (Some(b'\r'), Some(b'\n')) => 2,
            _ => break,
        };
    }
    if blank > 0 {
        bytes::Buf::advance(input, blank);
        scan.reset();
    }
}

/// Methods are case-sensitive, and all registered ones are upper case: `get` is no method.
fn method(text: &str) -> Result<Method, InvalidHead> {
    if text.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err(InvalidHead::Syntax);
    }
    Method::from_bytes(text.as_bytes()).map_err(|_| InvalidHead::Syntax)
}

/// Headers on their way into a message.
struct Fields {
    headers: HeaderMap,
    host: Option<Text>,
    content_length: Option<u64>,
    transfer_encoding: Option<bool>,
    close: bool,
    keep_alive: bool,
    upgrade_wanted: bool,
    upgrade: Option<Text>,
    expects_continue: bool,
    accepts_trailers: bool,
    /// Other names in `Connection`: those headers belong to this hop.
    nominated: Vec<HeaderName>,
    /// All that `Connection` says.
    connection_tokens: u32,
    /// `Connection` names a pseudo header.
    nominates_pseudo: bool,
    hints: Hints,
    spelling: Option<Box<Spelling>>,
}

impl Fields {
    fn new(count: usize, names: NameCase) -> Self {
        Self {
            headers: maps::take(count + 8),
            host: None,
            content_length: None,
            transfer_encoding: None,
            close: false,
            keep_alive: false,
            upgrade_wanted: false,
            upgrade: None,
            expects_continue: false,
            accepts_trailers: false,
            nominated: Vec::new(),
            connection_tokens: 0,
            nominates_pseudo: false,
            hints: Hints::default(),
            spelling: Spelling::kept(names),
        }
    }

    fn add(&mut self, head: &Bytes, name: std::ops::Range<usize>, value: std::ops::Range<usize>) -> Result<(), InvalidHead> {
        if let Some(spelling) = &mut self.spelling {
            spelling.note(head.slice(name.clone()));
        }
        let Some(known) = names::known(&head[name.clone()]) else {
            let name = HeaderName::from_bytes(&head[name]).map_err(|_| InvalidHead::Syntax)?;
            self.hints.note(name.as_str().as_bytes());
            return self.keep(name, head.slice(value));
        };
        let bytes = &head[value.clone()];
        match known.meaning {
            Meaning::None => {
                self.hints.note(known.text.as_bytes());
                return self.keep(known.name.clone(), head.slice(value));
            }
            Meaning::Host => {
                let host = Text::new(head.slice(value)).filter(|h| valid_host(h));
                if self.host.is_some() || host.is_none() {
                    return Err(InvalidHead::Host);
                }
                self.host = host;
            }
            Meaning::ContentLength => {
                let length = content_length(bytes)?;
                // Even twice the same: what strips one of them on the way would see another message.
                if self.content_length.is_some() {
                    return Err(InvalidHead::ContentLength);
                }
                self.content_length = Some(length);
            }
            Meaning::TransferEncoding => {
                // A second header, a list, or any other coding: some parser reads that differently.
                if self.transfer_encoding.is_some() || !bytes.eq_ignore_ascii_case(b"chunked") {
                    return Err(InvalidHead::TransferEncoding);
                }
                self.transfer_encoding = Some(true);
            }
            Meaning::Connection => self.connection(bytes),
            Meaning::Upgrade => self.upgrade = Text::new(head.slice(value)),
            Meaning::Expect if bytes.eq_ignore_ascii_case(b"100-continue") => self.expects_continue = true,
            Meaning::Expect => return self.keep(known.name.clone(), head.slice(value)),
            Meaning::Te => self.accepts_trailers |= tokens(bytes).any(|t| t.eq_ignore_ascii_case(b"trailers")),
            Meaning::Hop => {}
        }
        Ok(())
    }

    /// A header that is nothing to this connection.
    fn keep(&mut self, name: HeaderName, value: Bytes) -> Result<(), InvalidHead> {
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| InvalidHead::Syntax)?;
        self.headers.append(name, value);
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) {
        for token in tokens(value) {
            self.connection_tokens += 1;
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade_wanted = true;
            } else if let Ok(name) = HeaderName::from_bytes(token) {
                self.nominated.push(name);
            } else {
                self.nominates_pseudo |= token.starts_with(b":");
            }
        }
    }

    fn into_request(
        mut self,
        method: Method,
        target: Text,
        version: Version,
        https: bool,
        allow_chunked_length: bool,
        size: usize,
    ) -> Result<Option<(Request, RequestFraming)>, InvalidHead> {
        if self.connection_tokens >= TOO_MANY_TOKENS || self.nominates_pseudo || self.nominated.iter().any(is_of_the_origin) {
            return Err(InvalidHead::Connection);
        }
        self.drop_nominated();
        let (authority, path, scheme) = self.target(&method, target)?;
        let (decoder, length) = match (self.transfer_encoding, self.content_length) {
            (Some(_), Some(_)) if !allow_chunked_length => return Err(InvalidHead::TwoLengths),
            // HTTP/1.0 knows no chunks: an old proxy on the way would take them for the body.
            (Some(_), _) if version == Version::Http10 => return Err(InvalidHead::TransferEncoding),
            (Some(_), _) => (Decoder::chunked(), Length::Unknown),
            (None, Some(0)) => (Decoder::Done, Length::Empty),
            (None, Some(n)) => (Decoder::Length(n), Length::Known(n)),
            (None, None) => (Decoder::Done, Length::None),
        };
        let keep_alive = match version {
            Version::Http10 => self.keep_alive && !self.close,
            _ => !self.close,
        };
        let upgrade = if method == Method::CONNECT {
            match length {
                Length::None | Length::Empty => Some(Text::fixed("connect")),
                _ => return Err(InvalidHead::ConnectBody),
            }
        } else {
            self.upgrade(version)?
        };
        let request = Request {
            method,
            authority,
            scheme: scheme.unwrap_or(if https { "https" } else { "http" }),
            path,
            headers: self.headers,
            version,
            // Nothing is said of what follows an upgrade.
            length: if upgrade.is_some() && length == Length::Empty { Length::None } else { length },
            upgrade,
            expects_continue: self.expects_continue && version == Version::Http11,
            accepts_trailers: self.accepts_trailers,
            hints: self.hints,
            head_bytes: size as u64,
            spelling: self.spelling,
        };
        Ok(Some((request, RequestFraming { keep_alive, decoder })))
    }

    /// The protocol that the caller wants to switch to; routes and policies see its name among the headers.
    /// `Upgrade: h2c` asks for a switch we do not make: the request is served as it is.
    fn upgrade(&mut self, version: Version) -> Result<Option<Text>, InvalidHead> {
        let wanted = |name: &Text| self.upgrade_wanted && version != Version::Http10 && !name.eq_ignore_ascii_case("h2c");
        let Some(name) = self.upgrade.take().filter(wanted) else { return Ok(None) };
        let value = HeaderValue::from_maybe_shared(name.clone().into_bytes()).map_err(|_| InvalidHead::Syntax)?;
        self.headers.insert(header::UPGRADE, value);
        Ok(Some(Text::from(name.to_ascii_lowercase())))
    }

    fn drop_nominated(&mut self) {
        if self.nominated.is_empty() {
            return;
        }
        for name in std::mem::take(&mut self.nominated) {
            self.headers.remove(name);
        }
        self.hints = Hints::of(&self.headers);
    }

    /// Splits the request target: origin form, absolute form, authority form (CONNECT) or `*`.
    fn target(&mut self, method: &Method, target: Text) -> Result<(Text, Text, Option<&'static str>), InvalidHead> {
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

/// Whether a header tells where a request came from. A caller that has it dropped hides what the proxy in front wrote, which
/// knows nothing of that wish when it is of HTTP/1.0 or passes `Connection` on.
fn is_of_the_origin(name: &HeaderName) -> bool {
    matches!(name.as_str(), "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto")
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

/// Digits only: `+5`, `0x5`, `5, 5` and the like are how requests are smuggled.
pub(super) fn content_length(value: &[u8]) -> Result<u64, InvalidHead> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(InvalidHead::ContentLength);
    }
    Ok(value.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

/// What a response's head says about its connection.
pub(crate) struct ResponseFraming {
    pub(crate) keep_alive: bool,
    pub(crate) decoder: Decoder,
}

/// What a response answers, where that decides about what follows its head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AnswerTo {
    Head,
    Connect,
    #[default]
    Other,
}

/// Reads a response's head; what it answers and the status decide whether a body may follow.
pub(crate) fn response(
    input: &mut BytesMut,
    scan: &mut HeadScan,
    to: AnswerTo,
    limits: HeadLimits,
) -> Result<Option<(Response, ResponseFraming)>, InvalidHead> {
    if !scan.may_be_complete(input) {
        return if input.len() > limits.bytes { Err(InvalidHead::TooLarge) } else { Ok(None) };
    }
    let mut slots = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut more;
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let mut outcome = config.parse_response_with_uninit_headers(&mut parsed, input, &mut slots);
    if outcome == Err(httparse::Error::TooManyHeaders) && limits.count > MOST_HEADERS {
        more = limits.more();
        parsed = httparse::Response::new(&mut []);
        outcome = config.parse_response_with_uninit_headers(&mut parsed, input, &mut more);
    }
    let size = match outcome {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) => {
            scan.partial = true;
            return if input.len() > limits.bytes { Err(InvalidHead::TooLarge) } else { Ok(None) };
        }
        Err(httparse::Error::TooManyHeaders) => return Err(InvalidHead::TooMany),
        Err(_) => return Err(InvalidHead::Syntax),
    };
    if size > limits.bytes || parsed.headers.len() > limits.count {
        return Err(InvalidHead::TooLarge);
    }
    let base = input.as_ptr() as usize;
    let http11 = parsed.version == Some(1);
    let status = StatusCode::from_u16(parsed.code.unwrap_or(0)).map_err(|_| InvalidHead::Syntax)?;
    let count = parsed.headers.len();
    let (mut few, mut many) = ([Span::default(); FEW_HEADERS], Vec::new());
    let spans = spans(base, parsed.headers, &mut few, &mut many);
    let head = input.split_to(size).freeze();
    scan.reset();
    let mut fields = Fields::new(count, limits.names);
    if let Some(spelling) = &mut fields.spelling {
        spelling.note_reason(&head);
    }
    for span in spans {
        let (name, value) = ranges(*span);
        if head[name.clone()].eq_ignore_ascii_case(b"host") {
            continue;
        }
        fields.add(&head, name, value)?;
    }
    fields.drop_nominated();
    if to == AnswerTo::Connect && status.is_success() {
        // What it says about a body means nothing here (RFC 9110 9.3.6).
        let response =
            Response { status, headers: fields.headers, length: Length::Unknown, upgrade: Some(Text::EMPTY), spelling: fields.spelling };
        return Ok(Some((response, ResponseFraming { keep_alive: false, decoder: Decoder::UntilClose })));
    }
    let bodiless =
        to == AnswerTo::Head || status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    let (decoder, length) = match (fields.transfer_encoding, fields.content_length) {
        (Some(_), Some(_)) => return Err(InvalidHead::TransferEncoding),
        (_, length) if bodiless => (Decoder::Done, length.map_or(Length::None, Length::Known)),
        (Some(_), None) => (Decoder::chunked(), Length::Unknown),
        (None, Some(0)) => (Decoder::Done, Length::Known(0)),
        (None, Some(n)) => (Decoder::Length(n), Length::Known(n)),
        (None, None) => (Decoder::UntilClose, Length::Unknown),
    };
    let until_close = matches!(decoder, Decoder::UntilClose);
    let keep_alive = !fields.close && (http11 || fields.keep_alive) && !until_close && !switching;
    let upgrade = if switching { Some(fields.upgrade.take().unwrap_or(Text::EMPTY)) } else { None };
    let response = Response { status, headers: fields.headers, length, upgrade, spelling: fields.spelling };
    Ok(Some((response, ResponseFraming { keep_alive, decoder })))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits =
        HeadLimits { bytes: 60 * 1024, count: 100, accept_http_10: true, allow_chunked_length: false, names: NameCase::Lower };

    fn read(head: &str) -> Result<Request, InvalidHead> {
        let mut whole = BytesMut::from(head);
        let read = |input: &mut BytesMut, scan: &mut HeadScan| request(input, scan, LIMITS, false).map(|read| read.map(|(r, _)| r));
        let at_once = read(&mut whole, &mut HeadScan::default()).map(|request| request.expect("a whole head"));
        // Byte by byte it is the same, whichever reader it was.
        let (mut input, mut scan) = (BytesMut::new(), HeadScan::default());
        for byte in head.bytes() {
            input.extend_from_slice(&[byte]);
            match read(&mut input, &mut scan) {
                Ok(None) => {}
                Ok(Some(slowly)) => {
                    let at_once = at_once.as_ref().expect("what is understood in pieces is understood");
                    assert_eq!((slowly.headers, slowly.hints, slowly.path), (at_once.headers.clone(), at_once.hints, at_once.path.clone()));
                    break;
                }
                Err(e) => {
                    assert_eq!(at_once.as_ref().err(), Some(&e));
                    break;
                }
            }
        }
        at_once
    }

    #[test]
    fn what_came_is_noted_unless_it_was_for_this_hop_alone() {
        let head = |more: &str| {
            format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: 1\r\nX-Forwarded-For: 10.0.0.1\r\nx-envoy-max-retries: 1\r\n{more}\r\n")
        };
        let all = Hints { envoy: true, forwarded_for: true, request_id: true, ..Hints::default() };
        assert_eq!(read(&head("")).unwrap().hints, all);
        let request = read(&head("Connection: close, x-request-id\r\n")).unwrap();
        assert_eq!(request.hints, Hints { request_id: false, ..all });
        assert!(!request.headers.contains_key("x-request-id"));
    }

    #[test]
    fn connection_drops_what_it_names_and_must_not_name_where_a_request_came_from() {
        let head = |connection: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\nX-9: 9\r\n{connection}\r\n");
        for refused in [
            "Connection: X-Forwarded-For\r\n",
            "Connection: close, x-forwarded-host\r\n",
            "Connection: close\r\nConnection: x-forwarded-proto\r\n",
            "Connection: :path\r\n",
            "Connection: a,b,c,d,e\r\nConnection: f,g,h,i,x-9\r\n",
            "Connection: close,close,close,close,close,close,close,close,close,close\r\n",
        ] {
            assert_eq!(read(&head(refused)).unwrap_err(), InvalidHead::Connection, "{refused}");
        }
        let request = read(&head("Connection: a,b,c,d,e,,\r\nConnection: f, g, h, x-9\r\n")).unwrap();
        assert!(!request.headers.contains_key("x-9") && request.headers.contains_key("x-forwarded-for"));
    }

    #[test]
    fn what_an_upstream_calls_its_connections_goes_no_further_however_much_it_is() {
        let names: Vec<String> = (0..40).map(|n| format!("x-{n}")).collect();
        let fields: String = names.iter().map(|name| format!("{name}: 1\r\n")).collect();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{fields}x-kept: 1\r\nConnection: {}\r\n\r\n", names.join(", "));
        let read = response(&mut BytesMut::from(&*head), &mut HeadScan::default(), AnswerTo::Other, LIMITS);
        let (response, _) = read.unwrap().expect("a whole head");
        assert_eq!(response.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
    }

    #[test]
    fn more_headers_than_usual_are_read_as_well() {
        let many: String = (0..60).map(|n| format!("x-{n}: {n}\r\n")).collect();
        let request = read(&format!("GET /a HTTP/1.1\r\nhost: a\r\n{many}\r\n")).unwrap();
        assert_eq!((request.headers.len(), request.headers.get("x-59").map(|v| v.as_bytes())), (60, Some(&b"59"[..])));
        let more: String = (0..101).map(|n| format!("x-{n}: {n}\r\n")).collect();
        assert_eq!(read(&format!("GET /a HTTP/1.1\r\n{more}\r\n")).unwrap_err(), InvalidHead::TooMany);
    }

    #[test]
    fn a_length_beside_chunks_is_refused_or_dropped_as_configured() {
        let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(read(head).unwrap_err(), InvalidHead::TwoLengths);
        let limits = HeadLimits { allow_chunked_length: true, ..LIMITS };
        let read = |head: &str| request(&mut BytesMut::from(head), &mut HeadScan::default(), limits, false);
        let (request, framing) = read(head).unwrap().unwrap();
        assert_eq!((request.length, request.headers.len()), (Length::Unknown, 0));
        assert!(matches!(framing.decoder, Decoder::Chunked(_)));
        // An old proxy on the way reads it by its length.
        assert_eq!(read(&head.replace("HTTP/1.1", "HTTP/1.0")).err(), Some(InvalidHead::TransferEncoding));
    }
}
