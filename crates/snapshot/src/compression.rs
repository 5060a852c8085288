//! Compression of bodies, compiled: which library, which messages, and what callers accept.
use std::collections::HashSet;
use std::sync::Arc;

use crate::matcher::StringMatcher;

/// Envoy `Compressor` filter.
#[derive(Debug)]
pub struct Compressor {
    pub library: Arc<Encoding>,
    /// `None`: requests are not compressed.
    pub request: Option<Compressible>,
    pub response: CompressedResponses,
    /// Preferred where a caller likes several equally.
    pub choose_first: bool,
    /// `name.gzip`, as statistics begin.
    pub stat_prefix: Box<str>,
    /// Statistics of responses go by their direction.
    pub response_has_prefix: bool,
}

/// What responses are compressed.
#[derive(Debug)]
pub struct CompressedResponses {
    pub enabled: bool,
    pub what: Compressible,
    pub disable_on_etag: bool,
    pub weaken_etag: bool,
    /// Upstreams are not to compress themselves.
    pub remove_accept_encoding: bool,
    pub uncompressible_codes: Vec<u16>,
    /// The answer tells what became of it.
    pub status_header: bool,
}

/// Which messages are worth it.
#[derive(Debug)]
pub struct Compressible {
    pub min_content_length: u64,
    pub types: ContentTypes,
}

#[derive(Debug)]
pub enum ContentTypes {
    /// In lower case.
    Listed(HashSet<Box<str>>),
    Matching(Vec<StringMatcher>),
}

impl ContentTypes {
    /// Whether bodies of this `content-type` are meant; one that says none is.
    pub fn allow(&self, value: Option<&str>) -> bool {
        let Some(value) = value else { return true };
        let kind = value.split(';').next().unwrap_or_default().trim();
        match self {
            Self::Listed(set) => set.contains(kind.to_ascii_lowercase().as_str()),
            Self::Matching(all) => all.iter().any(|m| m.matches(kind)),
        }
    }
}

