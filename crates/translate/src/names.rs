//! The names that Istio gives to clusters, listeners and routes; tools, dashboards and SNI rely on them.

/// Refuses every connection.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// Outbound traffic to where it was going anyway.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// Inbound traffic to a port that no service declares.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// What a route points to when its destination names no host.
pub const UNKNOWN_SERVICE: &str = "UnknownService";

/// The listener that captured outbound connections arrive on.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// The listener that captured inbound connections arrive on.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";
pub const VIRTUAL_OUTBOUND_BLACKHOLE: &str = "virtualOutbound-blackhole";
pub const VIRTUAL_OUTBOUND_CATCHALL_TCP: &str = "virtualOutbound-catchall-tcp";
pub const VIRTUAL_INBOUND_BLACKHOLE: &str = "virtualInbound-blackhole";
pub const VIRTUAL_INBOUND_CATCHALL_HTTP: &str = "virtualInbound-catchall-http";
/// The default chain of a listener none of whose chains matched.
pub const PASSTHROUGH_CHAIN: &str = "PassthroughFilterChain";

/// Route and virtual host for hosts outside the registry, when they may be called.
pub const ALLOW_ANY: &str = "allow_any";
/// The same when they may not: 502.
pub const BLOCK_ALL: &str = "block_all";

/// The static cluster through which a sidecar asks its agent for certificates.
pub const SDS_CLUSTER: &str = "sds-grpc";
/// The workload's own certificate.
pub const SDS_DEFAULT: &str = "default";
/// The roots that peers are checked against.
pub const SDS_ROOT: &str = "ROOTCA";

/// The reserved gateway name that stands for all sidecars.
pub const MESH_GATEWAY: &str = "mesh";

/// `outbound|80|v1|reviews.default.svc.cluster.local`.
pub fn outbound(port: u16, subset: &str, host: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// `outbound_.80_.v1_.reviews.default.svc.cluster.local`: the SNI that mesh peers send.
pub fn outbound_sni(port: u16, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// `inbound|8080||`.
pub fn inbound(port: u16) -> String {
    format!("inbound|{port}||")
}

/// The parts of an outbound cluster name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundName<'a> {
    pub port: u16,
    pub subset: &'a str,
    pub host: &'a str,
}

/// Reads `outbound|port|subset|host`, or the SNI form of it.
pub fn parse_outbound(name: &str) -> Option<OutboundName<'_>> {
    let (rest, separator) = match name.strip_prefix("outbound|") {
        Some(rest) => (rest, "|"),
        None => (name.strip_prefix("outbound_.")?, "_."),
    };
    let mut parts = rest.splitn(3, separator);
    let port = parts.next()?.parse().ok()?;
    let subset = parts.next()?;
    let host = parts.next().filter(|host| !host.is_empty())?;
    Some(OutboundName { port, subset, host })
}

/// `0.0.0.0_8080`, `10.0.0.1_5432`.
pub fn listener(bind: &str, port: u16) -> String {
    format!("{bind}_{port}")
}

/// `reviews.default.svc.cluster.local:80`; brackets around an IPv6 address.
pub fn domain(host: &str, port: u16) -> String {
    format!("{}:{port}", bracketed(host))
}

/// `[::1]` for an IPv6 address, anything else as it is.
pub fn bracketed(host: &str) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() }
}

/// A statistics name that ends where the name ends, so that dots inside it cannot be taken for separators.
pub fn stat_prefix(name: &str) -> String {
    format!("{name};")
}

/// `reviews.default.svc.cluster.local:80/*`: the operation of a route without a virtual service.
pub fn trace_operation(host: &str, port: u16) -> String {
    format!("{host}:{port}/*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_read_back() {
        let name = outbound(80, "v1", "reviews.default.svc.cluster.local");
        assert_eq!(name, "outbound|80|v1|reviews.default.svc.cluster.local");
        assert_eq!(parse_outbound(&name), Some(OutboundName { port: 80, subset: "v1", host: "reviews.default.svc.cluster.local" }));
        let sni = outbound_sni(80, "", "a.b");
        assert_eq!(sni, "outbound_.80_._.a.b");
        assert_eq!(parse_outbound(&sni), Some(OutboundName { port: 80, subset: "", host: "a.b" }));
    }

    #[test]
    fn other_names_are_not_outbound() {
        for name in ["inbound|80||", "BlackHoleCluster", "outbound|x||h", "outbound|80||", "outbound|80"] {
            assert_eq!(parse_outbound(name), None, "{name}");
        }
    }

    #[test]
    fn ipv6_hosts_are_bracketed_in_domains() {
        assert_eq!(domain("::1", 80), "[::1]:80");
        assert_eq!(domain("a", 80), "a:80");
    }
}
