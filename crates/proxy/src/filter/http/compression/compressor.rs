//! Compression of what callers say they can read (Envoy compressor filter).
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderValue, VARY};
use lateen_snapshot::compression::{Choice, Compressible, Compressor, CompressorPerRoute, Encoding, choose};
use lateen_snapshot::http::HttpFilter;
use lateen_telemetry::envoy_names::{compressor as names, compressor_choice as choices};
use lateen_telemetry::{Local, ResponseFlags};

use super::encode::{After, Encoder, next_piece};
use super::forbids_transform;
use crate::filter::http::body::{Convert, Halt, Piecewise};
use crate::filter::http::{has_body, route_of, switches};
use crate::http::Exchange;
use crate::http::headers::COMPRESSION_STATUS;
use crate::http::message::{Length, Response};
use crate::http::reply::Reply;

/// A compressor's counters.
pub(crate) struct Stats {
    pub(crate) request: Local,
    pub(crate) response: Local,
    pub(crate) choice: Local,
}

/// What the caller said it accepts, before anybody took it away.
struct Accepted(HeaderValue);

/// Which of the compressors is chosen: decided once, for all of them.
struct Decided(Choice);

/// [`Decided`] belongs to no filter.
const ALL_FILTERS: usize = usize::MAX;

fn by_route(exchange: &Exchange<'_>, index: usize) -> Option<Arc<CompressorPerRoute>> {
    route_of(exchange, index, |p| p.compressor.as_ref())
}

/// Whether responses are compressed, and whether upstreams are kept from it.
fn response_settings(config: &Compressor, route: Option<&CompressorPerRoute>) -> (bool, bool) {
    let (enabled, remove) = (config.response.enabled, config.response.remove_accept_encoding);
    match route {
        None => (enabled, remove),
        Some(CompressorPerRoute::Disabled) => (false, remove),
        Some(CompressorPerRoute::Overrides { response, remove_accept_encoding, .. }) => {
            (enabled || *response, remove_accept_encoding.unwrap_or(remove))
        }
    }
}

fn library(config: &Compressor, route: Option<&CompressorPerRoute>) -> Arc<Encoding> {
    match route {
        Some(CompressorPerRoute::Overrides { library: Some(library), .. }) => Arc::clone(library),
        _ => Arc::clone(&config.library),
    }
}

pub(in crate::filter::http) fn on_request(exchange: &mut Exchange<'_>, config: &Arc<Compressor>, stats: &Stats, index: usize) {
    if let Some(accepted) = joined(&exchange.request.headers) {
        exchange.bodies().note(index, Accepted(accepted));
    }
    let route = by_route(exchange, index);
    let (enabled, remove) = response_settings(config, route.as_deref());
    if enabled && remove {
        exchange.request.headers.remove(ACCEPT_ENCODING);
    }
    let request = &exchange.request;
    let compress = request.has_body()
        && request.length != Length::Known(0)
        && request.upgrade.is_none()
        && config.request.as_ref().is_some_and(|what| {
            is_long_enough(what, request.length, &stats.request)
                && what.types.allow(content_type(&request.headers))
                && !request.headers.contains_key(CONTENT_ENCODING)
        });
    if !compress {
        return stats.request.inc(names::NOT_COMPRESSED);
    }
    let library = library(config, route.as_deref());
    stats.request.inc(names::COMPRESSED);
    exchange.request.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(library.coding()));
    exchange.change_request_body(Piecewise::new(Compress::new(&library, stats.request.clone())), true);
}

/// All values of `accept-encoding` in one.
fn joined(map: &HeaderMap) -> Option<HeaderValue> {
    let mut values = map.get_all(ACCEPT_ENCODING).iter();
    let first = values.next()?;
    let mut rest = values.peekable();
    if rest.peek().is_none() {
        return Some(first.clone());
    }
    let all: Vec<&[u8]> = std::iter::once(first).chain(rest).map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&all.join(&b","[..])).ok()
}

fn content_type(map: &HeaderMap) -> Option<&str> {
    map.get(CONTENT_TYPE).map(|v| v.to_str().unwrap_or_default())
}

