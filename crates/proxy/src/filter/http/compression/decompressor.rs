//! Decompression of what comes compressed (Envoy decompressor filter).
use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue};
use lateen_snapshot::compression::{DecompressedDirection, Decompressor, advertised};
use lateen_telemetry::envoy_names::decompressor as names;
use lateen_telemetry::{Local, ResponseFlags, details};

use super::decode::{Decoder, Nonsense};
use super::{PIECE, forbids_transform};
use crate::filter::http::body::{Convert, Halt, Piecewise};
use crate::filter::http::has_body;
use crate::http::Exchange;
use crate::http::message::{Length, Response};
use crate::http::reply::Reply;

/// A decompressor's counters.
pub(crate) struct Stats {
    pub(crate) request: Local,
    pub(crate) response: Local,
}

pub(in crate::filter::http) fn on_request(exchange: &mut Exchange<'_>, config: &Arc<Decompressor>, stats: &Stats) {
    let request = &mut exchange.request;
    if config.response.enabled && config.advertise {
        let before: Vec<&str> = request.headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).collect();
        if let Ok(value) = HeaderValue::try_from(advertised(&before.join(","), config.library.coding())) {
            request.headers.insert(ACCEPT_ENCODING, value);
        }
    }
    if !request.has_body() || request.length == Length::Known(0) {
        return;
    }
    if begin(config, config.request, &stats.request, &mut request.headers) {
        let stage = Piecewise::new(Decompress::new(config, stats.request.clone(), 400));
        exchange.change_request_body(stage, true);
    }
}

pub(in crate::filter::http) fn on_response(
    exchange: &mut Exchange<'_>,
    config: &Arc<Decompressor>,
    stats: &Stats,
    response: &mut Response,
) {
    if has_body(exchange, response) && begin(config, config.response, &stats.response, &mut response.headers) {
        response.length = Length::Unknown;
        exchange.change_response_body(Piecewise::new(Decompress::new(config, stats.response.clone(), 502)));
    }
}

/// Whether a message's body is ours to decompress; its head then says that it no longer is.
fn begin(config: &Decompressor, direction: DecompressedDirection, stats: &Local, map: &mut HeaderMap) -> bool {
    let untouched = !direction.enabled || (forbids_transform(map) && !direction.ignore_no_transform);
    let rest = if untouched { None } else { without_first(map, config.library.coding()) };
    let Some(rest) = rest else {
        stats.inc(names::NOT_DECOMPRESSED);
        return false;
    };
    stats.inc(names::DECOMPRESSED);
    match rest {
        Some(rest) => drop(map.insert(CONTENT_ENCODING, rest)),
        None => drop(map.remove(CONTENT_ENCODING)),
    }
    true
}

/// What `content-encoding` says but for its first coding, where that is `coding`.
fn without_first(map: &HeaderMap, coding: &str) -> Option<Option<HeaderValue>> {
    let values: Vec<&str> = map.get_all(CONTENT_ENCODING).iter().filter_map(|v| v.to_str().ok()).collect();
    let all = values.join(",");
    let (first, rest) = match all.split_once(',') {
        Some((first, rest)) => (first, Some(rest.trim())),
        None => (all.as_str(), None),
    };
    if !first.trim().eq_ignore_ascii_case(coding) {
        return None;
    }
    Some(rest.and_then(|rest| HeaderValue::from_str(rest).ok()))
}

