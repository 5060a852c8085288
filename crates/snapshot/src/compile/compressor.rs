//! The compressor and decompressor filters with their libraries.
use std::collections::HashSet;
use std::sync::Arc;

use http::HeaderName;
use lateen_proto::any;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::compression as libraries;
use lateen_proto::envoy::extensions::filters::http::compressor::v3 as proto;
use lateen_proto::envoy::extensions::filters::http::decompressor::v3 as reverse;

use super::common::{open, runtime_flag};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::matcher::strings;
use crate::compression::{
    BrotliMode, CompressedResponses, Compressible, Compressor, CompressorPerRoute, ContentTypes, Decoding, DecompressedDirection,
    Decompressor, Encoding, GzipStrategy,
};

/// Smaller bodies hardly shrink.
const MIN_CONTENT_LENGTH: u32 = 30;

/// Envoy's list where nothing is said.
const CONTENT_TYPES: &[&str] = &[
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
    "application/grpc-web",
    "application/grpc-web+proto",
];

pub(crate) fn filter(value: proto::Compressor) -> Result<Compressor> {
    let proto::Compressor {
        content_length,
        content_type,
        disable_on_etag_header,
        remove_accept_encoding_header,
        runtime_enabled,
        compressor_library,
        request_direction_config,
        response_direction_config,
        choose_first,
    } = value;
    let (name, library) = encoding(compressor_library).within("compressor_library")?;
    let response_has_prefix = response_direction_config.is_some();
    let response = match response_direction_config {
        Some(config) => responses(config).within("response_direction_config")?,
        None => CompressedResponses {
            enabled: runtime_flag(runtime_enabled, true),
            what: compressible(content_length, content_type, Vec::new())?,
            disable_on_etag: disable_on_etag_header,
            weaken_etag: false,
            remove_accept_encoding: remove_accept_encoding_header,
            uncompressible_codes: Vec::new(),
            status_header: false,
        },
    };
    Ok(Compressor {
        request: request_direction_config.map(requests).transpose().within("request_direction_config")?.flatten(),
        response,
        choose_first,
        stat_prefix: format!("{name}.{}", stat_name(library.coding())).into(),
        response_has_prefix,
        library: Arc::new(library),
    })
}

fn stat_name(coding: &str) -> &str {
    if coding == "br" { "brotli" } else { coding }
}

fn responses(value: proto::compressor::ResponseDirectionConfig) -> Result<CompressedResponses> {
    let proto::compressor::ResponseDirectionConfig {
        common_config,
        disable_on_etag_header,
        weaken_etag_on_compress,
        remove_accept_encoding_header,
        uncompressible_response_codes,
        status_header_enabled,
    } = value;
    let mut codes = Vec::with_capacity(uncompressible_response_codes.len());
    for (index, code) in uncompressible_response_codes.into_iter().enumerate() {
        match u16::try_from(code) {
            Ok(code @ 200..600) => codes.push(code),
            _ => {
                return Err(Invalid::new(format!("{code} is not between 200 and 599"))).within_item("uncompressible_response_codes", index);
            }
        }
    }
    let (enabled, what) = direction(common_config.unwrap_or_default()).within("common_config")?;
    Ok(CompressedResponses {
        enabled,
        what,
        disable_on_etag: disable_on_etag_header && !weaken_etag_on_compress,
        weaken_etag: weaken_etag_on_compress,
        remove_accept_encoding: remove_accept_encoding_header,
        uncompressible_codes: codes,
        status_header: status_header_enabled,
    })
}

fn requests(value: proto::compressor::RequestDirectionConfig) -> Result<Option<Compressible>> {
    let proto::compressor::RequestDirectionConfig { common_config } = value;
    let (enabled, what) = direction(common_config.unwrap_or_default()).within("common_config")?;
    Ok(enabled.then_some(what))
}

fn direction(value: proto::compressor::CommonDirectionConfig) -> Result<(bool, Compressible)> {
    let proto::compressor::CommonDirectionConfig { enabled: flag, min_content_length, content_type, content_type_matcher } = value;
    Ok((runtime_flag(flag, true), compressible(min_content_length, content_type, content_type_matcher)?))
}

fn compressible(
    least: Option<u32>,
    listed: Vec<String>,
    matchers: Vec<lateen_proto::envoy::r#type::matcher::v3::StringMatcher>,
) -> Result<Compressible> {
    let types = if !matchers.is_empty() {
        ContentTypes::Matching(strings(matchers, "content_type_matcher")?)
    } else if listed.is_empty() {
        ContentTypes::Listed(CONTENT_TYPES.iter().map(|t| (*t).into()).collect())
    } else {
        ContentTypes::Listed(listed.into_iter().map(|t| t.to_ascii_lowercase().into()).collect::<HashSet<Box<str>>>())
    };
    // Envoy takes a zero for nothing said.
    let least = least.filter(|least| *least > 0).unwrap_or(MIN_CONTENT_LENGTH);
    Ok(Compressible { min_content_length: u64::from(least), types })
}

