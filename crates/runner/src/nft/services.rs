//! Cluster addresses for those without a sidecar, and the way out: the rules of the mesh's own namespace (kube-proxy's part).
use std::net::{IpAddr, SocketAddr};

use super::{Chain, Cidr, Hook, Rule, Ruleset};

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

/// One address and port of a service, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub address: SocketAddr,
    pub transport: Transport,
    /// Of the same family as `address`; none: the connection is refused.
    pub endpoints: Vec<SocketAddr>,
}

/// What the mesh's own namespace has to know to route for the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// The interface the pods hang on.
    pub interface: String,
    /// Ranges of the pods' addresses.
    pub pods: Vec<Cidr>,
    /// Ranges of the cluster addresses.
    pub services: Vec<Cidr>,
    /// Port of the relay that TCP connections to the outside are sent to.
    pub egress_port: u16,
    pub ports: Vec<ServicePort>,
}

impl Routing {
    /// The table for the mesh's own network namespace.
    pub fn ruleset(&self) -> Ruleset {
        let from_pods = || Rule::new().arrives_by(&self.interface).tcp();
        let mut arrivals = vec![Rule::new().jump("services")];
        for inside in self.pods.iter().chain(&self.services) {
            arrivals.push(from_pods().destination(*inside).pass());
        }
        arrivals.push(from_pods().redirect(self.egress_port));
        let refused = self.services.iter().map(|range| Rule::new().tcp().destination(*range).tcp_reset()).collect();
        let mut chains = vec![
            Chain::base("prerouting", Hook::NatPrerouting, arrivals),
            Chain::base("output", Hook::NatOutput, vec![Rule::new().jump("services")]),
            Chain::base("postrouting", Hook::NatPostrouting, self.hairpins()),
            Chain::base("refuse", Hook::FilterPrerouting, refused),
            Chain::plain("services", self.dispatch()),
        ];
        chains.extend(self.ports.iter().enumerate().map(|(i, port)| Chain::plain(format!("service-{i}"), balance(port))));
        Ruleset { table: "lateen".into(), chains }
    }

    fn dispatch(&self) -> Vec<Rule> {
        let rule = |(i, port): (usize, &ServicePort)| {
            let rule = Rule::new().destination(Cidr::host(port.address.ip()));
            transport(rule, port.transport).destination_port(port.address.port()).goto(&format!("service-{i}"))
        };
        self.ports.iter().enumerate().map(rule).collect()
    }

    /// A pod that reaches itself by its service's address would see a packet from itself arrive and drop it: its source is rewritten.
    fn hairpins(&self) -> Vec<Rule> {
        let mut pods: Vec<IpAddr> = self.ports.iter().flat_map(|p| p.endpoints.iter().map(SocketAddr::ip)).collect();
        pods.sort_unstable();
        pods.dedup();
        pods.iter().map(|a| Rule::new().source(Cidr::host(*a)).destination(Cidr::host(*a)).masquerade()).collect()
    }
}

fn transport(rule: Rule, transport: Transport) -> Rule {
    match transport {
        Transport::Tcp => rule.tcp(),
        Transport::Udp => rule.udp(),
    }
}

/// Equal shares: the first of n endpoints takes one in n, the second one in n-1 of the rest, the last what remains.
fn balance(port: &ServicePort) -> Vec<Rule> {
    let count = port.endpoints.len();
    let share = |(i, to): (usize, &SocketAddr)| {
        transport(Rule::new(), port.transport).one_in((count - i) as u32).destination_nat(to.ip(), to.port())
    };
    port.endpoints.iter().enumerate().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing() -> Routing {
        Routing {
            interface: "mesh0".into(),
            pods: vec!["10.244.0.0/16".parse().unwrap()],
            services: vec!["10.96.0.0/16".parse().unwrap()],
            egress_port: 15999,
            ports: vec![ServicePort {
                address: "10.96.0.10:80".parse().unwrap(),
                transport: Transport::Tcp,
                endpoints: vec!["10.244.0.3:8080".parse().unwrap(), "10.244.0.4:8080".parse().unwrap()],
            }],
        }
    }

    #[test]
    fn shares_are_equal_and_the_last_endpoint_takes_the_rest() {
        let rules = balance(&routing().ports[0]);
        let first = Rule::new().tcp().one_in(2).destination_nat("10.244.0.3".parse().unwrap(), 8080);
        let last = Rule::new().tcp().destination_nat("10.244.0.4".parse().unwrap(), 8080);
        assert_eq!(rules, vec![first, last]);
    }

    #[test]
    fn traffic_inside_the_mesh_never_reaches_the_egress_relay() {
        let set = routing().ruleset();
        let arrivals = &set.chains[0].rules;
        let out = Rule::new().arrives_by("mesh0").tcp().redirect(15999);
        assert_eq!(arrivals.last(), Some(&out));
        assert!(arrivals.contains(&Rule::new().arrives_by("mesh0").tcp().destination("10.244.0.0/16".parse().unwrap()).pass()));
        assert_eq!(routing().hairpins().len(), 2);
    }
}
