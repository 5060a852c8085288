//! Headers on their way into a message: those that speak of the connection are understood and taken out, the rest is kept.
use std::ops::Range;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use lateen_core::recycle::maps;
use lateen_snapshot::http::NameCase;

use super::InvalidHead;
use super::target::valid_host;
use crate::http::h1::names::{self, Meaning};
use crate::http::h1::spelling::Spelling;
use crate::http::message::Hints;
use crate::io::Text;

/// Headers on their way into a message.
pub(super) struct Fields {
    pub(super) headers: HeaderMap,
    pub(super) host: Option<Text>,
    pub(super) content_length: Option<u64>,
    pub(super) transfer_encoding: Option<bool>,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade_wanted: bool,
    pub(super) upgrade: Option<Text>,
    pub(super) expects_continue: bool,
    pub(super) accepts_trailers: bool,
    /// Other names in `Connection`: those headers belong to this hop.
    pub(super) nominated: Vec<HeaderName>,
    /// All that `Connection` says.
    pub(super) connection_tokens: u32,
    /// `Connection` names a pseudo header.
    pub(super) nominates_pseudo: bool,
    pub(super) hints: Hints,
    pub(super) spelling: Option<Box<Spelling>>,
}

impl Fields {
    pub(super) fn new(count: usize, names: NameCase) -> Self {
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

    pub(super) fn add(&mut self, head: &Bytes, name: Range<usize>, value: Range<usize>) -> Result<(), InvalidHead> {
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

    pub(super) fn drop_nominated(&mut self) {
        if self.nominated.is_empty() {
            return;
        }
        for name in std::mem::take(&mut self.nominated) {
            self.headers.remove(name);
        }
        self.hints = Hints::of(&self.headers);
    }
}

/// Digits only: `+5`, `0x5`, `5, 5` and the like are how requests are smuggled.
fn content_length(value: &[u8]) -> Result<u64, InvalidHead> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(InvalidHead::ContentLength);
    }
    Ok(value.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}
