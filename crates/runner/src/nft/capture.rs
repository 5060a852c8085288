//! Capture: what sends a pod's TCP traffic through its sidecar, equal to istio-iptables in REDIRECT mode.
//!
//! The sidecar's own connections must pass. Istio tells them by uid 1337; an ordinary user's user
//! namespace maps one id only, so there the sidecar and the application have the same uid. What both
//! can have is a socket mark: the sidecar runs with CAP_NET_ADMIN over the pod's network namespace and
//! sets `SO_MARK` to [`SIDECAR_MARK`] (Envoy by `upstream_bind_config.socket_options` of its
//! bootstrap). The ids are honoured besides, for a sidecar that does run as 1337.
use std::net::IpAddr;

use super::{Chain, Cidr, Hook, Rule, Ruleset};

/// The mark on the sockets of a sidecar, and the uid and gid that Istio reserves for it.
pub const SIDECAR_MARK: u32 = 1337;
/// Where outbound connections are sent.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where inbound connections are sent.
pub const INBOUND_PORT: u16 = 15006;
const HBONE_PORT: u16 = 15008;
/// Ports of the sidecar itself that are reached directly.
const SIDECAR_PORTS: [u16; 4] = [HBONE_PORT, 15020, 15021, 15090];

/// Which ports: all or those listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    All,
    Only(Vec<u16>),
}

/// What of a pod's traffic is captured; the annotations `traffic.sidecar.istio.io/*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    pub include_inbound: Ports,
    pub exclude_inbound: Vec<u16>,
    /// `None` captures every destination (`*`).
    pub include_ranges: Option<Vec<Cidr>>,
    pub exclude_ranges: Vec<Cidr>,
    pub exclude_outbound: Vec<u16>,
    /// Captured even when the destination is in no included range.
    pub include_outbound: Vec<u16>,
    /// Destinations of the mesh's own plumbing that nobody captures: the control plane and the name server.
    pub plumbing: Vec<IpAddr>,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            include_inbound: Ports::All,
            exclude_inbound: Vec::new(),
            include_ranges: None,
            exclude_ranges: Vec::new(),
            exclude_outbound: Vec::new(),
            include_outbound: Vec::new(),
            plumbing: Vec::new(),
        }
    }
}

/// An annotation whose value cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {name}: `{value}` is not {expected}")]
pub struct InvalidAnnotation {
    name: String,
    value: String,
    expected: &'static str,
}

const PREFIX: &str = "traffic.sidecar.istio.io/";

impl Capture {
    /// Reads the annotations; `get` looks one up by its full name.
    ///
    /// # Errors
    /// A list that holds something else than ports or ranges, named with its annotation.
    pub fn from_annotations<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, InvalidAnnotation> {
        let find = |name: &str| get(&format!("{PREFIX}{name}"));
        let ports = |name: &str| find(name).map_or(Ok(Vec::new()), |v| list(name, v, "a comma-separated list of ports"));
        let ranges = |name: &str, v: &str| list(name, v, "a comma-separated list of IP ranges");
        Ok(Self {
            include_inbound: match find("includeInboundPorts").map(str::trim) {
                None | Some("*") => Ports::All,
                Some(v) => Ports::Only(list("includeInboundPorts", v, "`*` or a comma-separated list of ports")?),
            },
            exclude_inbound: ports("excludeInboundPorts")?,
            include_ranges: match find("includeOutboundIPRanges").map(str::trim) {
                None | Some("*") => None,
                Some(v) => Some(ranges("includeOutboundIPRanges", v)?),
            },
            exclude_ranges: find("excludeOutboundIPRanges").map_or(Ok(Vec::new()), |v| ranges("excludeOutboundIPRanges", v))?,
            exclude_outbound: ports("excludeOutboundPorts")?,
            include_outbound: ports("includeOutboundPorts")?,
            plumbing: Vec::new(),
        })
    }

    /// The table for the pod's network namespace.
    pub fn ruleset(&self) -> Ruleset {
        Ruleset {
            table: "lateen".into(),
            chains: vec![
                Chain::base("prerouting", Hook::NatPrerouting, vec![Rule::new().tcp().jump("inbound")]),
                Chain::base("output", Hook::NatOutput, vec![Rule::new().tcp().jump("outbound")]),
                Chain::plain("inbound", self.inbound()),
                Chain::plain("outbound", self.outbound()),
            ],
        }
    }

