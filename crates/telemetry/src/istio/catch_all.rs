//! What stands for a service where there is none: Istio's names for traffic that no service takes.

/// Named after the clusters that such traffic goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchAll {
    BlackHole,
    Passthrough,
    InboundPassthrough,
    InboundPassthroughIpv4,
    InboundPassthroughIpv6,
}

impl CatchAll {
    pub(super) const COUNT: usize = 5;

    pub fn name(self) -> &'static str {
        match self {
            Self::BlackHole => "BlackHoleCluster",
            Self::Passthrough => "PassthroughCluster",
            Self::InboundPassthrough => "InboundPassthroughCluster",
            Self::InboundPassthroughIpv4 => "InboundPassthroughClusterIpv4",
            Self::InboundPassthroughIpv6 => "InboundPassthroughClusterIpv6",
        }
    }

    pub fn of_cluster(name: &str) -> Option<Self> {
        let all =
            [Self::BlackHole, Self::Passthrough, Self::InboundPassthrough, Self::InboundPassthroughIpv4, Self::InboundPassthroughIpv6];
        all.into_iter().find(|one| one.name() == name)
    }

    /// By the route, whatever cluster it leads to, and if it leads to none.
    pub fn of_route(name: &str) -> Option<Self> {
        match name {
            "block_all" => Some(Self::BlackHole),
            "allow_any" => Some(Self::Passthrough),
            _ => None,
        }
    }
}