fn encoding(value: Option<core::TypedExtensionConfig>) -> Result<(String, Encoding)> {
    let Some(core::TypedExtensionConfig { name, typed_config }) = value else { return Err(Invalid::new("is missing")) };
    let Some(config) = typed_config else { return Err(Invalid::field("typed_config", "is missing")) };
    let library = if any::is::<libraries::gzip::compressor::v3::Gzip>(&config) {
        gzip(open(&config)?)
    } else if any::is::<libraries::brotli::compressor::v3::Brotli>(&config) {
        brotli(open(&config)?)
    } else if any::is::<libraries::zstd::compressor::v3::Zstd>(&config) {
        zstd(open(&config)?)
    } else {
        return Err(Invalid::field("typed_config", format!("{} is not supported; gzip, brotli and zstd are", config.type_url)));
    };
    Ok((name, library.within("typed_config")?))
}

fn gzip(value: libraries::gzip::compressor::v3::Gzip) -> Result<Encoding> {
    use libraries::gzip::compressor::v3::gzip::CompressionStrategy as Strategy;
    let libraries::gzip::compressor::v3::Gzip { memory_level, compression_level, compression_strategy, window_bits, chunk_size } = value;
    harmless!(chunk_size);
    let strategy = match Strategy::try_from(compression_strategy) {
        Ok(Strategy::DefaultStrategy) => GzipStrategy::Default,
        Ok(Strategy::Filtered) => GzipStrategy::Filtered,
        Ok(Strategy::HuffmanOnly) => GzipStrategy::HuffmanOnly,
        Ok(Strategy::Rle) => GzipStrategy::Rle,
        Ok(Strategy::Fixed) => GzipStrategy::Fixed,
        Err(_) => return Err(Invalid::field("compression_strategy", format!("{compression_strategy} is not known"))),
    };
    let level = match compression_level {
        0 => 6,
        level @ 1..=9 => level as u8,
        other => return Err(Invalid::field("compression_level", format!("{other} is not known"))),
    };
    Ok(Encoding::Gzip {
        level,
        window_bits: within(window_bits, 12, 9..=15, "window_bits")?,
        memory_level: within(memory_level, 5, 1..=9, "memory_level")?,
        strategy,
    })
}

fn brotli(value: libraries::brotli::compressor::v3::Brotli) -> Result<Encoding> {
    use libraries::brotli::compressor::v3::brotli::EncoderMode as Mode;
    let libraries::brotli::compressor::v3::Brotli {
        quality,
        encoder_mode,
        window_bits,
        input_block_bits,
        chunk_size,
        disable_literal_context_modeling,
    } = value;
    harmless!(chunk_size);
    let mode = match Mode::try_from(encoder_mode) {
        Ok(Mode::Default | Mode::Generic) => BrotliMode::Generic,
        Ok(Mode::Text) => BrotliMode::Text,
        Ok(Mode::Font) => BrotliMode::Font,
        Err(_) => return Err(Invalid::field("encoder_mode", format!("{encoder_mode} is not known"))),
    };
    let window_bits = within(window_bits, 18, 10..=24, "window_bits")?;
    Ok(Encoding::Brotli {
        quality: within(quality, 3, 0..=11, "quality")?,
        window_bits,
        // Each piece is flushed, so a larger block than the window would only take memory.
        block_bits: within(input_block_bits, 24, 16..=24, "input_block_bits")?.min(window_bits.max(16)),
        mode,
        literal_context_modeling: !disable_literal_context_modeling,
    })
}

fn zstd(value: libraries::zstd::compressor::v3::Zstd) -> Result<Encoding> {
    use libraries::zstd::compressor::v3::zstd::Strategy;
    let libraries::zstd::compressor::v3::Zstd { compression_level, enable_checksum, strategy, dictionary, chunk_size } = value;
    harmless!(chunk_size);
    refuse!(dictionary);
    if Strategy::try_from(strategy).is_err() {
        return Err(Invalid::field("strategy", format!("{strategy} is not known")));
    }
    let level = match compression_level.unwrap_or(0) {
        0 => 3,
        level => level.min(22) as u8,
    };
    Ok(Encoding::Zstd { level, checksum: enable_checksum, strategy: strategy as u8 })
}

fn within(value: Option<u32>, default: u8, range: std::ops::RangeInclusive<u8>, field: &str) -> Result<u8> {
    let Some(value) = value else { return Ok(default) };
    match u8::try_from(value) {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(Invalid::field(field, format!("{value} is not between {} and {}", range.start(), range.end()))),
    }
}