thread_local! {
    /// Where output goes first: what is held of it later is no larger than it is.
    static OUTPUT: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

/// A body on its way out of a library.
struct Decompress {
    config: Arc<Decompressor>,
    /// `None` when the library would not start.
    decoder: Option<Decoder>,
    input: Bytes,
    /// The last output filled its buffer: there may be more without more input.
    full: bool,
    read: u64,
    written: u64,
    stats: Local,
    /// What a body that makes no sense is answered with.
    status: u16,
}

impl Decompress {
    fn new(config: &Arc<Decompressor>, stats: Local, status: u16) -> Self {
        let decoder = Decoder::new(config.library).ok();
        Self { config: Arc::clone(config), decoder, input: Bytes::new(), full: false, read: 0, written: 0, stats, status }
    }

    /// The next output, by way of a buffer.
    fn take_through(&mut self, out: &mut [u8]) -> Result<Option<Bytes>, Halt> {
        loop {
            let Some(decoder) = &mut self.decoder else { return Err(self.refuse(details::DECOMPRESSION_FAILED)) };
            let step = match decoder.decode(&self.input, out) {
                Ok(step) => step,
                Err(Nonsense) => return Err(self.refuse(details::DECOMPRESSION_FAILED)),
            };
            self.input = self.input.split_off(step.read.min(self.input.len()));
            self.written += step.written as u64;
            self.full = step.written == out.len();
            if self.written > self.read.saturating_mul(self.config.library.max_ratio()) {
                return Err(self.refuse(details::DECOMPRESSION_RATIO_EXCEEDED));
            }
            if step.written > 0 {
                self.stats.add(names::TOTAL_UNCOMPRESSED_BYTES, step.written as u64);
                return Ok(out.get(..step.written).map(Bytes::copy_from_slice));
            }
            if step.read == 0 || self.input.is_empty() {
                // What a library does not take now it would never take.
                return if self.input.is_empty() { Ok(None) } else { Err(self.refuse(details::DECOMPRESSION_FAILED)) };
            }
        }
    }

    fn refuse(&self, details: &'static str) -> Halt {
        let body = if self.status == 400 { "Bad Request" } else { "" };
        Halt::Reply(Box::new(Reply::new(self.status, body, details, ResponseFlags::NONE)))
    }
}

impl Convert for Decompress {
    fn give(&mut self, data: Bytes) {
        self.stats.add(names::TOTAL_COMPRESSED_BYTES, data.len() as u64);
        self.read += data.len() as u64;
        self.input = data;
    }

    fn take(&mut self) -> Result<Option<Bytes>, Halt> {
        if self.input.is_empty() && !self.full {
            return Ok(None);
        }
        OUTPUT.with_borrow_mut(|out| self.take_through(out))
    }

    fn end(&mut self, trailers: &mut Option<Box<HeaderMap>>) -> Result<(), Halt> {
        if self.decoder.as_ref().is_none_or(|d| !d.is_complete()) {
            return Err(self.refuse(details::DECOMPRESSION_FAILED));
        }
        let map = trailers.get_or_insert_default();
        map.append(&self.config.compressed_trailer, self.read.into());
        map.append(&self.config.uncompressed_trailer, self.written.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode::{After, Encoder};
    use super::*;
    use lateen_snapshot::compression::{Decoding, Encoding, GzipStrategy};
    use lateen_telemetry::{BlockName, Registry};

    #[test]
    fn a_small_piece_keeps_no_more_than_it_is() {
        let (registry, shards) = Registry::new(1, Default::default());
        let stats = shards[0].local(&registry.block(names::DEFS, BlockName::plain("d")));
        let on = DecompressedDirection { enabled: true, ignore_no_transform: false };
        let config = Arc::new(Decompressor {
            library: Decoding::Gzip { window_bits: 15, max_ratio: 100 },
            request: on,
            response: on,
            advertise: false,
            stat_prefix: "d".into(),
            compressed_trailer: http::HeaderName::from_static("compressed"),
            uncompressed_trailer: http::HeaderName::from_static("uncompressed"),
        });
        let gzip = Encoding::Gzip { level: 1, window_bits: 15, memory_level: 8, strategy: GzipStrategy::Default };
        let mut encoder = Encoder::new(&gzip).ok().unwrap();
        let mut decompress = Decompress::new(&config, stats, 400);
        for _ in 0..3 {
            decompress.give(encoder.encode(b"a", After::Flush).ok().unwrap());
            let piece = decompress.take().ok().flatten().unwrap();
            assert_eq!(piece, "a");
            assert!(piece.try_into_mut().unwrap().capacity() < 16);
            assert!(decompress.take().ok().unwrap().is_none());
        }
    }
}
