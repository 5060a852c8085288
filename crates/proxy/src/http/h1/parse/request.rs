//! The head of a request.
use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::Method;
use http::header::{self, HeaderName, HeaderValue};

use super::fields::Fields;
use super::scan::{HeadScan, skip_blank_lines};
use super::spans::{self, FEW_HEADERS, Span};
use super::{HeadLimits, InvalidHead, MOST_HEADERS};
use crate::http::h1::Decoder;
use crate::http::message::{Length, Request, Version};
use crate::io::Text;

/// So many tokens in `Connection` are too many (as in Envoy).
const TOO_MANY_TOKENS: u32 = 10;

/// What a request's head says about its connection.
pub(crate) struct RequestFraming {
    pub(crate) keep_alive: bool,
    pub(crate) decoder: Decoder,
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
        return limits.more_may_come(input);
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
            scan.begun();
            return limits.more_may_come(input);
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
    let spans = spans::spans(base, parsed.headers, &mut few, &mut many);
    let head = input.split_to(size).freeze();
    scan.reset();
    let mut fields = Fields::new(count, limits.names);
    for span in spans {
        let (name, value) = spans::ranges(*span);
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

/// Methods are case-sensitive, and all registered ones are upper case: `get` is no method.
fn method(text: &str) -> Result<Method, InvalidHead> {
    if text.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err(InvalidHead::Syntax);
    }
    Method::from_bytes(text.as_bytes()).map_err(|_| InvalidHead::Syntax)
}

impl Fields {
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
            scheme_given: scheme.is_some(),
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
}

/// Whether a header tells where a request came from. A caller that has it dropped hides what the proxy in front wrote, which
/// knows nothing of that wish when it is of HTTP/1.0 or passes `Connection` on.
fn is_of_the_origin(name: &HeaderName) -> bool {
    matches!(name.as_str(), "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto")
}