pub(crate) fn per_route(value: proto::CompressorPerRoute) -> Result<CompressorPerRoute> {
    use proto::compressor_per_route::Override;
    match value.r#override {
        Some(Override::Disabled(true)) => Ok(CompressorPerRoute::Disabled),
        Some(Override::Disabled(false)) => Err(Invalid::field("disabled", "can only be true")),
        Some(Override::Overrides(overrides)) => {
            let proto::CompressorOverrides { response_direction_config, compressor_library } = overrides;
            let library = compressor_library.map(|l| encoding(Some(l))).transpose().within("compressor_library").within("overrides")?;
            Ok(CompressorPerRoute::Overrides {
                response: response_direction_config.is_some(),
                remove_accept_encoding: response_direction_config.and_then(|c| {
                    let proto::ResponseDirectionOverrides { remove_accept_encoding_header } = c;
                    remove_accept_encoding_header
                }),
                library: library.map(|(_, library)| Arc::new(library)),
            })
        }
        None => Err(Invalid::new("needs disabled or overrides")),
    }
}

pub(crate) fn decompressor(value: reverse::Decompressor) -> Result<Decompressor> {
    let reverse::Decompressor { decompressor_library, request_direction_config, response_direction_config } = value;
    let (name, library) = decoding(decompressor_library).within("decompressor_library")?;
    let reverse::decompressor::RequestDirectionConfig { common_config, advertise_accept_encoding } =
        request_direction_config.unwrap_or_default();
    let request = decompressed(common_config.unwrap_or_default());
    let reverse::decompressor::ResponseDirectionConfig { common_config } = response_direction_config.unwrap_or_default();
    let trailer = |what: &str| {
        let text = format!("x-envoy-decompressor-{name}-{what}-bytes").to_ascii_lowercase();
        HeaderName::try_from(text).map_err(|_| Invalid::field("name", "makes no header name")).within("decompressor_library")
    };
    Ok(Decompressor {
        request,
        response: decompressed(common_config.unwrap_or_default()),
        advertise: advertise_accept_encoding.unwrap_or(true),
        compressed_trailer: trailer("compressed")?,
        uncompressed_trailer: trailer("uncompressed")?,
        stat_prefix: format!("{name}.{}", stat_name(library.coding())).into(),
        library,
    })
}

fn decompressed(value: reverse::decompressor::CommonDirectionConfig) -> DecompressedDirection {
    let reverse::decompressor::CommonDirectionConfig { enabled: flag, ignore_no_transform_header } = value;
    DecompressedDirection { enabled: runtime_flag(flag, true), ignore_no_transform: ignore_no_transform_header }
}

fn decoding(value: Option<core::TypedExtensionConfig>) -> Result<(String, Decoding)> {
    let Some(core::TypedExtensionConfig { name, typed_config }) = value else { return Err(Invalid::new("is missing")) };
    let Some(config) = typed_config else { return Err(Invalid::field("typed_config", "is missing")) };
    let library = if any::is::<libraries::gzip::decompressor::v3::Gzip>(&config) {
        gunzip(open(&config)?)
    } else if any::is::<libraries::brotli::decompressor::v3::Brotli>(&config) {
        let libraries::brotli::decompressor::v3::Brotli { disable_ring_buffer_reallocation, chunk_size } = open(&config)?;
        harmless!(disable_ring_buffer_reallocation, chunk_size);
        Ok(Decoding::Brotli)
    } else if any::is::<libraries::zstd::decompressor::v3::Zstd>(&config) {
        unzstd(open(&config)?)
    } else {
        return Err(Invalid::field("typed_config", format!("{} is not supported; gzip, brotli and zstd are", config.type_url)));
    };
    Ok((name, library.within("typed_config")?))
}

fn gunzip(value: libraries::gzip::decompressor::v3::Gzip) -> Result<Decoding> {
    let libraries::gzip::decompressor::v3::Gzip { window_bits, chunk_size, max_inflate_ratio } = value;
    harmless!(chunk_size);
    let max_ratio = match max_inflate_ratio.unwrap_or(100) {
        ratio @ 1..=1032 => ratio,
        other => return Err(Invalid::field("max_inflate_ratio", format!("{other} is not between 1 and 1032"))),
    };
    Ok(Decoding::Gzip { window_bits: within(window_bits, 15, 9..=15, "window_bits")?, max_ratio })
}

fn unzstd(value: libraries::zstd::decompressor::v3::Zstd) -> Result<Decoding> {
    let libraries::zstd::decompressor::v3::Zstd { dictionaries, chunk_size } = value;
    harmless!(chunk_size);
    refuse!(dictionaries);
    Ok(Decoding::Zstd)
}