fn is_long_enough(what: &Compressible, length: Length, stats: &Local) -> bool {
    let enough = match length {
        Length::Known(n) => n >= what.min_content_length,
        Length::Unknown | Length::None | Length::Empty => true,
    };
    if !enough {
        stats.inc(names::CONTENT_LENGTH_TOO_SMALL);
    }
    enough
}

pub(in crate::filter::http) fn on_response(
    exchange: &mut Exchange<'_>,
    config: &Arc<Compressor>,
    stats: &Stats,
    index: usize,
    response: &mut Response,
) {
    let route = by_route(exchange, index);
    let (enabled, _) = response_settings(config, route.as_deref());
    let library = library(config, route.as_deref());
    let original = response.length;
    let verdict = judge(config, stats, enabled, response);
    let compressible = verdict == Ok(());
    let wanted = enabled && verdict != Err(Skip::TooSmall) && is_wanted(exchange, stats, index, response, library.coding());
    if compressible && wanted && has_body(exchange, response) {
        stats.response.inc(names::COMPRESSED);
        settle_etag(config, &mut response.headers);
        response.length = Length::Unknown;
        response.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(library.coding()));
        exchange.change_response_body(Piecewise::new(Compress::new(&library, stats.response.clone())));
        if config.response.status_header {
            let length = if let Length::Known(n) = original { n.to_string() } else { String::new() };
            tell(&mut response.headers, &library, &format!("Compressed;OriginalLength={length}"));
        }
    } else {
        stats.response.inc(names::NOT_COMPRESSED);
        if let (true, Err(skip)) = (config.response.status_header, verdict)
            && let Some(word) = skip.word()
        {
            tell(&mut response.headers, &library, word);
        }
    }
    if compressible {
        vary(&mut response.headers);
    }
}

/// Why a response is not compressed for anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    Disabled,
    TooSmall,
    ContentType,
    Etag,
    Status,
    /// It is encoded, or must not be touched.
    Other,
}

impl Skip {
    /// As `x-envoy-compression-status` calls it.
    fn word(self) -> Option<&'static str> {
        match self {
            Self::TooSmall => Some("ContentLengthTooSmall"),
            Self::ContentType => Some("ContentTypeNotAllowed"),
            Self::Etag => Some("EtagNotAllowed"),
            Self::Status => Some("StatusCodeNotAllowed"),
            Self::Disabled | Self::Other => None,
        }
    }
}

fn judge(config: &Compressor, stats: &Stats, enabled: bool, response: &Response) -> Result<(), Skip> {
    let (settings, headers) = (&config.response, &response.headers);
    if !enabled {
        return Err(Skip::Disabled);
    }
    if !is_long_enough(&settings.what, response.length, &stats.response) {
        return Err(Skip::TooSmall);
    }
    if response.upgrade.is_some() {
        return Err(Skip::Other);
    }
    if !settings.what.types.allow(content_type(headers)) {
        return Err(Skip::ContentType);
    }
    if forbids_transform(headers) {
        return Err(Skip::Other);
    }
    if settings.disable_on_etag && headers.contains_key(ETAG) {
        stats.choice.inc(choices::NOT_COMPRESSED_ETAG);
        return Err(Skip::Etag);
    }
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Skip::Other);
    }
    if settings.uncompressible_codes.contains(&response.status.as_u16()) {
        return Err(Skip::Status);
    }
    Ok(())
}

/// Whether the caller likes this coding best among those of the chain.
fn is_wanted(exchange: &mut Exchange<'_>, stats: &Stats, index: usize, response: &Response, coding: &str) -> bool {
    let Some(Accepted(accepted)) = exchange.noted(index) else {
        stats.choice.inc(choices::NO_ACCEPT_HEADER);
        return false;
    };
    let choice = match exchange.noted(ALL_FILTERS) {
        Some(Decided(choice)) => *choice,
        None => {
            let choice = choose(accepted.to_str().unwrap_or_default(), content_type(&response.headers), in_chain(exchange));
            exchange.bodies().note(ALL_FILTERS, Decided(choice));
            choice
        }
    };
    let mine = choice.coding() == Some(coding);
    stats.choice.inc(match choice {
        Choice::Coding(_) if mine => choices::HEADER_COMPRESSOR_USED,
        Choice::Coding(_) => choices::HEADER_COMPRESSOR_OVERSHADOWED,
        Choice::Identity => choices::HEADER_IDENTITY,
        Choice::Wildcard(_) => choices::HEADER_WILDCARD,
        Choice::NotValid => choices::HEADER_NOT_VALID,
    });
    mine
}

