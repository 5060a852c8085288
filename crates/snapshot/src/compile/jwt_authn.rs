//! The JWT filter: providers with their keys, requirements, and the routes that they are for.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lateen_identity::jwks::KeySet;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::filters::http::jwt_authn::v3::{
    self as proto, jwt_provider::JwksSourceSpecifier as Jwks, jwt_requirement::RequiresType, per_route_config, requirement_rule,
};

use super::common::{data, duration, duration_or};
use super::context::Context;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::matcher::{self, header_name};
use super::route::route_match;
use super::service;
use crate::jwt::{ClaimHeader, JwtAuthn, JwtPerRoute, JwtRule, KeySource, Keys, Provider, Requirement, TokenHeader, audience};

/// Requirements nested deeper are refused: they are walked recursively.
const MAX_DEPTH: u32 = 16;
/// Envoy's default of `clock_skew_seconds`.
const CLOCK_SKEW: u64 = 60;

/// Envoy's defaults for keys that are fetched.
const CACHE_DURATION: Duration = Duration::from_secs(600);
const REFETCH: Duration = Duration::from_secs(1);
const BACK_OFF: Duration = Duration::from_secs(1);
/// Keys good for less would be fetched without end.
const LEAST_CACHE: Duration = Duration::from_millis(1);
/// Requests wait for a fetch with all its retries.
const MOST_RETRIES: u32 = 100;

type Providers = HashMap<String, Arc<Provider>>;

pub(crate) fn filter(value: proto::JwtAuthentication, context: &mut Context<'_>) -> Result<JwtAuthn> {
    let proto::JwtAuthentication {
        providers,
        rules,
        filter_state_rules,
        bypass_cors_preflight,
        requirement_map,
        strip_failure_response,
        stat_prefix,
    } = value;
    refuse!(filter_state_rules, stat_prefix);
    let mut sorted: Vec<_> = providers.into_iter().collect();
    // In the order of names, so that the same configuration always gives the same error.
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut providers = Providers::new();
    let alone = sorted.len() == 1;
    for (name, value) in sorted {
        let made = provider(value, alone, context).within(&format!("providers[\"{name}\"]"))?;
        providers.insert(name, Arc::new(made));
    }
    let mut sorted: Vec<_> = requirement_map.into_iter().collect();
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    let one =
        |(name, r): (String, _)| requirement(r, &providers, 0).within(&format!("requirement_map[\"{name}\"]")).map(|r| (name.into(), r));
    let named = sorted.into_iter().map(one).collect::<Result<_>>()?;
    let rules = rules.into_iter().enumerate().map(|(i, r)| rule(r, &providers, &named).within_item("rules", i)).collect::<Result<_>>()?;
    let fetched = |p: &Arc<Provider>| if let Keys::Remote(keys) = &p.keys { Some(Arc::clone(keys)) } else { None };
    let remote = every(&providers).iter().filter_map(fetched).collect();
    Ok(JwtAuthn { rules, named, bypass_cors_preflight, strip_failure_response, remote })
}

pub(crate) fn per_route(value: proto::PerRouteConfig) -> Result<JwtPerRoute> {
    use per_route_config::RequirementSpecifier as Spec;
    match value.requirement_specifier {
        Some(Spec::Disabled(true)) => Ok(JwtPerRoute::Disabled),
        Some(Spec::RequirementName(name)) if !name.is_empty() => Ok(JwtPerRoute::Named(name.into())),
        _ => Err(Invalid::new("needs disabled: true or a requirement_name")),
    }
}

