//! What a cluster says about HTTP: version, limits of a connection, names taken from requests.
use std::collections::HashMap;
use std::time::Duration;

use lateen_proto::envoy::config::cluster::v3::cluster;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::upstreams::http::v3::{self as http, http_protocol_options as http_options};
use lateen_proto::envoy::extensions::upstreams::tcp::v3::TcpProtocolOptions;
use lateen_proto::{Any, any};

use super::common::{headers_count, limit, open, percent};
use super::http_version::{http1, http2};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::opaque;
use crate::cluster::{HeadLimits, UpstreamHttp};
use crate::http::NameCase;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The HTTP settings of older messages, which the typed options replace.
pub(crate) struct OldHttp {
    pub(crate) upstream_http_protocol_options: Option<core::UpstreamHttpProtocolOptions>,
    pub(crate) common_http_protocol_options: Option<core::HttpProtocolOptions>,
    pub(crate) http_protocol_options: Option<core::Http1ProtocolOptions>,
    pub(crate) http2_protocol_options: Option<core::Http2ProtocolOptions>,
    pub(crate) protocol_selection: i32,
}

/// What a cluster says about HTTP.
pub(crate) struct Http {
    pub(crate) version: UpstreamHttp,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_connection_duration: Option<Duration>,
    pub(crate) max_connection_duration_jitter_percent: f64,
    pub(crate) max_requests_per_connection: Option<u32>,
    pub(crate) auto_sni: bool,
    pub(crate) auto_san: bool,
    /// How the names of requests' headers are written over HTTP/1.
    pub(crate) names: NameCase,
    pub(crate) response_heads: HeadLimits,
}

pub(crate) fn http_settings(options: HashMap<String, Any>, old: OldHttp, max_requests: Option<u32>) -> Result<Http> {
    let mut typed = None;
    for (key, config) in options {
        let field = format!("typed_extension_protocol_options[\"{key}\"]");
        let config = opaque::typed(config).within(&field)?;
        if any::is::<http::HttpProtocolOptions>(&config) {
            typed = Some(open::<http::HttpProtocolOptions>(&config).within(&field)?);
        } else if any::is::<TcpProtocolOptions>(&config) {
            tcp(open(&config).within(&field)?).within(&field)?;
        } else {
            return Err(Invalid::field(&field, format!("{} is not supported", any::name_of(&config.type_url))));
        }
    }
    match typed {
        Some(options) => typed_http(options, max_requests).within(&format!("typed_extension_protocol_options[\"{HTTP_OPTIONS}\"]")),
        None => old_http(old, max_requests),
    }
}

/// How long a connection is kept that no caller has: none is, since each is made for its caller and ends with it.
fn tcp(value: TcpProtocolOptions) -> Result<()> {
    let TcpProtocolOptions { idle_timeout } = value;
    limit(idle_timeout.as_ref(), None, "idle_timeout")?;
    harmless!(idle_timeout);
    Ok(())
}

fn typed_http(value: http::HttpProtocolOptions, max_requests: Option<u32>) -> Result<Http> {
    use http_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig};
    let http::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = value;
    harmless!(header_validation_config);
    refuse!(http_filters, outlier_detection, request_mirror_policies, hash_policy, retry_policy);
    let mut names = NameCase::Lower;
    let mut h1 = |options: Option<core::Http1ProtocolOptions>| {
        names = names_of(options.unwrap_or_default()).within("http_protocol_options")?;
        Ok(())
    };
    let h2 = |options: Option<core::Http2ProtocolOptions>| http2(options.unwrap_or_default()).within("http2_protocol_options");
    let version = match upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(http_options::ExplicitHttpConfig { protocol_config })) => match protocol_config {
            None => UpstreamHttp::Http1,
            Some(ProtocolConfig::HttpProtocolOptions(o)) => h1(Some(o)).map(|()| UpstreamHttp::Http1).within("explicit_http_config")?,
            Some(ProtocolConfig::Http2ProtocolOptions(o)) => h2(Some(o)).map(UpstreamHttp::Http2).within("explicit_http_config")?,
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => return Err(Invalid::unsupported("http3_protocol_options")),
        },
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(http_options::UseDownstreamHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
        })) => {
            harmless!(http3_protocol_options);
            h1(http_protocol_options)
                .and_then(|()| h2(http2_protocol_options))
                .map(UpstreamHttp::Downstream)
                .within("use_downstream_protocol_config")?
        }
        Some(UpstreamProtocolOptions::AutoConfig(http_options::AutoHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
            alternate_protocols_cache_options,
        })) => {
            refuse!(http3_protocol_options, alternate_protocols_cache_options);
            h1(http_protocol_options).and_then(|()| h2(http2_protocol_options)).map(UpstreamHttp::Auto).within("auto_config")?
        }
        None => return Err(Invalid::new("names no protocol; give explicit_http_config, use_downstream_protocol_config or auto_config")),
    };
    common_http(version, names, common_http_protocol_options, upstream_http_protocol_options, max_requests)
}