/// The compressors that this exchange meets, with their codings here.
fn in_chain<'a>(exchange: &'a Exchange<'_>) -> impl Iterator<Item = (&'a Compressor, &'static str)> {
    let off = switches::off(exchange);
    exchange.hcm.config.filters.iter().enumerate().filter_map(move |(index, filter)| match filter {
        HttpFilter::Compressor(config) if !off.has(index) => {
            Some((&**config, library(config, by_route(exchange, index).as_deref()).coding()))
        }
        _ => None,
    })
}

/// A strong validator would promise bytes that are no longer those.
fn settle_etag(config: &Compressor, map: &mut HeaderMap) {
    let Some(etag) = map.get(ETAG) else { return };
    let bytes = etag.as_bytes();
    if bytes.len() <= 2 || matches!(bytes, [b'w' | b'W', b'/', ..]) {
        return;
    }
    match HeaderValue::from_bytes(&[b"W/", bytes].concat()) {
        Ok(weak) if config.response.weaken_etag => drop(map.insert(ETAG, weak)),
        _ => drop(map.remove(ETAG)),
    }
}

/// Tells caches that other callers would get other bytes, if nobody has told them in these very letters (Envoy's way).
fn vary(map: &mut HeaderMap) {
    const NAME: &str = "Accept-Encoding";
    let before: Vec<&[u8]> = map.get_all(VARY).iter().map(HeaderValue::as_bytes).collect();
    let said = before.iter().flat_map(|v| v.split(|b| *b == b',')).any(|token| token.trim_ascii() == NAME.as_bytes());
    if said {
        return;
    }
    let value = match before.is_empty() {
        true => HeaderValue::from_static(NAME),
        false => match HeaderValue::from_bytes(&[&before.join(&b","[..])[..], b", ", NAME.as_bytes()].concat()) {
            Ok(value) => value,
            Err(_) => return,
        },
    };
    map.insert(VARY, value);
}

fn tell(map: &mut HeaderMap, library: &Encoding, word: &str) {
    crate::http::headers::append_list(map, COMPRESSION_STATUS, &format!("{};{word}", library.coding()));
}

/// A body on its way into a library.
struct Compress {
    /// `None` when the library failed.
    encoder: Option<Encoder>,
    input: Bytes,
    /// All is there, and the last bytes are still to come.
    ending: bool,
    finished: bool,
    stats: Local,
}

impl Compress {
    fn new(encoding: &Encoding, stats: Local) -> Self {
        Self { encoder: Encoder::new(encoding).ok(), input: Bytes::new(), ending: false, finished: false, stats }
    }
}

impl Convert for Compress {
    fn give(&mut self, data: Bytes) {
        self.stats.add(names::TOTAL_UNCOMPRESSED_BYTES, data.len() as u64);
        self.input = data;
    }

    fn take(&mut self) -> Result<Option<Bytes>, Halt> {
        loop {
            let after = match (self.input.len(), self.ending) {
                (0, false) => return Ok(None),
                (0, true) if self.finished => return Ok(None),
                (0, true) => After::Finish,
                (1..=super::PIECE, _) => After::Flush,
                _ => After::More,
            };
            let piece = next_piece(&mut self.input);
            let out = self.encoder.as_mut().and_then(|e| e.encode(&piece, after).ok()).ok_or_else(failed)?;
            self.finished = after == After::Finish;
            self.stats.add(names::TOTAL_COMPRESSED_BYTES, out.len() as u64);
            if !out.is_empty() {
                return Ok(Some(out));
            }
        }
    }

    fn end(&mut self, _: &mut Option<Box<HeaderMap>>) -> Result<(), Halt> {
        self.ending = true;
        Ok(())
    }
}

fn failed() -> Halt {
    Halt::Reply(Box::new(Reply::new(500, "", "compression_failed", ResponseFlags::NONE)))
}
