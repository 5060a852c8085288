//! The external processing filter: what its server sees of exchanges, and what it may change.
use std::time::Duration;

use lateen_proto::envoy::config::common::mutation_rules::v3 as mutation;
use lateen_proto::envoy::extensions::filters::http::ext_proc::v3::{
    self as proto, ext_proc_per_route, external_processor, processing_mode,
};
use lateen_proto::envoy::r#type::matcher::v3::ListStringMatcher;
use lateen_proto::envoy::r#type::v3 as types;

use super::attribute;
use super::common::{duration, duration_or};
use super::context::Context;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::matcher::{strings, whole};
use super::service;
use crate::ext_authz::AllowedHeaders;
use crate::ext_proc::{BodyMode, ExtProc, ExtProcOverrides, ExtProcPerRoute, ProcessingMode, RouteCacheAction};
use crate::mutation_rules::MutationRules;

/// Envoy's default of `message_timeout`.
const MESSAGE_TIMEOUT: Duration = Duration::from_millis(200);
/// Envoy's default of `deferred_close_timeout`.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy takes no longer timeouts.
const LONGEST: Duration = Duration::from_secs(3600);

pub(crate) fn filter(value: proto::ExternalProcessor, context: &mut Context<'_>) -> Result<ExtProc> {
    let proto::ExternalProcessor {
        grpc_service,
        http_service,
        failure_mode_allow,
        processing_mode,
        request_attributes,
        response_attributes,
        message_timeout,
        stat_prefix,
        mutation_rules,
        max_message_timeout,
        forward_rules,
        filter_metadata,
        allow_mode_override,
        disable_immediate_response,
        metadata_options,
        observability_mode,
        disable_clear_route_cache,
        route_cache_action,
        deferred_close_timeout,
        send_body_without_waiting_for_header_response,
        allowed_override_modes,
        processing_request_modifier,
        on_processing_response,
        status_on_error,
        allow_content_length_header,
        emit_client_span,
    } = value;
    // Lengths follow the body that goes on, and questions have no spans of their own.
    harmless!(allow_content_length_header, emit_client_span);
    refuse!(http_service, filter_metadata);
    refuse!(processing_request_modifier, on_processing_response);
    let service = grpc_service.ok_or_else(|| Invalid::new("is missing")).and_then(|s| service::grpc(s, None, context));
    let route_cache = match (disable_clear_route_cache, route_cache(route_cache_action)?) {
        (true, RouteCacheAction::Default) => RouteCacheAction::Retain,
        (true, _) => return Err(Invalid::field("disable_clear_route_cache", "stands beside route_cache_action; keep one")),
        (false, action) => action,
    };
    let timeout = |value: Option<_>, default, field| match duration_or(value.as_ref(), default, field)? {
        time if time > LONGEST => Err(Invalid::field(field, "is longer than an hour")),
        time => Ok(time),
    };
    let mode = mode(processing_mode.unwrap_or_default()).within("processing_mode")?;
    full_duplex(&mode, failure_mode_allow)?;
    if observability_mode && [mode.request_body, mode.response_body].iter().any(|m| !matches!(m, BodyMode::None | BodyMode::Streamed)) {
        return Err(Invalid::field("observability_mode", "shows bodies STREAMED only; set the body modes to STREAMED or NONE"));
    }
    let (forwarded, received) = namespaces(metadata_options.unwrap_or_default()).within("metadata_options")?;
    let modes = allowed_override_modes.into_iter().enumerate();
    Ok(ExtProc {
        service: service.within("grpc_service")?,
        failure_mode_allow,
        mode,
        message_timeout: timeout(message_timeout, MESSAGE_TIMEOUT, "message_timeout")?,
        max_message_timeout: timeout(max_message_timeout, Duration::ZERO, "max_message_timeout")?,
        stat_prefix: if stat_prefix.is_empty() { "ext_proc".into() } else { format!("ext_proc.{stat_prefix}").into() },
        rules: rules(mutation_rules.unwrap_or_default()).within("mutation_rules")?,
        headers: forwarding(forward_rules.unwrap_or_default()).within("forward_rules")?,
        allow_mode_override,
        early_bodies: send_body_without_waiting_for_header_response,
        allowed_modes: modes.map(|(i, m)| self::mode(m).within_item("allowed_override_modes", i)).collect::<Result<_>>()?,
        disable_immediate_response,
        observes: observability_mode,
        close_timeout: deferred_close_timeout.map_or(Ok(CLOSE_TIMEOUT), |d| duration(&d)).within("deferred_close_timeout")?,
        route_cache,
        request_attributes: attribute::named(request_attributes, "request_attributes")?,
        response_attributes: attribute::named(response_attributes, "response_attributes")?,
        forwarded,
        received,
        status_on_error: status(status_on_error).within("status_on_error")?,
    })
}

