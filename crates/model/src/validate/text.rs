//! Checks of names, hosts, addresses, headers, labels and durations. Each says what is wrong, or nothing.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use lateen_core::Labels;

use super::checker::Checker;
use crate::names::MESH_GATEWAY;
use crate::schema::path::join;

type Check = Result<(), String>;

/// Whether a text is a DNS label of at most 63 characters; Istio takes upper case too.
pub(super) fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|byte| inner(*byte))
}

fn dns_length(name: &str) -> Check {
    match name.len() {
        0 => Err("the host is empty".to_owned()),
        1..=255 => Ok(()),
        length => Err(format!("the host has {length} characters; at most 255 are accepted")),
    }
}

fn dns_labels(name: &str, labels: &str) -> Check {
    let labels = labels.strip_suffix('.').unwrap_or(labels);
    let last = labels.rsplit('.').next().unwrap_or_default();
    if last.parse::<u64>().is_ok() {
        return Err(format!("{name:?} is no host name: the last part {last:?} cannot be a number"));
    }
    match labels.split('.').find(|label| !is_label(label)) {
        Some(bad) => Err(format!("{name:?} is no host name: the part {bad:?} is not made of letters, digits and inner hyphens")),
        None => Ok(()),
    }
}

/// A host name without wildcards.
pub(super) fn fqdn(name: &str) -> Check {
    dns_length(name)?;
    dns_labels(name, name)
}

/// A host name, possibly with `*` at its start.
pub(super) fn wildcard_host(name: &str) -> Check {
    dns_length(name)?;
    let (first, rest) = name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
    let plain = first.strip_prefix("*-").or_else(|| first.strip_prefix('*')).unwrap_or(first);
    if !(first == "*" || is_label(plain)) {
        return Err(format!("{name:?} is no host name: the part {first:?} is neither a name nor a wildcard"));
    }
    rest.map_or(Ok(()), |rest| match rest.contains('*') {
        true => Err(format!("{name:?} is no host name: `*` may stand only at the start")),
        false => dns_labels(name, rest),
    })
}

pub(super) fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// A wildcard that covers part of a label (`*foo.com`), which Envoy's routes do not take.
pub(super) fn is_partial_wildcard(host: &str) -> bool {
    host.starts_with('*') && host.len() > 1 && !host.starts_with("*.")
}

/// An address or a block in CIDR notation.
pub(super) fn subnet(text: &str) -> Check {
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let width = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return Err(format!("{text:?} is neither an IP address nor a block such as 10.0.0.0/8")),
    };
    match length.map(str::parse::<u8>) {
        None => Ok(()),
        Some(Ok(length)) if length <= width => Ok(()),
        Some(_) => Err(format!("{text:?} is no address block: the length goes from 0 to {width}")),
    }
}

/// A port that was written; 0 is what remains when it was not.
pub(super) fn port(number: u16) -> Check {
    if number == 0 { Err("a port number from 1 to 65535 is required".to_owned()) } else { Ok(()) }
}

/// At least 1 ms, in whole milliseconds.
pub(super) fn duration(duration: Duration) -> Check {
    if duration < Duration::from_millis(1) {
        return Err("the duration must be at least 1ms".to_owned());
    }
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        return Err("the duration must be in whole milliseconds".to_owned());
    }
    Ok(())
}

/// Checks a duration if it is given.
pub(super) fn optional_duration(check: &mut Checker<'_>, path: &str, field: &str, value: Option<Duration>) {
    if let Some(value) = value {
        check.expect(&join(path, field), duration(value));
    }
}

/// A header's name by RFC 9110.
pub(super) fn header_name(name: &str) -> Check {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match name.bytes().all(token) && !name.is_empty() {
        true => Ok(()),
        false => Err(format!("{name:?} is no header name")),
    }
}

/// A header in a match: a name, a pseudo header, or a JWT claim.
pub(super) fn header_in_match(name: &str) -> Check {
    if is_claim(name) || matches!(name, ":method" | ":scheme" | ":authority" | ":path" | ":status") {
        return Ok(());
    }
    header_name(name)
}

/// Whether a header key asks for a claim of a verified token.
pub(super) fn is_claim(name: &str) -> bool {
    name.to_ascii_lowercase().starts_with("@request.auth.claims")
}

/// A header that is set, added or removed. Only a request's authority may be changed by its pseudo name.
pub(super) fn header_in_operation(name: &str, authority_allowed: bool) -> Check {
    if is_authority(name) {
        return match authority_allowed {
            true => Ok(()),
            false => Err(format!("{name:?} cannot be changed here")),
        };
    }
    if name.starts_with(':') {
        return Err(format!("{name:?} cannot be changed: it is part of the request line"));
    }
    header_name(name)
}

pub(super) fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

