//! Who the caller is where other proxies stand before this one (Envoy `original_ip_detection_extensions`, and `x-forwarded-for`
//! without them).
use std::net::IpAddr;

use http::HeaderMap;
use http::header::HeaderValue;
use lateen_snapshot::matcher::Cidr;
use lateen_snapshot::original_ip::{Forwarded, OriginalIp};

use super::headers as names;

/// What other proxies tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Detected {
    pub(super) ip: Option<IpAddr>,
    /// Whether the address may make the request an internal one.
    pub(super) trusted: bool,
    /// Whether the connection's address joins `x-forwarded-for`.
    pub(super) append: bool,
}

/// The first address that one of `places` has; an error is the status to refuse the request with. `direct` is the connection's.
pub(super) fn detect(places: &[OriginalIp], direct: IpAddr, map: &HeaderMap) -> Result<Detected, u16> {
    let mut all = Detected::default();
    for place in places {
        match place {
            OriginalIp::Header { name, trusted, reject } => {
                all.ip = map.get(name).and_then(parse);
                all.trusted = *trusted;
                if let (None, Some(status)) = (all.ip, reject) {
                    return Err(*status);
                }
            }
            OriginalIp::Forwarded { from, append } => {
                // A caller that is none of the trusted proxies joins the list, whatever is configured, as in Envoy.
                let strange = matches!(from, Forwarded::Trusted(blocks) if !is_in(blocks, direct));
                all.append |= *append || strange;
                all.ip = match from {
                    Forwarded::Hops(hops) => last(map, *hops as usize),
                    Forwarded::Trusted(_) if strange => None,
                    Forwarded::Trusted(blocks) => last_untrusted(map, blocks),
                };
                all.trusted = is_single(map);
            }
        }
        if all.ip.is_some() {
            break;
        }
    }
    Ok(all)
}

fn is_in(blocks: &[Cidr], ip: IpAddr) -> bool {
    blocks.iter().any(|block| block.contains(ip))
}

fn parse(value: &HeaderValue) -> Option<IpAddr> {
    value.to_str().ok()?.parse().ok()
}

/// The entries of `x-forwarded-for`, the last one first; all of its headers are one list by now.
fn entries(map: &HeaderMap) -> impl Iterator<Item = &str> {
    let value = map.get(names::FORWARDED_FOR).and_then(|v| v.to_str().ok());
    value.into_iter().flat_map(|v| v.rsplit(',')).map(str::trim)
}

/// The address `skip` places before the last one of `x-forwarded-for`.
pub(super) fn last(map: &HeaderMap, skip: usize) -> Option<IpAddr> {
    entries(map).nth(skip)?.parse().ok()
}

/// A list is believed as far as the proxies that wrote it are trusted.
fn last_untrusted(map: &HeaderMap, trusted: &[Cidr]) -> Option<IpAddr> {
    let mut found = None;
    for entry in entries(map) {
        let ip = entry.parse().ok()?;
        found = Some(ip);
        if !is_in(trusted, ip) {
            break;
        }
    }
    found
}

pub(super) fn is_single(map: &HeaderMap) -> bool {
    let mut values = map.get_all(names::FORWARDED_FOR).iter();
    values.next().is_some_and(|v| !v.as_bytes().contains(&b',')) && values.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(forwarded: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(names::FORWARDED_FOR, HeaderValue::from_static(forwarded))])
    }

    #[test]
    fn a_list_is_believed_as_far_as_its_proxies_are_trusted() {
        let direct = "10.0.0.1".parse().unwrap();
        let trusted = OriginalIp::Forwarded { from: Forwarded::Trusted(vec![Cidr::new(direct, 8)]), append: false };
        let found = |direct: &str, forwarded| detect(std::slice::from_ref(&trusted), direct.parse().unwrap(), &map(forwarded)).unwrap();
        let ip = |found: Detected| found.ip.map(|ip| ip.to_string());
        assert_eq!(ip(found("10.0.0.1", "1.1.1.1, 8.8.8.8, 10.0.0.2")).as_deref(), Some("8.8.8.8"));
        assert_eq!(ip(found("10.0.0.1", "10.0.0.3,10.0.0.2")).as_deref(), Some("10.0.0.3"));
        assert_eq!(ip(found("10.0.0.1", "8.8.8.8, unknown, 10.0.0.2")), None, "nobody vouches for what stands before an unknown");
        let single = found("10.0.0.1", "8.8.8.8");
        assert!(single.trusted && !single.append);
        let strange = found("9.9.9.9", "8.8.8.8");
        assert!(strange.ip.is_none() && strange.append);
    }

    #[test]
    fn places_are_asked_in_order_and_one_may_refuse() {
        let header = |reject| OriginalIp::Header { name: http::header::FROM, trusted: false, reject };
        let hops = OriginalIp::Forwarded { from: Forwarded::Hops(1), append: false };
        let direct = "10.0.0.1".parse().unwrap();
        let mut map = map("1.1.1.1, 8.8.8.8");
        assert_eq!(detect(&[header(None), hops.clone()], direct, &map).unwrap().ip.unwrap().to_string(), "1.1.1.1");
        assert_eq!(detect(&[header(Some(401)), hops.clone()], direct, &map), Err(401));
        map.insert(http::header::FROM, HeaderValue::from_static("2001:db8::1"));
        assert_eq!(detect(&[header(Some(401)), hops], direct, &map).unwrap().ip.unwrap().to_string(), "2001:db8::1");
    }
}