/// What else must be configured where a body goes in full duplex (Envoy `verifyProcessingModeConfig`).
fn full_duplex(mode: &ProcessingMode, failure_mode_allow: bool) -> Result<()> {
    for (way, body, trailers) in
        [("request", mode.request_body, mode.request_trailers), ("response", mode.response_body, mode.response_trailers)]
    {
        if body == BodyMode::FullDuplexStreamed && !trailers {
            let field = format!("processing_mode.{way}_trailer_mode");
            return Err(Invalid::field(&field, format!("must be SEND where {way}_body_mode is FULL_DUPLEX_STREAMED")));
        }
    }
    if mode.is_full_duplex() && failure_mode_allow {
        return Err(Invalid::field("failure_mode_allow", "must be false where a body mode is FULL_DUPLEX_STREAMED"));
    }
    Ok(())
}

fn status(value: Option<types::HttpStatus>) -> Result<u16> {
    match value.map(|types::HttpStatus { code }| code) {
        None => Ok(500),
        Some(code) => match u16::try_from(code) {
            Ok(code @ 200..600) => Ok(code),
            _ => Err(Invalid::field("code", format!("{code} is not a status"))),
        },
    }
}

fn route_cache(value: i32) -> Result<RouteCacheAction> {
    match external_processor::RouteCacheAction::try_from(value) {
        Ok(external_processor::RouteCacheAction::Default) => Ok(RouteCacheAction::Default),
        Ok(external_processor::RouteCacheAction::Clear) => Ok(RouteCacheAction::Clear),
        Ok(external_processor::RouteCacheAction::Retain) => Ok(RouteCacheAction::Retain),
        Err(_) => Err(Invalid::field("route_cache_action", format!("{value} is not known"))),
    }
}

pub(crate) fn mode(value: proto::ProcessingMode) -> Result<ProcessingMode> {
    let proto::ProcessingMode {
        request_header_mode,
        response_header_mode,
        request_body_mode,
        response_body_mode,
        request_trailer_mode,
        response_trailer_mode,
    } = value;
    Ok(ProcessingMode {
        request_headers: sends(request_header_mode, true, "request_header_mode")?,
        response_headers: sends(response_header_mode, true, "response_header_mode")?,
        request_body: body(request_body_mode, "request_body_mode")?,
        response_body: body(response_body_mode, "response_body_mode")?,
        request_trailers: sends(request_trailer_mode, false, "request_trailer_mode")?,
        response_trailers: sends(response_trailer_mode, false, "response_trailer_mode")?,
    })
}

fn sends(value: i32, default: bool, field: &str) -> Result<bool> {
    match processing_mode::HeaderSendMode::try_from(value) {
        Ok(processing_mode::HeaderSendMode::Default) => Ok(default),
        Ok(processing_mode::HeaderSendMode::Send) => Ok(true),
        Ok(processing_mode::HeaderSendMode::Skip) => Ok(false),
        Err(_) => Err(Invalid::field(field, format!("{value} is not known"))),
    }
}

fn body(value: i32, field: &str) -> Result<BodyMode> {
    match processing_mode::BodySendMode::try_from(value) {
        Ok(processing_mode::BodySendMode::None) => Ok(BodyMode::None),
        Ok(processing_mode::BodySendMode::Streamed) => Ok(BodyMode::Streamed),
        Ok(processing_mode::BodySendMode::Buffered) => Ok(BodyMode::Buffered),
        Ok(processing_mode::BodySendMode::BufferedPartial) => Ok(BodyMode::BufferedPartial),
        Ok(processing_mode::BodySendMode::FullDuplexStreamed) => Ok(BodyMode::FullDuplexStreamed),
        Ok(other @ processing_mode::BodySendMode::Grpc) => Err(Invalid::field(
            field,
            format!("{} is not supported; use NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL or FULL_DUPLEX_STREAMED", other.as_str_name()),
        )),
        Err(_) => Err(Invalid::field(field, format!("{value} is not known"))),
    }
}

fn rules(value: mutation::HeaderMutationRules) -> Result<MutationRules> {
    let mutation::HeaderMutationRules {
        allow_all_routing,
        allow_envoy,
        disallow_system,
        disallow_all,
        allow_expression,
        disallow_expression,
        disallow_is_error,
    } = value;
    let on = |value: Option<bool>| value.unwrap_or(false);
    Ok(MutationRules {
        allow_all_routing: on(allow_all_routing),
        allow_envoy: on(allow_envoy),
        disallow_system: on(disallow_system),
        disallow_all: on(disallow_all),
        allow: allow_expression.map(whole).transpose().within("allow_expression")?,
        disallow: disallow_expression.map(whole).transpose().within("disallow_expression")?,
        disallow_is_error: on(disallow_is_error),
    })
}

fn forwarding(value: proto::HeaderForwardingRules) -> Result<AllowedHeaders> {
    let proto::HeaderForwardingRules { allowed_headers, disallowed_headers } = value;
    let allowed = allowed_headers.map(|ListStringMatcher { patterns }| strings(patterns, "allowed_headers.patterns")).transpose()?;
    let disallowed =
        disallowed_headers.map(|ListStringMatcher { patterns }| strings(patterns, "disallowed_headers.patterns")).transpose()?;
    Ok(AllowedHeaders { allowed: allowed.filter(|list| !list.is_empty()), disallowed: disallowed.unwrap_or_default() })
}

