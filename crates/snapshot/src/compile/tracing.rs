//! Tracing of a connection manager: sampling, tags, and the provider that spans go to.
use std::sync::Arc;
use std::time::Duration;

use lateen_proto::any;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::route::v3 as route;
use lateen_proto::envoy::config::trace::v3::{self as trace, zipkin_config};
use lateen_proto::envoy::extensions::filters::network::http_connection_manager::v3::{self as proto, http_connection_manager as inner};
use lateen_proto::envoy::r#type::metadata::v3::{MetadataKey, MetadataKind, metadata_key, metadata_kind};
use lateen_proto::envoy::r#type::tracing::v3::{self as tags, custom_tag};

use super::common::{duration_or, fraction, open, percent_fraction};
use super::context::Context;
use super::header;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::matcher::header_name;
use super::service::fixed_header;
use super::source::{GrpcTarget, grpc_target};
use crate::header::HeaderTemplate;
use crate::matcher::Fraction;
use crate::trace::{Collector, CustomTag, Provider, ProviderKind, RequestIdRules, RouteTracing, Sampling, TagValue, Tracing};

/// What Envoy waits for a collector (`tracing.zipkin.request_timeout`).
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
const OTLP_METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Envoy's `max_cache_size` default.
const MAX_CACHE_SIZE: u32 = 1024;

/// Envoy's `UuidRequestIdConfig`: absent switches are on.
#[derive(Clone, PartialEq, prost::Message)]
struct UuidRequestIdConfig {
    #[prost(message, optional, tag = "1")]
    pack_trace_reason: Option<bool>,
    #[prost(message, optional, tag = "2")]
    use_request_id_for_trace_sampling: Option<bool>,
}

/// UUIDs are the only request ids.
pub(crate) fn request_ids(value: Option<proto::RequestIdExtension>) -> Result<RequestIdRules> {
    let Some(config) = value.and_then(|proto::RequestIdExtension { typed_config }| typed_config) else {
        return Ok(RequestIdRules::default());
    };
    if any::name_of(&config.type_url) != "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" {
        return Err(Invalid::new(format!("{} is not supported", any::name_of(&config.type_url))));
    }
    let decoded: std::result::Result<UuidRequestIdConfig, _> = prost::Message::decode(config.value.as_slice());
    let UuidRequestIdConfig { pack_trace_reason, use_request_id_for_trace_sampling } =
        decoded.map_err(|e| Invalid::field("typed_config", e.to_string()))?;
    Ok(RequestIdRules { pack_reason: pack_trace_reason.unwrap_or(true), samples: use_request_id_for_trace_sampling.unwrap_or(true) })
}

pub(crate) fn tracing(value: inner::Tracing, context: &mut Context<'_>) -> Result<Tracing> {
    let inner::Tracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        verbose,
        max_path_tag_length,
        custom_tags,
        provider,
        spawn_upstream_span,
        operation,
        upstream_operation,
        no_context_propagation,
    } = value;
    refuse!(verbose, operation, upstream_operation);
    let share = |value: Option<_>, field: &str| value.map_or(Ok(Fraction::ALL), |v| percent_fraction(v).within(field));
    Ok(Tracing {
        sampling: Sampling {
            client: share(client_sampling, "client_sampling")?,
            random: share(random_sampling, "random_sampling")?,
            overall: share(overall_sampling, "overall_sampling")?,
        },
        max_path_tag_length: max_path_tag_length.unwrap_or(256),
        custom_tags: self::custom_tags(custom_tags)?,
        spawn_upstream_span: spawn_upstream_span.unwrap_or(false),
        propagates: !no_context_propagation,
        provider: provider.map(|p| self::provider(p, context)).transpose().within("provider")?,
    })
}

pub(crate) fn of_route(value: route::Tracing) -> Result<RouteTracing> {
    let route::Tracing { client_sampling, random_sampling, overall_sampling, custom_tags, operation, upstream_operation } = value;
    refuse!(operation, upstream_operation);
    let share = |value: Option<_>, field: &str| value.map_or(Ok(Fraction::ALL), |v| fraction(v).within(field));
    let sampling = Sampling {
        client: share(client_sampling, "client_sampling")?,
        random: share(random_sampling, "random_sampling")?,
        overall: share(overall_sampling, "overall_sampling")?,
    };
    Ok(RouteTracing { sampling, custom_tags: self::custom_tags(custom_tags)? })
}

fn custom_tags(values: Vec<tags::CustomTag>) -> Result<Vec<CustomTag>> {
    let tags = values.into_iter().enumerate().map(|(i, t)| custom_tag(t).within_item("custom_tags", i));
    tags.filter_map(Result::transpose).collect()
}

