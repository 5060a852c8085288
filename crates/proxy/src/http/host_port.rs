//! Taking the port and the final dot off the host (Envoy `strip_matching_host_port`, `strip_any_host_port`,
//! `strip_trailing_host_dot`).
use super::message::Request;
use crate::io::Text;

/// Strips the port when it is the listener's, or any.
pub(crate) fn strip(request: &mut Request, any: bool, listener_port: u16) {
    if let Some((host, port)) = split(&request.authority)
        && (any || port == listener_port)
    {
        request.authority = Text::from(host);
    }
}

/// Strips the dot that ends an absolute name, also where a port follows.
pub(crate) fn strip_dot(request: &mut Request) {
    if let Some(name) = request.authority.strip_suffix('.') {
        request.authority = Text::from(name);
    } else if let Some((name, port)) = request.authority.split_once(".:") {
        request.authority = Text::from(&*format!("{name}:{port}"));
    }
}

/// Host and port, if there is a port; brackets stay with the host.
pub(crate) fn split(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    if host.contains(':') && !host.ends_with(']') {
        return None;
    }
    Some((host, port.parse().ok()?))
}

/// The host without its port.
pub(crate) fn host(authority: &str) -> &str {
    split(authority).map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_told_from_addresses() {
        assert_eq!(split("reviews:9080"), Some(("reviews", 9080)));
        assert_eq!(split("[2001:db8::1]:80"), Some(("[2001:db8::1]", 80)));
        assert_eq!(split("2001:db8::1"), None);
        assert_eq!(split("reviews"), None);
        assert_eq!(split("reviews:x"), None);
        assert_eq!(host("reviews:9080"), "reviews");
    }
}