    fn inbound(&self) -> Vec<Rule> {
        let passed = SIDECAR_PORTS.iter().chain(&self.exclude_inbound);
        let mut rules: Vec<Rule> = passed.map(|p| Rule::new().tcp().destination_port(*p).pass()).collect();
        match &self.include_inbound {
            Ports::All => rules.push(Rule::new().tcp().redirect(INBOUND_PORT)),
            Ports::Only(ports) => {
                rules.extend(ports.iter().map(|p| Rule::new().tcp().destination_port(*p).redirect(INBOUND_PORT)));
            }
        }
        rules
    }

    fn outbound(&self) -> Vec<Rule> {
        let tcp = || Rule::new().tcp();
        let mut rules = Vec::new();
        // The sidecar hands an inbound connection to the application from 127.0.0.6 (::6).
        for from in ["127.0.0.6", "::6"] {
            rules.push(tcp().leaves_by("lo").source(host(from)).pass());
        }
        // The sidecar calls its own pod (the application called its own service): that enters as inbound traffic.
        for by_sidecar in sidecar() {
            for local in ["127.0.0.1", "::1"] {
                rules.push(
                    by_sidecar(tcp().leaves_by("lo")).not_destination(host(local)).not_destination_port(HBONE_PORT).redirect(INBOUND_PORT),
                );
            }
        }
        // Whatever else stays in the pod is not captured: the application talking to itself.
        rules.push(tcp().leaves_by("lo").pass());
        rules.extend(sidecar().map(|by_sidecar| by_sidecar(tcp()).pass()));
        rules.extend(self.plumbing.iter().map(|a| tcp().destination(Cidr::host(*a)).pass()));
        rules.extend(self.exclude_outbound.iter().map(|p| tcp().destination_port(*p).pass()));
        rules.extend(self.exclude_ranges.iter().map(|r| tcp().destination(*r).pass()));
        match &self.include_ranges {
            None => rules.push(tcp().redirect(OUTBOUND_PORT)),
            Some(ranges) => {
                rules.extend(self.include_outbound.iter().map(|p| tcp().destination_port(*p).redirect(OUTBOUND_PORT)));
                rules.extend(ranges.iter().map(|r| tcp().destination(*r).redirect(OUTBOUND_PORT)));
            }
        }
        rules
    }
}

/// The three ways a socket can be the sidecar's.
fn sidecar() -> [fn(Rule) -> Rule; 3] {
    [|r| r.mark(SIDECAR_MARK), |r| r.socket_user(SIDECAR_MARK), |r| r.socket_group(SIDECAR_MARK)]
}

fn host(text: &str) -> Cidr {
    text.parse().unwrap_or_else(|_| unreachable!("a literal address"))
}

fn list<T: std::str::FromStr>(name: &str, value: &str, expected: &'static str) -> Result<Vec<T>, InvalidAnnotation> {
    let parts = value.split(',').map(str::trim).filter(|p| !p.is_empty());
    parts.map(|p| p.parse().map_err(|_| InvalidAnnotation { name: format!("{PREFIX}{name}"), value: value.to_owned(), expected })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_become_lists_and_bad_ones_are_named() {
        let get = |name: &str| match name {
            "traffic.sidecar.istio.io/excludeOutboundPorts" => Some("3306, 6379"),
            "traffic.sidecar.istio.io/includeInboundPorts" => Some(""),
            "traffic.sidecar.istio.io/includeOutboundIPRanges" => Some("10.0.0.0/8"),
            _ => None,
        };
        let capture = Capture::from_annotations(get).unwrap();
        assert_eq!(capture.exclude_outbound, vec![3306, 6379]);
        assert_eq!(capture.include_inbound, Ports::Only(vec![]));
        assert_eq!(capture.include_ranges, Some(vec!["10.0.0.0/8".parse().unwrap()]));
        let wrong = Capture::from_annotations(|n| n.ends_with("excludeInboundPorts").then_some("80,http")).unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "annotation traffic.sidecar.istio.io/excludeInboundPorts: `80,http` is not a comma-separated list of ports"
        );
    }

    #[test]
    fn the_sidecar_passes_before_anything_is_captured() {
        let rules = Capture { exclude_outbound: vec![9], ..Capture::default() }.outbound();
        let position = |rule: Rule| rules.iter().position(|r| *r == rule).expect("rule present");
        let captured = position(Rule::new().tcp().redirect(OUTBOUND_PORT));
        assert_eq!(captured, rules.len() - 1);
        assert!(position(Rule::new().tcp().mark(SIDECAR_MARK).pass()) < captured);
        assert!(position(Rule::new().tcp().destination_port(9).pass()) < captured);
        assert!(position(Rule::new().tcp().leaves_by("lo").source(host("127.0.0.6")).pass()) == 0);
    }
}
