//! Sessions that stay at one host because the caller says which (Envoy stateful_session filter): what is read and written.
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderName;
use prost::Message as _;

/// The filter, listener-wide or for a route.
#[derive(Debug)]
pub struct StatefulSession {
    /// `None` does nothing.
    pub state: Option<SessionState>,
    /// The host that the session names, or none.
    pub strict: bool,
    /// What callers get when a strict session's host is not a member.
    pub status_not_found: u16,
    /// `None` counts nothing.
    pub stat_prefix: Option<Arc<str>>,
}

/// Where the session's host stands.
#[derive(Debug)]
pub enum SessionState {
    Cookie(SessionCookie),
    /// The address in this header, both ways.
    Header(HeaderName),
    /// The address in front of the value that the upstream gave this header.
    Envelope(HeaderName),
}

#[derive(Debug)]
pub struct SessionCookie {
    pub name: Box<str>,
    /// Zero until the browser ends.
    pub ttl: Duration,
    pub path: Box<str>,
    /// `; Name=value` each.
    pub attributes: Box<str>,
}

#[derive(Debug)]
pub enum StatefulSessionPerRoute {
    Disabled,
    Override(Arc<StatefulSession>),
}

/// What a cookie holds, as Envoy writes it.
#[derive(Clone, PartialEq, prost::Message)]
struct Content {
    #[prost(string, tag = "1")]
    address: String,
    /// Seconds since 1970; zero for ever.
    #[prost(uint64, tag = "2")]
    expires: u64,
}

impl SessionCookie {
    /// Whether requests for this path have the cookie (RFC 6265 5.1.4).
    pub fn covers(&self, path: &str) -> bool {
        let rest = match &*self.path {
            "" | "/" => return true,
            own => path.strip_prefix(own),
        };
        rest.is_some_and(|rest| self.path.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '?', '#']))
    }

    /// The address in a cookie's value, unless it is too old. `now` is in seconds since 1970.
    pub fn read(value: &str, now: u64) -> Option<String> {
        let bytes = BASE64.decode(value).ok()?;
        let address = match Content::decode(bytes.as_slice()) {
            Ok(content) if content.expires != 0 && content.expires < now => return None,
            Ok(content) => content.address,
            // Before it had a date it was the address alone.
            Err(_) => String::from_utf8(bytes).ok()?,
        };
        Some(address).filter(|a| !a.is_empty())
    }

    /// The cookie's value for an address.
    pub fn write(&self, address: &str, now: u64) -> String {
        let expires = if self.ttl.is_zero() { 0 } else { now.saturating_add(self.ttl.as_secs()) };
        BASE64.encode(Content { address: address.to_owned(), expires }.encode_to_vec())
    }

    /// The value of the `set-cookie` header.
    pub fn set(&self, address: &str, now: u64) -> String {
        set_cookie(&self.name, &self.write(address, now), self.ttl, &self.path, &self.attributes)
    }
}

/// A `set-cookie` header in Envoy's form.
pub fn set_cookie(name: &str, value: &str, ttl: Duration, path: &str, attributes: &str) -> String {
    let mut set = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        set.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !path.is_empty() {
        set.push_str("; Path=");
        set.push_str(path);
    }
    set.push_str(attributes);
    set.push_str("; HttpOnly");
    set
}

/// The address in a header's value.
pub fn read_header(value: &str) -> Option<String> {
    text(value).filter(|a| !a.is_empty())
}

/// A header's value for an address.
pub fn write_header(address: &str) -> String {
    BASE64.encode(address)
}

/// The address in an envelope, and the upstream's own value; `None` for what is no envelope.
pub fn open_envelope(value: &str) -> Option<(Option<String>, String)> {
    let mut parts = value.split(';').filter(|p| !p.is_empty());
    let address = read_header(parts.next()?);
    let inner = text(parts.find_map(|p| p.strip_prefix("UV:"))?).filter(|v| !v.is_empty())?;
    Some((address, inner))
}

/// An address and the upstream's own value as one.
pub fn envelope(address: &str, value: &[u8]) -> String {
    format!("{};UV:{}", BASE64.encode(address), BASE64.encode(value))
}

fn text(value: &str) -> Option<String> {
    String::from_utf8(BASE64.decode(value).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie(path: &str, ttl: u64) -> SessionCookie {
        SessionCookie { name: "s".into(), ttl: Duration::from_secs(ttl), path: path.into(), attributes: "; SameSite=Lax".into() }
    }

    #[test]
    fn a_cookie_holds_an_address_until_it_is_too_old() {
        let value = cookie("/", 60).write("10.0.0.1:80", 1_000);
        assert_eq!(SessionCookie::read(&value, 1_060).as_deref(), Some("10.0.0.1:80"));
        assert_eq!(SessionCookie::read(&value, 1_061), None);
        let lasting = cookie("/", 0).write("[::1]:80", 1_000);
        assert_eq!(SessionCookie::read(&lasting, u64::MAX).as_deref(), Some("[::1]:80"));
        assert_eq!(SessionCookie::read(&BASE64.encode("127.0.0.1:80"), 0).as_deref(), Some("127.0.0.1:80"), "the older form");
        for bad in ["", "%"] {
            assert_eq!(SessionCookie::read(bad, 0), None, "{bad}");
        }
        let set = cookie("/shop", 60).set("a:1", 0);
        assert!(set.starts_with("s=\"") && set.ends_with("\"; Max-Age=60; Path=/shop; SameSite=Lax; HttpOnly"), "{set}");
    }

    #[test]
    fn a_cookie_is_for_its_path() {
        for (path, yes, no) in
            [("", &["/", "/a"][..], &[][..]), ("/a", &["/a", "/a/b", "/a?x", "/a#b"], &["/", "/ab"]), ("/a/", &["/a/b", "/a/"], &["/a"])]
        {
            yes.iter().for_each(|p| assert!(cookie(path, 0).covers(p), "{path} {p}"));
            no.iter().for_each(|p| assert!(!cookie(path, 0).covers(p), "{path} {p}"));
        }
    }

    #[test]
    fn an_envelope_is_opened_as_it_was_closed() {
        assert_eq!(open_envelope(&envelope("10.0.0.1:80", b"own")), Some((Some("10.0.0.1:80".to_owned()), "own".to_owned())));
        for bad in ["", ";", "own", "b3du;UV:", "b3du;UV:%"] {
            assert_eq!(open_envelope(bad), None, "{bad}");
        }
        assert_eq!(read_header(&write_header("a:1")).as_deref(), Some("a:1"));
    }
}
