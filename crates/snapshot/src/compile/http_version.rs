//! What a connection manager or a cluster says about HTTP/1 and HTTP/2 connections.
use std::time::Duration;

use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::http::header_formatters::preserve_case::v3 as preserve_case;

use super::common::{duration, open, percent};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use crate::http::{Http1Options, Http2Options, Keepalive, NameCase};

pub(crate) fn http1(value: core::Http1ProtocolOptions) -> Result<Http1Options> {
    let core::Http1ProtocolOptions {
        allow_absolute_url,
        accept_http_10,
        default_host_for_http_10,
        header_key_format,
        enable_trailers,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        use_balsa_parser,
        allow_custom_methods,
        ignore_http_11_upgrade,
    } = value;
    // Trailers and unusual methods are always passed on.
    harmless!(enable_trailers, override_stream_error_on_invalid_http_message, use_balsa_parser, allow_custom_methods);
    refuse!(default_host_for_http_10, send_fully_qualified_url, ignore_http_11_upgrade);
    if allow_absolute_url == Some(false) {
        return Err(Invalid::field("allow_absolute_url", "is not supported: whole URLs are always taken; leave it out"));
    }
    let names = header_key_format.map(name_case).transpose().within("header_key_format")?.unwrap_or_default();
    Ok(Http1Options { accept_http_10, allow_chunked_length, names })
}

fn name_case(value: core::http1_protocol_options::HeaderKeyFormat) -> Result<NameCase> {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    use preserve_case::preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders as Added;
    let config = match value.header_format {
        None => return Err(Invalid::new("names no format; give proper_case_words or stateful_formatter")),
        Some(HeaderFormat::ProperCaseWords(_)) => return Ok(NameCase::Words),
        Some(HeaderFormat::StatefulFormatter(core::TypedExtensionConfig { name, typed_config })) => {
            typed_config.ok_or_else(|| Invalid::field("stateful_formatter.typed_config", format!("is missing for {name}")))?
        }
    };
    let preserve_case::PreserveCaseFormatterConfig { forward_reason_phrase, formatter_type_on_envoy_headers } =
        open(&config).within("stateful_formatter")?;
    match Added::try_from(formatter_type_on_envoy_headers) {
        Ok(added) => Ok(NameCase::Kept { words: added == Added::ProperCase, reason: forward_reason_phrase }),
        Err(_) => Err(Invalid::field("stateful_formatter.typed_config.formatter_type_on_envoy_headers", "is not known")),
    }
}

pub(crate) fn http2(value: core::Http2ProtocolOptions) -> Result<Http2Options> {
    let core::Http2ProtocolOptions {
        hpack_table_size,
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        allow_connect,
        allow_metadata,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message,
        custom_settings_parameters,
        connection_keepalive,
        use_oghttp2_codec,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate,
    } = value;
    // The codec has flood limits of its own that cannot be lifted; encoding choices are not visible to callers.
    harmless!(hpack_table_size, max_outbound_frames, max_outbound_control_frames, max_consecutive_inbound_frames_with_empty_payload);
    harmless!(max_inbound_priority_frames_per_stream, max_inbound_window_update_frames_per_data_frame_sent);
    harmless!(stream_error_on_invalid_http_messaging, override_stream_error_on_invalid_http_message, use_oghttp2_codec);
    harmless!(
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate
    );
    refuse!(allow_metadata, custom_settings_parameters);
    let window = |value: Option<u32>, default: u32, field: &str| match value.unwrap_or(default) {
        size @ 65_535..=2_147_483_647 => Ok(size),
        size => Err(Invalid::field(field, format!("{size} is not between 65535 and 2147483647"))),
    };
    let max_concurrent_streams = max_concurrent_streams.unwrap_or(1024);
    if !(1..=2_147_483_647).contains(&max_concurrent_streams) {
        return Err(Invalid::field("max_concurrent_streams", format!("{max_concurrent_streams} is not between 1 and 2147483647")));
    }
    Ok(Http2Options {
        max_concurrent_streams,
        initial_stream_window_size: window(initial_stream_window_size, 16 << 20, "initial_stream_window_size")?,
        initial_connection_window_size: window(initial_connection_window_size, 24 << 20, "initial_connection_window_size")?,
        allow_connect,
        keepalive: connection_keepalive.map(keepalive).transpose().within("connection_keepalive")?,
    })
}

fn keepalive(value: core::KeepaliveSettings) -> Result<Keepalive> {
    let core::KeepaliveSettings { interval, timeout, interval_jitter, connection_idle_interval } = value;
    let span = |value: Option<lateen_proto::Duration>, field: &str| match value.as_ref().map(duration).transpose().within(field)? {
        Some(span) if span < Duration::from_millis(1) => Err(Invalid::field(field, "is less than 1 ms")),
        span => Ok(span),
    };
    Ok(Keepalive {
        interval: span(interval, "interval")?,
        interval_jitter_percent: interval_jitter.map_or(Ok(15.0), percent).within("interval_jitter")?,
        timeout: span(timeout, "timeout")?.ok_or_else(|| Invalid::field("timeout", "is missing"))?,
        connection_idle_interval: span(connection_idle_interval, "connection_idle_interval")?,
    })
}
