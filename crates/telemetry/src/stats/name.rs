//! What blocks of metrics are called, in Envoy's dotted form; `family` makes Prometheus' form of it.

/// A label that tag extraction takes out of a name: `cluster_name`, without the `envoy_` that the
/// Prometheus output may put in front.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag {
    pub(super) key: &'static str,
    pub(super) value: String,
}

/// The name of a block: what stands before the metric's own name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockName {
    /// `cluster.outbound|80||x.`, with the dot; empty for names that stand alone.
    pub(super) dotted: String,
}

impl BlockName {
    /// `cluster.<name>.`: `name` is the cluster's `alt_stat_name` if it has one.
    pub fn cluster(name: &str) -> Self {
        Self::plain("cluster").scope(name)
    }

    /// `http.<stat prefix>.` of an HTTP connection manager.
    pub fn http(stat_prefix: &str) -> Self {
        Self::plain("http").scope(stat_prefix)
    }

    /// `http.<stat prefix>.` where the filters of a connection manager count: Envoy keeps a `:` there.
    pub fn http_filters(stat_prefix: &str) -> Self {
        Self::plain("http").below(stat_prefix)
    }

    /// `http.<stat prefix>.<filter>.`: a filter's metrics under its connection manager (`fault`, `rbac`, `jwt_authn`).
    pub fn http_filter(stat_prefix: &str, filter: &str) -> Self {
        Self::http_filters(stat_prefix).below(filter)
    }

    /// `http.<stat prefix>.rbac.[<rules prefix>.]`: the rules of an RBAC filter.
    pub fn http_rbac(stat_prefix: &str, rules: &str) -> Self {
        let name = Self::http_filter(stat_prefix, "rbac");
        if rules.is_empty() { name } else { name.below(rules) }
    }

    /// `<stat prefix>.rbac.`: the rules of an RBAC filter of connections.
    pub fn rbac(stat_prefix: &str) -> Self {
        Self::plain(stat_prefix).below("rbac")
    }

    /// `ext_authz.[<filter's prefix>.]` below what it counts for.
    #[must_use]
    pub fn ext_authz(self, filter: &str) -> Self {
        let name = self.below("ext_authz");
        if filter.is_empty() { name } else { name.below(filter) }
    }

    /// `local_rate_limit.<stat prefix>.` of a limit of connections.
    pub fn local_rate_limit(stat_prefix: &str) -> Self {
        Self::plain("local_rate_limit").below(stat_prefix)
    }

    /// `listener_local_ratelimit.<stat prefix>.` of a listener's limit of connections.
    pub fn listener_rate_limit(stat_prefix: &str) -> Self {
        Self::plain("listener_local_ratelimit").below(stat_prefix)
    }

    /// `ratelimit.<stat prefix>.` of a service that limits connections.
    pub fn ratelimit(stat_prefix: &str) -> Self {
        Self::plain("ratelimit").below(stat_prefix)
    }

    /// `<stat prefix>.http_local_rate_limit.` of a local rate limit of requests.
    pub fn http_local_rate_limit(stat_prefix: &str) -> Self {
        Self::plain(stat_prefix).below("http_local_rate_limit")
    }

    /// `connection_limit.<stat prefix>.` of a limit of open connections.
    pub fn connection_limit(stat_prefix: &str) -> Self {
        Self::plain("connection_limit").below(stat_prefix)
    }

    /// The same name, one part longer.
    #[must_use]
    pub fn below(mut self, part: &str) -> Self {
        self.dotted.push_str(part);
        self.dotted.push('.');
        self
    }

    /// The same name with one part more that comes from configuration and names a scope: Envoy takes colons out of
    /// those, and dots off their end.
    #[must_use]
    pub fn scope(self, part: &str) -> Self {
        match part.trim_end_matches('.') {
            "" => self,
            part => self.below(&part.replace("://", "_").replace([':', '\0'], "_")),
        }
    }

    /// `listener.<address>.`: `0.0.0.0_15001`, or the listener's `stat_prefix`.
    pub fn listener(address: &str) -> Self {
        Self::plain("listener").scope(address)
    }

    /// `listener.<address>.http.<stat prefix>.`: the response classes of one connection manager on one listener.
    pub fn listener_http(address: &str, stat_prefix: &str) -> Self {
        Self::listener(address).below("http").scope(stat_prefix)
    }

    /// `tcp.<stat prefix>.` of a TCP proxy.
    pub fn tcp(stat_prefix: &str) -> Self {
        Self::plain("tcp").scope(stat_prefix)
    }

    /// A name without labels: `server`, `cluster_manager`, `listener_manager`, or empty for none.
    pub fn plain(name: &str) -> Self {
        if name.is_empty() { Self::default() } else { Self::default().below(name) }
    }

    /// The dotted prefix, with its dot.
    pub fn dotted(&self) -> &str {
        &self.dotted
    }
}