fn rule(value: proto::RequirementRule, providers: &Providers, named: &HashMap<Box<str>, Requirement>) -> Result<JwtRule> {
    use requirement_rule::RequirementType;
    let proto::RequirementRule { r#match, requirement_type } = value;
    let matches = r#match.ok_or_else(|| Invalid::new("is missing")).and_then(route_match).within("match")?;
    let requirement = match requirement_type {
        None => None,
        Some(RequirementType::Requires(r)) => Some(requirement(r, providers, 0).within("requires")?),
        Some(RequirementType::RequirementName(name)) => Some(
            named
                .get(name.as_str())
                .cloned()
                .ok_or_else(|| Invalid::field("requirement_name", format!("`{name}` is not in requirement_map")))?,
        ),
    };
    Ok(JwtRule { matches, requirement })
}

fn requirement(value: proto::JwtRequirement, providers: &Providers, depth: u32) -> Result<Requirement> {
    if depth > MAX_DEPTH {
        return Err(Invalid::new(format!("is nested more than {MAX_DEPTH} deep")));
    }
    Ok(match value.requires_type {
        Some(RequiresType::ProviderName(name)) => Requirement::Provider(known(&name, providers).within("provider_name")?, Vec::new()),
        Some(RequiresType::ProviderAndAudiences(proto::ProviderWithAudiences { provider_name, audiences })) => {
            let provider = known(&provider_name, providers).within("provider_and_audiences.provider_name")?;
            Requirement::Provider(provider, self::audiences(&audiences))
        }
        Some(RequiresType::RequiresAny(list)) => any(list.requirements, providers, depth)?,
        Some(RequiresType::RequiresAll(list)) => {
            let item = |(i, r)| requirement(r, providers, depth + 1).within_item("requires_all.requirements", i);
            Requirement::All(list.requirements.into_iter().enumerate().map(item).collect::<Result<_>>()?)
        }
        Some(RequiresType::AllowMissing(())) => Requirement::AllowMissing(every(providers)),
        Some(RequiresType::AllowMissingOrFailed(())) => Requirement::AllowMissingOrFailed(every(providers)),
        Some(RequiresType::ExtractOnlyWithoutValidation(_)) => return Err(Invalid::unsupported("extract_only_without_validation")),
        None => return Err(Invalid::new("has no requirement")),
    })
}

/// What may be missing beside providers is a token of these providers, and it is looked at after them.
fn any(values: Vec<proto::JwtRequirement>, providers: &Providers, depth: u32) -> Result<Requirement> {
    let (mut all, mut beside, mut missing, mut failed) = (Vec::new(), Vec::new(), false, false);
    for (index, value) in values.into_iter().enumerate() {
        match value.requires_type {
            Some(RequiresType::AllowMissing(())) => missing = true,
            Some(RequiresType::AllowMissingOrFailed(())) => failed = true,
            _ => {
                let one = requirement(value, providers, depth + 1).within_item("requires_any.requirements", index)?;
                if let Requirement::Provider(provider, _) = &one {
                    beside.push(Arc::clone(provider));
                }
                all.push(one);
            }
        }
    }
    let beside = if beside.is_empty() { every(providers) } else { beside };
    if failed {
        all.push(Requirement::AllowMissingOrFailed(beside));
    } else if missing {
        all.push(Requirement::AllowMissing(beside));
    }
    Ok(Requirement::Any(all))
}

fn every(providers: &Providers) -> Vec<Arc<Provider>> {
    let mut sorted: Vec<_> = providers.iter().collect();
    sorted.sort_by_key(|(name, _)| *name);
    sorted.into_iter().map(|(_, provider)| Arc::clone(provider)).collect()
}

fn known(name: &str, providers: &Providers) -> Result<Arc<Provider>> {
    providers.get(name).cloned().ok_or_else(|| Invalid::new(format!("`{name}` is not among the providers")))
}

fn provider(value: proto::JwtProvider, alone: bool, context: &mut Context<'_>) -> Result<Provider> {
    let proto::JwtProvider {
        issuer,
        audiences,
        subjects,
        require_expiration,
        max_lifetime,
        jwks_source_specifier,
        forward,
        from_headers,
        from_params,
        from_cookies,
        forward_payload_header,
        pad_forward_payload_header,
        payload_in_metadata,
        normalize_payload_in_metadata,
        header_in_metadata,
        failed_status_in_metadata,
        clock_skew_seconds,
        jwt_cache_config,
        claim_to_headers,
        clear_route_cache,
    } = value;
    let proto::jwt_provider::NormalizePayload { space_delimited_claims } = normalize_payload_in_metadata.unwrap_or_default();
    // The cache saves work and changes no answer.
    harmless!(jwt_cache_config);
    // To demand an end is to allow one at any time.
    let any_end = require_expiration.then_some(Duration::MAX);
    let most = max_lifetime.as_ref().map(duration).transpose().within("max_lifetime")?.or(any_end);
    let boxed = |values: Vec<String>| values.into_iter().map(Into::into).collect();
    let some = |text: String| (!text.is_empty()).then(|| text.into_boxed_str());
    Ok(Provider {
        issuer: some(issuer),
        audiences: self::audiences(&audiences),
        subjects: subjects.map(matcher::string).transpose().within("subjects")?,
        max_lifetime: most,
        keys: keys(jwks_source_specifier, context)?,
        forward,
        headers: from_headers
            .into_iter()
            .enumerate()
            .map(|(i, h)| token_header(h).within_item("from_headers", i))
            .collect::<Result<_>>()?,
        parameters: boxed(from_params),
        cookies: boxed(from_cookies),
        payload_header: some(forward_payload_header).map(|n| header_name(&n)).transpose().within("forward_payload_header")?,
        pad_payload_header: pad_forward_payload_header,
        payload_key: some(payload_in_metadata),
        header_key: some(header_in_metadata),
        failure_key: some(failed_status_in_metadata),
        alone,
        space_delimited: boxed(space_delimited_claims),
        clock_skew: if clock_skew_seconds == 0 { CLOCK_SKEW } else { clock_skew_seconds.into() },
        claim_headers: claim_to_headers
            .into_iter()
            .enumerate()
            .map(|(i, c)| claim_header(c).within_item("claim_to_headers", i))
            .collect::<Result<_>>()?,
        clear_route_cache,
    })
}

fn audiences(values: &[String]) -> Vec<Box<str>> {
    values.iter().map(|text| audience(text).into()).collect()
}

fn keys(value: Option<Jwks>, context: &mut Context<'_>) -> Result<Keys> {
    match value {
        Some(Jwks::LocalJwks(source)) => {
            let bytes = data(source).within("local_jwks")?;
            let text = std::str::from_utf8(&bytes).map_err(|_| Invalid::field("local_jwks", "is not UTF-8"))?;
            KeySet::parse(text).map(Keys::Local).map_err(|e| Invalid::field("local_jwks", e.to_string()))
        }
        Some(Jwks::RemoteJwks(remote)) => {
            let source = key_source(remote, context).within("remote_jwks")?;
            Ok(Keys::Remote(context.names.remote_keys(source)))
        }
        None => Err(Invalid::new("has no keys; give local_jwks or remote_jwks")),
    }
}

fn key_source(value: proto::RemoteJwks, context: &mut Context<'_>) -> Result<KeySource> {
    let proto::RemoteJwks { http_uri, cache_duration, async_fetch, retry_policy } = value;
    let cache = duration_or(cache_duration.as_ref(), CACHE_DURATION, "cache_duration")?;
    if cache < LEAST_CACHE {
        return Err(Invalid::field("cache_duration", "is shorter than 1ms"));
    }
    let refetch = async_fetch.map(|fetch| {
        let proto::JwksAsyncFetch { fast_listener, failed_refetch_duration } = fetch;
        // Requests that come before the keys wait for them, so that the listener need not.
        harmless!(fast_listener);
        duration_or(failed_refetch_duration.as_ref(), REFETCH, "failed_refetch_duration")
    });
    let (retries, back_off) = match retry_policy {
        None => (0, (BACK_OFF, BACK_OFF)),
        Some(policy) => retry(policy).within("retry_policy")?,
    };
    Ok(KeySource {
        uri: service::http_uri(http_uri, context).within("http_uri")?,
        cache,
        refetch: refetch.transpose().within("async_fetch")?,
        retries,
        back_off,
    })
}

fn retry(value: core::RetryPolicy) -> Result<(u32, (Duration, Duration))> {
    let core::RetryPolicy {
        retry_back_off,
        num_retries,
        retry_on,
        retry_priority,
        retry_host_predicate,
        host_selection_retry_max_attempts,
    } = value;
    // Envoy retries whatever failed, and so do we.
    harmless!(retry_on);
    refuse!(retry_priority, retry_host_predicate, host_selection_retry_max_attempts);
    let core::BackoffStrategy { base_interval, max_interval } = retry_back_off.unwrap_or_default();
    let base = duration_or(base_interval.as_ref(), BACK_OFF, "retry_back_off.base_interval")?;
    let max = duration_or(max_interval.as_ref(), base.saturating_mul(10), "retry_back_off.max_interval")?;
    if max < base {
        return Err(Invalid::field("retry_back_off.max_interval", "is below the base interval"));
    }
    Ok((num_retries.unwrap_or(1).min(MOST_RETRIES), (base, max)))
}

fn token_header(value: proto::JwtHeader) -> Result<TokenHeader> {
    let proto::JwtHeader { name, value_prefix } = value;
    Ok(TokenHeader { name: header_name(&name).within("name")?, prefix: value_prefix.into() })
}

fn claim_header(value: proto::JwtClaimToHeader) -> Result<ClaimHeader> {
    let proto::JwtClaimToHeader { header_name: name, claim_name, claim_path } = value;
    let path: Vec<Box<str>> = if claim_path.is_empty() {
        claim_name.split('.').map(Into::into).collect()
    } else {
        claim_path.into_iter().map(|proto::jwt_claim_to_header::PathSegment { key }| key.into()).collect()
    };
    if path.iter().any(|segment| segment.is_empty()) {
        return Err(Invalid::field("claim_name", "is empty or has an empty part"));
    }
    Ok(ClaimHeader { name: header_name(&name).within("header_name")?, path })
}