/// `None` for a tag that can never have a value.
fn custom_tag(value: tags::CustomTag) -> Result<Option<CustomTag>> {
    let tags::CustomTag { tag, r#type } = value;
    if tag.is_empty() {
        return Err(Invalid::field("tag", "is empty"));
    }
    let value = match r#type {
        Some(custom_tag::Type::Literal(custom_tag::Literal { value })) => TagValue::Fixed(value.into()),
        Some(custom_tag::Type::Environment(custom_tag::Environment { name, default_value })) => {
            TagValue::Fixed(std::env::var(&name).unwrap_or(default_value).into())
        }
        Some(custom_tag::Type::RequestHeader(custom_tag::Header { name, default_value })) => {
            TagValue::Header { name: header_name(&name).within("request_header.name")?, default: default_value.into() }
        }
        Some(custom_tag::Type::Metadata(value)) => metadata(value).within("metadata")?,
        Some(custom_tag::Type::Value(text)) => match header::template(&text).within("value")? {
            HeaderTemplate::Fixed(value) => TagValue::Fixed(value.to_str().unwrap_or_default().into()),
            HeaderTemplate::Format(text) => TagValue::Format(text),
        },
        None => return Err(Invalid::new("has no value; give literal, environment, request_header or value")),
    };
    let never = matches!(&value, TagValue::Fixed(text) if text.is_empty());
    Ok((!never).then(|| CustomTag { name: tag.into(), value }))
}

fn metadata(value: custom_tag::Metadata) -> Result<TagValue> {
    let custom_tag::Metadata { kind, metadata_key, default_value } = value;
    match kind.and_then(|MetadataKind { kind }| kind) {
        None | Some(metadata_kind::Kind::Request(_)) => {}
        Some(_) => return Err(Invalid::field("kind", "is not supported; request is")),
    }
    let MetadataKey { key, path } = metadata_key.ok_or_else(|| Invalid::field("metadata_key", "is missing"))?;
    let segment = |(index, s): (usize, metadata_key::PathSegment)| match s.segment {
        Some(metadata_key::path_segment::Segment::Key(key)) => Ok(key.into_boxed_str()),
        _ => Err(Invalid::new("has no key; use one")).within_item("metadata_key.path", index),
    };
    let path = path.into_iter().enumerate().map(segment).collect::<Result<_>>()?;
    Ok(TagValue::Metadata { namespace: key.into(), path, default: default_value.into() })
}

fn provider(value: trace::tracing::Http, context: &mut Context<'_>) -> Result<Provider> {
    let trace::tracing::Http { name, config_type } = value;
    let Some(trace::tracing::http::ConfigType::TypedConfig(config)) = config_type else {
        return Err(Invalid::field("typed_config", "is missing"));
    };
    if any::is::<trace::ZipkinConfig>(&config) {
        zipkin(open(&config)?, context)
    } else if any::is::<trace::OpenTelemetryConfig>(&config) {
        opentelemetry(open(&config)?, context)
    } else {
        Err(Invalid::new(format!("{name} ({}) is not supported; zipkin and opentelemetry are", any::name_of(&config.type_url))))
    }
}

fn zipkin(value: trace::ZipkinConfig, context: &mut Context<'_>) -> Result<Provider> {
    let trace::ZipkinConfig {
        collector_cluster,
        collector_endpoint,
        trace_id_128bit,
        shared_span_context,
        collector_endpoint_version,
        collector_hostname,
        split_spans_for_request,
        trace_context_option,
        collector_service,
        timestamp_trace_ids,
    } = value;
    refuse!(split_spans_for_request, timestamp_trace_ids);
    if collector_endpoint_version != zipkin_config::CollectorEndpointVersion::HttpJson as i32 {
        return Err(Invalid::field("collector_endpoint_version", "only HTTP_JSON is supported"));
    }
    let collector = match collector_service {
        Some(service) => http_collector(service, context).within("collector_service")?,
        None if collector_cluster.is_empty() => return Err(Invalid::field("collector_cluster", "is empty")),
        None if !collector_endpoint.starts_with('/') => return Err(Invalid::field("collector_endpoint", "must begin with a slash")),
        None => Collector {
            cluster: context.cluster(&collector_cluster),
            authority: if collector_hostname.is_empty() { collector_cluster.into() } else { collector_hostname.into() },
            path: collector_endpoint.into(),
            grpc: false,
            timeout: EXPORT_TIMEOUT,
            headers: Vec::new(),
        },
    };
    let kind = ProviderKind::Zipkin {
        shared_span_context: shared_span_context.unwrap_or(true),
        trace_id_128bit,
        w3c: match zipkin_config::TraceContextOption::try_from(trace_context_option) {
            Ok(option) => option == zipkin_config::TraceContextOption::UseB3WithW3cPropagation,
            Err(_) => return Err(Invalid::field("trace_context_option", format!("{trace_context_option} is not known"))),
        },
    };
    Ok(Provider { kind, collector })
}

