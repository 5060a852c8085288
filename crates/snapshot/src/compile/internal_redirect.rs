//! Policies for redirects that are followed here.
use lateen_proto::any;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::route::v3::{self as proto, route_action::InternalRedirectAction};
use lateen_proto::envoy::extensions::internal_redirect as predicates;
use predicates::allow_listed_routes::v3::AllowListedRoutesConfig;
use predicates::previous_routes::v3::PreviousRoutesConfig;
use predicates::safe_cross_scheme::v3::SafeCrossSchemeConfig;

use super::common::open;
use super::invalid::{Invalid, Result, Within};
use super::matcher::header_name;
use crate::route::{InternalRedirect, RedirectPredicate};

/// The policy of a route, in its own field or in the two older ones.
pub(crate) fn policy(
    value: Option<proto::InternalRedirectPolicy>,
    older: i32,
    older_most: Option<u32>,
) -> Result<Option<InternalRedirect>> {
    let value = match (value, InternalRedirectAction::try_from(older)) {
        (Some(value), _) => value,
        (None, Ok(InternalRedirectAction::PassThroughInternalRedirect)) => return Ok(None),
        (None, Ok(InternalRedirectAction::HandleInternalRedirect)) => {
            proto::InternalRedirectPolicy { max_internal_redirects: older_most, ..Default::default() }
        }
        (None, Err(_)) => return Err(Invalid::field("internal_redirect_action", format!("{older} is not known"))),
    };
    compiled(value).within("internal_redirect_policy").map(Some)
}

fn compiled(value: proto::InternalRedirectPolicy) -> Result<InternalRedirect> {
    let proto::InternalRedirectPolicy {
        max_internal_redirects,
        redirect_response_codes,
        predicates,
        allow_cross_scheme_redirect,
        response_headers_to_copy,
    } = value;
    // Envoy ignores every other status.
    let known = |code: &u32| matches!(code, 301 | 302 | 303 | 307 | 308);
    let statuses = match redirect_response_codes.as_slice() {
        [] => vec![302],
        given => given.iter().filter(|code| known(code)).filter_map(|code| u16::try_from(*code).ok()).collect(),
    };
    let copied = |name: String| {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            return Err(Invalid::new(format!("`{name}` cannot be copied from a response")));
        }
        header_name(&name)
    };
    Ok(InternalRedirect {
        most: max_internal_redirects.unwrap_or(1),
        statuses,
        predicates: predicates.into_iter().enumerate().map(|(i, p)| predicate(p).within_item("predicates", i)).collect::<Result<_>>()?,
        allow_cross_scheme: allow_cross_scheme_redirect,
        headers_to_copy: response_headers_to_copy
            .into_iter()
            .enumerate()
            .map(|(i, n)| copied(n).within_item("response_headers_to_copy", i))
            .collect::<Result<_>>()?,
    })
}

fn predicate(value: core::TypedExtensionConfig) -> Result<RedirectPredicate> {
    let core::TypedExtensionConfig { name, typed_config } = value;
    let config = typed_config.ok_or_else(|| Invalid::field("typed_config", format!("is missing for {name}")))?;
    if any::is::<PreviousRoutesConfig>(&config) {
        let PreviousRoutesConfig {} = open(&config)?;
        Ok(RedirectPredicate::PreviousRoutes)
    } else if any::is::<AllowListedRoutesConfig>(&config) {
        let AllowListedRoutesConfig { allowed_route_names } = open(&config)?;
        if allowed_route_names.iter().any(String::is_empty) {
            return Err(Invalid::field("typed_config.allowed_route_names", "holds an empty name"));
        }
        Ok(RedirectPredicate::AllowListed(allowed_route_names.into_iter().map(Into::into).collect()))
    } else if any::is::<SafeCrossSchemeConfig>(&config) {
        let SafeCrossSchemeConfig {} = open(&config)?;
        Ok(RedirectPredicate::SafeCrossScheme)
    } else {
        Err(Invalid::new(format!("{name} is not supported; previous_routes, allow_listed_routes and safe_cross_scheme are")))
    }
}
