//! Sessions that stay at one host.
use std::sync::Arc;
use std::time::Duration;

use lateen_proto::any;
use lateen_proto::envoy::extensions::filters::http::stateful_session::v3::{self as proto, stateful_session_per_route::Override};
use lateen_proto::envoy::extensions::http::stateful_session as states;
use lateen_proto::envoy::r#type::http::v3::{Cookie, CookieAttribute};

use super::common::{duration, open};
use super::invalid::{Invalid, Result, Within};
use super::matcher::header_name;
use super::route::clean;
use crate::stateful_session::{SessionCookie, SessionState, StatefulSession, StatefulSessionPerRoute};

pub(crate) fn filter(value: proto::StatefulSession) -> Result<StatefulSession> {
    let proto::StatefulSession { session_state, strict, stat_prefix, status_on_strict_destination_not_found } = value;
    let status_not_found = match u16::try_from(status_on_strict_destination_not_found) {
        Ok(0) => 503,
        Ok(status @ 200..600) => status,
        _ => return Err(Invalid::field("status_on_strict_destination_not_found", "is no status of a response")),
    };
    Ok(StatefulSession {
        state: session_state.map(state).transpose().within("session_state")?,
        strict,
        status_not_found,
        stat_prefix: (!stat_prefix.is_empty()).then(|| stat_prefix.into()),
    })
}

pub(crate) fn per_route(value: proto::StatefulSessionPerRoute) -> Result<StatefulSessionPerRoute> {
    match value.r#override {
        Some(Override::Disabled(true)) => Ok(StatefulSessionPerRoute::Disabled),
        Some(Override::Disabled(false)) => Err(Invalid::field("disabled", "must be true")),
        Some(Override::StatefulSession(session)) => {
            Ok(StatefulSessionPerRoute::Override(Arc::new(filter(session).within("stateful_session")?)))
        }
        None => Err(Invalid::new("has neither disabled nor stateful_session")),
    }
}

fn state(value: lateen_proto::envoy::config::core::v3::TypedExtensionConfig) -> Result<SessionState> {
    let config = value.typed_config.ok_or_else(|| Invalid::field("typed_config", format!("is missing for {}", value.name)))?;
    if any::is::<states::cookie::v3::CookieBasedSessionState>(&config) {
        let states::cookie::v3::CookieBasedSessionState { cookie } = open(&config)?;
        let cookie = cookie.ok_or_else(|| Invalid::new("is missing")).and_then(self::cookie).within("typed_config.cookie")?;
        Ok(SessionState::Cookie(cookie))
    } else if any::is::<states::header::v3::HeaderBasedSessionState>(&config) {
        let states::header::v3::HeaderBasedSessionState { name } = open(&config)?;
        Ok(SessionState::Header(header_name(&name).within("typed_config.name")?))
    } else if any::is::<states::envelope::v3::EnvelopeSessionState>(&config) {
        let states::envelope::v3::EnvelopeSessionState { header } = open(&config)?;
        let states::envelope::v3::envelope_session_state::Header { name } =
            header.ok_or_else(|| Invalid::field("typed_config.header", "is missing"))?;
        Ok(SessionState::Envelope(header_name(&name).within("typed_config.header.name")?))
    } else {
        Err(Invalid::new(format!("{} is not supported; cookie, header and envelope are", value.name)))
    }
}

fn cookie(value: Cookie) -> Result<SessionCookie> {
    let Cookie { name, ttl, path, attributes } = value;
    if name.is_empty() {
        return Err(Invalid::field("name", "is empty"));
    }
    let mut text = String::new();
    for CookieAttribute { name, value } in &attributes {
        text.push_str("; ");
        text.push_str(name);
        if !value.is_empty() {
            text.push('=');
            text.push_str(value);
        }
    }
    Ok(SessionCookie {
        name: clean(name, "name")?,
        ttl: ttl.map_or(Ok(Duration::ZERO), |d| duration(&d)).within("ttl")?,
        path: clean(path, "path")?,
        attributes: clean(text, "attributes")?,
    })
}