/// A compression library with its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    Gzip { level: u8, window_bits: u8, memory_level: u8, strategy: GzipStrategy },
    Brotli { quality: u8, window_bits: u8, block_bits: u8, mode: BrotliMode, literal_context_modeling: bool },
    Zstd { level: u8, checksum: bool, strategy: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GzipStrategy {
    Default,
    Filtered,
    HuffmanOnly,
    Rle,
    Fixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrotliMode {
    Generic,
    Text,
    Font,
}

impl Encoding {
    /// As it is called in `content-encoding`.
    pub fn coding(&self) -> &'static str {
        match self {
            Self::Gzip { .. } => "gzip",
            Self::Brotli { .. } => "br",
            Self::Zstd { .. } => "zstd",
        }
    }
}

/// A route's word on compression.
#[derive(Debug)]
pub enum CompressorPerRoute {
    Disabled,
    Overrides {
        /// Responses are compressed, whatever the listener says.
        response: bool,
        remove_accept_encoding: Option<bool>,
        library: Option<Arc<Encoding>>,
    },
}

/// Envoy `Decompressor` filter.
#[derive(Debug)]
pub struct Decompressor {
    pub library: Decoding,
    pub request: DecompressedDirection,
    pub response: DecompressedDirection,
    /// Upstreams are told that we can decompress.
    pub advertise: bool,
    /// `name.gzip`, as statistics begin.
    pub stat_prefix: Box<str>,
    /// Trailers that tell how much there was, in and out.
    pub compressed_trailer: ::http::HeaderName,
    pub uncompressed_trailer: ::http::HeaderName,
}

#[derive(Clone, Copy, Debug)]
pub struct DecompressedDirection {
    pub enabled: bool,
    pub ignore_no_transform: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoding {
    /// `max_ratio`: how many times as long as the input the output may be.
    Gzip {
        window_bits: u8,
        max_ratio: u32,
    },
    Brotli,
    Zstd,
}

impl Decoding {
    /// As it is called in `content-encoding`.
    pub fn coding(&self) -> &'static str {
        match self {
            Self::Gzip { .. } => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// How many times as long as the input the output may be.
    pub fn max_ratio(&self) -> u64 {
        match self {
            Self::Gzip { max_ratio, .. } => u64::from(*max_ratio),
            Self::Brotli | Self::Zstd => 100,
        }
    }
}

/// What a caller's `accept-encoding` comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// One of ours.
    Coding(&'static str),
    /// Anything, and so the first of ours.
    Wildcard(&'static str),
    Identity,
    /// None of ours, or none at all.
    NotValid,
}

impl Choice {
    pub fn coding(self) -> Option<&'static str> {
        match self {
            Self::Coding(coding) | Self::Wildcard(coding) => Some(coding),
            Self::Identity | Self::NotValid => None,
        }
    }
}

/// Picks one of the compressors of a chain, with their codings, for a response (Envoy `CompressorFilter::chooseEncoding`).
pub fn choose<'a>(accept: &str, content_type: Option<&str>, chain: impl Iterator<Item = (&'a Compressor, &'static str)>) -> Choice {
    // Two of the same coding count once, with the first one's settings.
    let mut ours: Vec<(&'static str, bool)> = Vec::new();
    for (compressor, coding) in chain.filter(|(c, _)| c.response.what.types.allow(content_type)) {
        if ours.iter().all(|(known, _)| *known != coding) {
            ours.push((coding, compressor.choose_first));
        }
    }
    let theirs: Vec<(&str, f32)> = accept.split(',').filter(|token| !token.is_empty()).filter_map(weighted).collect();
    ours.retain(|(coding, _)| !theirs.iter().any(|(name, q)| name == coding && *q == 0.0));
    if ours.is_empty() {
        return Choice::NotValid;
    }
    let (mut best, mut most) = ("identity", 0.0);
    for (name, q) in theirs {
        let mine = ours.iter().find(|(coding, _)| *coding == name);
        if mine.is_none() && name != "identity" && name != "*" {
            continue;
        }
        if q > most || (q == most && mine.is_some_and(|(_, first)| *first)) {
            (best, most) = (name, q);
        }
    }
    match (most, best, ours.first(), ours.iter().find(|(coding, _)| *coding == best)) {
        (0.0, ..) => Choice::NotValid,
        (_, "*", Some((first, _)), _) => Choice::Wildcard(first),
        (_, _, _, Some((coding, _))) => Choice::Coding(coding),
        _ => Choice::Identity,
    }
}

/// A coding with its weight; `None` where the weight is no number.
fn weighted(token: &str) -> Option<(&str, f32)> {
    let Some((name, parameter)) = token.split_once(';') else { return Some((token.trim(), 1.0)) };
    let q = match parameter.split_once('=') {
        Some((key, value)) if key.trim().eq_ignore_ascii_case("q") => value.trim().parse().ok()?,
        _ => 1.0,
    };
    Some((name.trim(), q))
}

/// The value of `accept-encoding` with `coding` among them once, and without a weight.
pub fn advertised(accept: &str, coding: &str) -> String {
    let others = accept.split(',').map(str::trim).filter(|token| !token.is_empty());
    let others = others.filter(|token| token.split(';').next() != Some(coding));
    others.chain([coding]).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressor(library: Encoding, types: &[&str], choose_first: bool) -> Compressor {
        let types = ContentTypes::Listed(types.iter().map(|t| (*t).into()).collect());
        let response = CompressedResponses {
            enabled: true,
            what: Compressible { min_content_length: 30, types },
            disable_on_etag: false,
            weaken_etag: false,
            remove_accept_encoding: false,
            uncompressible_codes: Vec::new(),
            status_header: false,
        };
        let library = Arc::new(library);
        Compressor { library, request: None, response, choose_first, stat_prefix: "x".into(), response_has_prefix: true }
    }

    fn gzip(choose_first: bool) -> Compressor {
        let library = Encoding::Gzip { level: 6, window_bits: 12, memory_level: 5, strategy: GzipStrategy::Default };
        compressor(library, &["text/html", "text/plain"], choose_first)
    }

    fn brotli(choose_first: bool) -> Compressor {
        let library =
            Encoding::Brotli { quality: 3, window_bits: 18, block_bits: 16, mode: BrotliMode::Generic, literal_context_modeling: true };
        compressor(library, &["text/html"], choose_first)
    }

    fn codings(chain: &[Compressor]) -> impl Iterator<Item = (&Compressor, &'static str)> {
        chain.iter().map(|c| (c, c.library.coding()))
    }

    #[test]
    fn the_coding_with_the_highest_weight_is_chosen() {
        let chain = [gzip(false), brotli(false)];
        let pick = |accept| choose(accept, Some("text/html; charset=utf-8"), codings(&chain));
        for (accept, choice) in [
            ("gzip", Choice::Coding("gzip")),
            ("br", Choice::Coding("br")),
            ("gzip, br", Choice::Coding("gzip")),
            ("gzip;q=0.5, br", Choice::Coding("br")),
            ("gzip ; Q = 0.5 ,br;q=0.4", Choice::Coding("gzip")),
            ("deflate, gzip;q=0.1", Choice::Coding("gzip")),
            ("gzip;q=0", Choice::NotValid),
            ("gzip;q=0, *", Choice::Wildcard("br")),
            ("*;q=0, gzip", Choice::Coding("gzip")),
            ("*", Choice::Wildcard("gzip")),
            ("*;q=0", Choice::NotValid),
            ("identity", Choice::Identity),
            ("identity;q=0.5, gzip;q=0.4", Choice::Identity),
            ("identity, gzip", Choice::Identity),
            ("deflate", Choice::NotValid),
            ("", Choice::NotValid),
            ("gzip;q=high", Choice::NotValid),
            ("gzip;q=high, br;q=0.2", Choice::Coding("br")),
            ("GZIP", Choice::NotValid),
        ] {
            assert_eq!(pick(accept), choice, "{accept}");
        }
    }

    #[test]
    fn a_compressor_that_does_not_mean_the_content_is_left_out_and_a_preferred_one_wins_a_tie() {
        let chain = [gzip(false), brotli(false)];
        assert_eq!(choose("br, gzip;q=0.5", Some("text/plain"), codings(&chain)), Choice::Coding("gzip"));
        assert_eq!(choose("br, gzip;q=0.5", None, codings(&chain)), Choice::Coding("br"));
        let chain = [gzip(false), brotli(true)];
        assert_eq!(choose("gzip, br", Some("text/html"), codings(&chain)), Choice::Coding("br"));
        assert_eq!(choose("gzip, br;q=0.9", Some("text/html"), codings(&chain)), Choice::Coding("gzip"));
    }

    #[test]
    fn what_we_can_decompress_is_said_once_and_without_a_weight() {
        for (accept, told) in
            [("", "gzip"), ("br", "br,gzip"), ("gzip;q=0.3, br", "br,gzip"), ("gzip", "gzip"), ("gzipped", "gzipped,gzip")]
        {
            assert_eq!(advertised(accept, "gzip"), told);
        }
    }
}
