//! Requests and responses between the codecs: parsed once, the same for every HTTP version.
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use super::h1::Spelling;
use crate::io::Text;

/// The version a message came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    Http10,
    Http11,
    Http2,
}

impl Version {
    /// Envoy's `%PROTOCOL%`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// How long a body is, as far as the head tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    None,
    /// A request says that it is none.
    Empty,
    Known(u64),
    /// Chunked, until close, or an HTTP/2 stream.
    Unknown,
}

impl Length {
    /// What `content-length` says.
    pub(crate) fn said(self) -> Option<u64> {
        match self {
            Self::Known(length) => Some(length),
            Self::Empty => Some(0),
            Self::None | Self::Unknown => None,
        }
    }
}

/// What came, so that most requests skip most sanitising.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    /// Some header starts with `x-envoy-`, other than those that every sidecar adds: the attempt count and the next two.
    pub(crate) envoy: bool,
    /// `x-envoy-peer-metadata` or its `-id`.
    pub(crate) peer: bool,
    /// `x-forwarded-for`.
    pub(crate) forwarded_for: bool,
    /// `x-forwarded-proto`.
    pub(crate) forwarded_proto: bool,
    /// `x-forwarded-client-cert`.
    pub(crate) client_cert: bool,
    /// `x-request-id`.
    pub(crate) request_id: bool,
}

impl Hints {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut hints = Self::default();
        headers.keys().for_each(|name| hints.note(name.as_str().as_bytes()));
        hints
    }

    pub(crate) fn note(&mut self, name: &[u8]) {
        if let [b'x', b'-', rest @ ..] = name {
            match rest {
                b"forwarded-for" => self.forwarded_for = true,
                b"forwarded-proto" => self.forwarded_proto = true,
                b"forwarded-client-cert" => self.client_cert = true,
                b"request-id" => self.request_id = true,
                b"envoy-attempt-count" => {}
                b"envoy-peer-metadata" | b"envoy-peer-metadata-id" => self.peer = true,
                _ => self.envoy |= rest.starts_with(b"envoy-"),
            }
        }
    }
}

/// A request's head. `host`, `connection`, `transfer-encoding` and their kin are not among the headers:
/// they belong to one hop, and what they said is in the other fields.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) authority: Text,
    /// `http` or `https`, from the wire or the connection.
    pub(crate) scheme: &'static str,
    /// The wire named the scheme.
    pub(crate) scheme_given: bool,
    /// With query; empty for CONNECT.
    pub(crate) path: Text,
    pub(crate) headers: HeaderMap,
    pub(crate) version: Version,
    pub(crate) length: Length,
    /// The protocol to upgrade to, in lower case; `connect` for a CONNECT. The headers hold it as it was sent.
    pub(crate) upgrade: Option<Text>,
    /// The caller waits for `100 Continue`.
    pub(crate) expects_continue: bool,
    /// `te: trailers`.
    pub(crate) accepts_trailers: bool,
    pub(crate) hints: Hints,
    /// Size of the head on the wire.
    pub(crate) head_bytes: u64,
    /// How its names were written, where that is kept.
    pub(crate) spelling: Option<Box<Spelling>>,
}

impl Request {
    /// A GET without headers of its own.
    pub(crate) fn get(authority: Text, path: Text) -> Self {
        Self {
            method: Method::GET,
            authority,
            scheme: "http",
            scheme_given: false,
            path,
            headers: HeaderMap::new(),
            version: Version::Http11,
            length: Length::None,
            upgrade: None,
            expects_continue: false,
            accepts_trailers: false,
            hints: Hints::default(),
            head_bytes: 0,
            spelling: None,
        }
    }

    /// Stands for bytes of which no request could be read: for counters and a log line.
    pub(crate) fn unread() -> Self {
        Self::get(Text::EMPTY, Text::EMPTY)
    }

    /// Whether there is anything to tell of it: every request has a path or an authority.
    pub(crate) fn was_read(&self) -> bool {
        !self.path.is_empty() || !self.authority.is_empty()
    }

    pub(crate) fn is_grpc(&self) -> bool {
        is_grpc(&self.headers)
    }

    /// Whether bytes for the named host follow, rather than another protocol (RFC 9110 9.3.6).
    pub(crate) fn is_connect(&self) -> bool {
        self.method == Method::CONNECT
    }

    pub(crate) fn has_body(&self) -> bool {
        !matches!(self.length, Length::None | Length::Empty)
    }
}

/// `application/grpc` and `application/grpc+x`, but not `application/grpc-web`.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(http::header::CONTENT_TYPE) else { return false };
    kind.as_bytes().strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || matches!(rest[0], b'+' | b';'))
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) length: Length,
    /// The peer switched to this protocol: bytes follow in both directions.
    pub(crate) upgrade: Option<Text>,
    /// How its names were written, where that is kept.
    pub(crate) spelling: Option<Box<Spelling>>,
}

impl Response {
    pub(crate) fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), length: Length::None, upgrade: None, spelling: None }
    }
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    Data(Bytes),
    /// Ends the body.
    Trailers(Box<HeaderMap>),
}