/// A header's value: no control characters, and `%` only in pairs, as Envoy's format strings want.
pub(super) fn header_value(value: &str) -> Check {
    if value.bytes().any(|byte| byte != b'\t' && byte.is_ascii_control()) {
        return Err("the value has control characters".to_owned());
    }
    if value.bytes().filter(|byte| *byte == b'%').count() % 2 == 1 {
        return Err(format!("the value {value:?} has a single `%`; write `%%` for the sign itself"));
    }
    Ok(())
}

/// Labels by the rules of Kubernetes.
pub(super) fn labels(check: &mut Checker<'_>, path: &str, labels: &Labels) {
    for (key, value) in labels {
        let at = join(path, key);
        let (prefix, name) = key.split_once('/').map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
        if !is_qualified(name) || prefix.is_some_and(|prefix| fqdn(prefix).is_err()) {
            check.error(&at, format!("{key:?} is no label name"));
        }
        if !value.is_empty() && !is_qualified(value) {
            check.error(&at, format!("{value:?} is no label value: letters, digits, `-`, `_` and `.`, at most 63"));
        }
    }
}

fn is_qualified(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    text.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

/// References to Gateways.
pub(super) fn gateway_names(check: &mut Checker<'_>, path: &str, names: &[String]) {
    for (index, name) in names.iter().enumerate() {
        let at = format!("{path}[{index}]");
        if name == MESH_GATEWAY {
            continue;
        }
        match name.split_once('/') {
            Some((namespace, gateway)) => {
                if namespace != "." && !is_label(namespace) || !is_label(gateway) {
                    check.error_with(&at, format!("{name:?} names no gateway"), "write namespace/name");
                }
            }
            None => {
                check.expect(&at, fqdn(name));
                if let Some((gateway, rest)) = name.split_once('.') {
                    let namespace = rest.split('.').next().unwrap_or_default();
                    check.warning(&at, format!("{name:?} is the old way to name a gateway; write {namespace}/{gateway}"));
                }
            }
        }
    }
}

/// An `exportTo` list. `none_allowed` says whether `~` may stand in it.
pub(super) fn export_to(check: &mut Checker<'_>, list: &[String], namespace: &str, none_allowed: bool) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, item) in list.iter().enumerate() {
        let at = format!("spec.exportTo[{index}]");
        if !(item == "." || item == "*" || item == "~" && none_allowed || is_label(item)) {
            check.error(&at, format!("{item:?} is none of `.`, `*` and a namespace"));
        }
        let key = if item == "." { namespace } else { item };
        if seen.insert(key, index).is_some() {
            check.error(&at, format!("{item:?} stands twice in the list"));
        }
    }
    for alone in ["*", "~"] {
        if seen.contains_key(alone) && list.len() > 1 {
            check.error("spec.exportTo", format!("{alone:?} must stand alone in the list"));
        }
    }
}

/// A name out of a fixed list.
pub(super) fn one_of(text: &str, known: &[&'static str]) -> Check {
    if known.contains(&text) {
        return Ok(());
    }
    let near = lateen_core::similar::nearest(text, known.iter().copied()).map_or(String::new(), |near| format!("; did you mean {near}?"));
    Err(format!("{text:?} is none of the accepted values {}{near}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["reviews", "a.b.c", "*", "*.a.com", "*-a.com", "a.com.", "x1.y2"] {
            assert_eq!(wildcard_host(good), Ok(()), "{good}");
        }
        for bad in ["", "a..b", "-a", "a_b", "a.*.com", "10.0.0.1", "a b", "https://x.com", "a.com:80", &"a".repeat(300)] {
            assert!(wildcard_host(bad).is_err(), "{bad}");
        }
        assert!(fqdn("*.a.com").is_err());
    }

    #[test]
    fn subnets_durations_and_headers() {
        for good in ["10.0.0.0/8", "1.2.3.4", "::/0", "2001:db8::1/128"] {
            assert_eq!(subnet(good), Ok(()), "{good}");
        }
        for bad in ["10.0.0.0/33", "10.0.0/8", "a", "::/129", "1.2.3.4/", "1.2.3.4/-1"] {
            assert!(subnet(bad).is_err(), "{bad}");
        }
        assert!(duration(Duration::from_micros(10)).is_err() && duration(Duration::from_micros(1500)).is_err());
        assert!(duration(Duration::from_millis(1)).is_ok());
        assert!(header_in_match("x-a").is_ok() && header_in_match(":path").is_ok() && header_in_match("x a").is_err());
        assert!(header_in_operation("Host", true).is_ok() && header_in_operation("Host", false).is_err());
        assert!(header_value("100%").is_err() && header_value("%START_TIME%").is_ok() && header_value("a\nb").is_err());
    }
}