fn opentelemetry(value: trace::OpenTelemetryConfig, context: &mut Context<'_>) -> Result<Provider> {
    let trace::OpenTelemetryConfig {
        grpc_service,
        http_service,
        exporter,
        service_name,
        resource_detectors,
        sampler,
        max_cache_size,
        set_telemetry_sdk_resource_attributes,
        set_service_name_resource_attribute,
        set_instrumentation_scope,
    } = value;
    refuse!(exporter, sampler);
    let collector = match (grpc_service, http_service) {
        (Some(_), Some(_)) => return Err(Invalid::new("has both grpc_service and http_service; keep one")),
        (None, Some(service)) => http_collector(service, context).within("http_service")?,
        (service, None) => grpc_collector(service, context).within("grpc_service")?,
    };
    let mut resource: Vec<(Arc<str>, Arc<str>)> = Vec::new();
    if set_service_name_resource_attribute.unwrap_or(true) {
        // Envoy's name for a service that has none.
        let name = if service_name.is_empty() { "unknown_service:envoy" } else { &service_name };
        resource.push(("service.name".into(), name.into()));
    }
    if set_telemetry_sdk_resource_attributes.unwrap_or(true) {
        let own = [("language", "rust"), ("name", "lateen"), ("version", env!("CARGO_PKG_VERSION"))];
        resource.extend(own.map(|(key, value)| (format!("telemetry.sdk.{key}").into(), value.into())));
    }
    for (index, detector) in resource_detectors.into_iter().enumerate() {
        resource.extend(detected(detector).within_item("resource_detectors", index)?);
    }
    let kind = ProviderKind::OpenTelemetry {
        resource,
        scope: set_instrumentation_scope.unwrap_or(true),
        max_cache_size: max_cache_size.unwrap_or(MAX_CACHE_SIZE).max(1),
    };
    Ok(Provider { kind, collector })
}

/// The attributes of a detector. `environment` reads `OTEL_RESOURCE_ATTRIBUTES`: `key=value,key=value`.
fn detected(value: core::TypedExtensionConfig) -> Result<Vec<(Arc<str>, Arc<str>)>> {
    const ENVIRONMENT: &str = "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig";
    let core::TypedExtensionConfig { name, typed_config } = value;
    if typed_config.is_none_or(|c| any::name_of(&c.type_url) != ENVIRONMENT) {
        return Err(Invalid::new(format!("{name} is not supported; the environment detector is")));
    }
    let text = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let pair = |part: &str| part.split_once('=').map(|(k, v)| (k.trim().into(), v.trim().into()));
    Ok(text.split(',').filter_map(pair).collect())
}

fn grpc_collector(value: Option<core::GrpcService>, context: &mut Context<'_>) -> Result<Collector> {
    let timeout = duration_or(value.as_ref().and_then(|service| service.timeout.as_ref()), EXPORT_TIMEOUT, "timeout")?;
    let GrpcTarget { cluster, authority, headers } = grpc_target(value)?;
    Ok(Collector {
        authority: authority.into(),
        cluster: context.cluster(&cluster),
        path: OTLP_METHOD.into(),
        grpc: true,
        timeout: if timeout.is_zero() { EXPORT_TIMEOUT } else { timeout },
        headers,
    })
}

fn http_collector(value: core::HttpService, context: &mut Context<'_>) -> Result<Collector> {
    let core::HttpService { http_uri, request_headers_to_add, formatters } = value;
    refuse!(formatters);
    let core::HttpUri { uri, timeout, http_upstream_type } = http_uri.ok_or_else(|| Invalid::field("http_uri", "is missing"))?;
    let Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) = http_upstream_type.filter(|c| match c {
        core::http_uri::HttpUpstreamType::Cluster(name) => !name.is_empty(),
    }) else {
        return Err(Invalid::field("http_uri.cluster", "is empty"));
    };
    let wrong = || Invalid::field("http_uri.uri", format!("`{uri}` is not an http or https address"));
    let parsed: http::Uri = uri.parse().map_err(|_| wrong())?;
    let authority = parsed.authority().ok_or_else(wrong)?.as_str().into();
    let path = parsed.path_and_query().map_or("/", |p| p.as_str()).into();
    let timeout = duration_or(timeout.as_ref(), EXPORT_TIMEOUT, "http_uri.timeout")?;
    let mut headers = Vec::new();
    for (index, option) in request_headers_to_add.into_iter().enumerate() {
        let core::HeaderValueOption { header, append, append_action, keep_empty_value } = option;
        // Each request is made anew, so there is nothing that these could be appended to.
        harmless!(append, append_action, keep_empty_value);
        let header = header.ok_or_else(|| Invalid::field("header", "is missing")).and_then(fixed_header);
        headers.push(header.within_item("request_headers_to_add", index)?);
    }
    Ok(Collector { cluster: context.cluster(&cluster), authority, path, grpc: false, timeout, headers })
}