type Namespaces = Vec<Box<str>>;

fn namespaces(value: proto::MetadataOptions) -> Result<(Namespaces, Namespaces)> {
    let proto::MetadataOptions { forwarding_namespaces, receiving_namespaces, cluster_metadata_forwarding_namespaces } = value;
    refuse!(cluster_metadata_forwarding_namespaces);
    let untyped = |value: Option<proto::metadata_options::MetadataNamespaces>| {
        let proto::metadata_options::MetadataNamespaces { untyped, typed } = value.unwrap_or_default();
        // No filter writes typed metadata.
        harmless!(typed);
        untyped.into_iter().map(Into::into).collect()
    };
    Ok((untyped(forwarding_namespaces), untyped(receiving_namespaces)))
}

/// What a route, a virtual host or a weighted cluster says.
pub(crate) fn per_route(value: proto::ExtProcPerRoute) -> Result<ExtProcPerRoute> {
    match value.r#override {
        Some(ext_proc_per_route::Override::Disabled(true)) => Ok(ExtProcPerRoute::Disabled),
        Some(ext_proc_per_route::Override::Overrides(value)) => overrides(value).within("overrides").map(ExtProcPerRoute::Overrides),
        _ => Err(Invalid::new("needs disabled: true or overrides")),
    }
}

fn overrides(value: proto::ExtProcOverrides) -> Result<ExtProcOverrides> {
    let proto::ExtProcOverrides {
        processing_mode,
        async_mode,
        request_attributes,
        response_attributes,
        grpc_service,
        metadata_options,
        grpc_initial_metadata,
        failure_mode_allow,
        processing_request_modifier,
        emit_client_span,
    } = value;
    harmless!(emit_client_span);
    refuse!(async_mode, request_attributes, response_attributes, grpc_service, metadata_options, grpc_initial_metadata);
    refuse!(processing_request_modifier);
    Ok(ExtProcOverrides { mode: processing_mode.map(mode).transpose().within("processing_mode")?, failure_mode_allow })
}

impl ProcessingMode {
    /// The mode that a processor asks for in its answer, where this is the configured one: what it leaves at its default stays.
    ///
    /// # Errors
    /// What of it is not known.
    pub fn asked(self, value: proto::ProcessingMode) -> std::result::Result<Self, Invalid> {
        let default = processing_mode::HeaderSendMode::Default as i32;
        let or = |asked: i32, known: bool, new: bool| if asked == default { known } else { new };
        let proto::ProcessingMode { request_header_mode, response_header_mode, request_trailer_mode, response_trailer_mode, .. } = value;
        let new = mode(value)?;
        Ok(Self {
            request_headers: or(request_header_mode, self.request_headers, new.request_headers),
            response_headers: or(response_header_mode, self.response_headers, new.response_headers),
            request_trailers: or(request_trailer_mode, self.request_trailers, new.request_trailers),
            response_trailers: or(response_trailer_mode, self.response_trailers, new.response_trailers),
            ..new
        })
    }
}

#[cfg(test)]
mod tests {
    use lateen_proto::envoy::extensions::filters::http::ext_proc::v3::processing_mode::{BodySendMode, HeaderSendMode};

    use super::*;

    fn full_duplex_mode(trailers: HeaderSendMode) -> proto::ProcessingMode {
        proto::ProcessingMode {
            response_body_mode: BodySendMode::FullDuplexStreamed as i32,
            response_trailer_mode: trailers as i32,
            ..Default::default()
        }
    }

    #[test]
    fn full_duplex_needs_trailers_and_a_processor_that_does_not_fail() {
        let judge = |trailers, allow| full_duplex(&mode(full_duplex_mode(trailers)).unwrap(), allow).map_err(|e| e.to_string());
        assert_eq!(judge(HeaderSendMode::Send, false), Ok(()));
        let wrong = judge(HeaderSendMode::Default, false).unwrap_err();
        assert!(wrong.contains("processing_mode.response_trailer_mode"), "{wrong}");
        assert!(judge(HeaderSendMode::Send, true).unwrap_err().contains("failure_mode_allow"));
    }

    #[test]
    fn what_a_processor_leaves_at_its_default_stays_as_configured() {
        let configured = mode(proto::ProcessingMode {
            response_header_mode: HeaderSendMode::Skip as i32,
            request_trailer_mode: HeaderSendMode::Send as i32,
            request_body_mode: BodySendMode::Buffered as i32,
            ..Default::default()
        });
        let asked = configured.unwrap().asked(full_duplex_mode(HeaderSendMode::Send)).unwrap();
        let expected = ProcessingMode {
            request_headers: true,
            response_headers: false,
            request_body: BodyMode::None,
            response_body: BodyMode::FullDuplexStreamed,
            request_trailers: true,
            response_trailers: true,
        };
        assert_eq!(asked, expected);
    }
}