/// How names are written.
fn names_of(value: core::Http1ProtocolOptions) -> Result<NameCase> {
    let options = http1(value)?;
    if options.allow_chunked_length {
        return Err(Invalid::field("allow_chunked_length", "is not supported towards an upstream"));
    }
    Ok(options.names)
}

fn old_http(old: OldHttp, max_requests: Option<u32>) -> Result<Http> {
    let h2 = old.http2_protocol_options.map(http2).transpose().within("http2_protocol_options")?;
    let names = old.http_protocol_options.map(names_of).transpose().within("http_protocol_options")?.unwrap_or_default();
    let downstream = old.protocol_selection == cluster::ClusterProtocolSelection::UseDownstreamProtocol as i32;
    let version = match (h2, downstream) {
        (options, true) => UpstreamHttp::Downstream(options.map_or_else(|| http2(core::Http2ProtocolOptions::default()), Ok)?),
        (Some(options), false) => UpstreamHttp::Http2(options),
        (None, false) => UpstreamHttp::Http1,
    };
    common_http(version, names, old.common_http_protocol_options, old.upstream_http_protocol_options, max_requests)
}

fn common_http(
    version: UpstreamHttp,
    names: NameCase,
    common: Option<core::HttpProtocolOptions>,
    upstream: Option<core::UpstreamHttpProtocolOptions>,
    max_requests: Option<u32>,
) -> Result<Http> {
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = common.unwrap_or_default();
    harmless!(headers_with_underscores_action);
    let response_heads = head_limits(max_headers_count, max_response_headers_kb).within("common_http_protocol_options")?;
    let core::UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, override_auto_sni_header } = upstream.unwrap_or_default();
    let checked = || -> Result<()> {
        refuse!(max_stream_duration);
        Ok(())
    };
    checked().within("common_http_protocol_options")?;
    refuse!(override_auto_sni_header);
    if auto_san_validation && !auto_sni {
        let why = "needs auto_sni: the name that a certificate is checked for is the one that is asked for";
        return Err(Invalid::field("upstream_http_protocol_options.auto_san_validation", why));
    }
    let jitter =
        max_connection_duration_jitter.map(percent).transpose().within("common_http_protocol_options.max_connection_duration_jitter")?;
    Ok(Http {
        max_connection_duration_jitter_percent: jitter.unwrap_or(0.0),
        version,
        idle_timeout: limit(idle_timeout.as_ref(), Some(Duration::from_secs(3600)), "common_http_protocol_options.idle_timeout")?,
        max_connection_duration: limit(max_connection_duration.as_ref(), None, "common_http_protocol_options.max_connection_duration")?,
        max_requests_per_connection: max_requests_per_connection.or(max_requests).filter(|n| *n > 0),
        auto_sni,
        names,
        response_heads,
        auto_san: auto_san_validation,
    })
}

fn head_limits(count: Option<u32>, kilobytes: Option<u32>) -> Result<HeadLimits> {
    let headers = headers_count(count)?;
    if let Some(other) = kilobytes.filter(|size| !(1..=8192).contains(size)) {
        return Err(Invalid::field("max_response_headers_kb", format!("{other} is not between 1 and 8192")));
    }
    let bytes = |default| kilobytes.unwrap_or(default) * 1024;
    Ok(HeadLimits { headers, http1_bytes: bytes(80), http2_bytes: bytes(60) })
}
