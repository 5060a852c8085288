//! What blocks of metrics are called, in Envoy's dotted form and in Prometheus' form.

/// A label that Envoy's tag extraction takes out of a name: `cluster_name`, without the `envoy_` that the
/// Prometheus output may put in front.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    pub key: &'static str,
    pub value: String,
}

/// The name of a block: what stands before the metric's own name, in Envoy's dotted form and in Prometheus' form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockName {
    /// `cluster.outbound|80||x.`, with the dot; empty for names that stand alone.
    pub(crate) dotted: String,
    /// `cluster_`: the same with the tags taken out, sanitised. What differs only in other characters is one family.
    pub(crate) flat: String,
    pub(crate) tags: Vec<Tag>,
}

impl BlockName {
    /// Any name: `dotted` (without the last dot) with `tags` being the parts of it that become labels.
    /// `flat` is the rest of the name.
    pub fn new(dotted: impl Into<String>, flat: impl Into<String>, tags: Vec<Tag>) -> Self {
        let (mut dotted, mut flat) = (dotted.into(), sanitized(&flat.into()));
        if !dotted.is_empty() {
            dotted.push('.');
        }
        if !flat.is_empty() {
            flat.push('_');
        }
        Self { dotted, flat, tags }
    }

    /// `cluster.<name>.`: `name` is the cluster's `alt_stat_name` if it has one.
    pub fn cluster(name: &str) -> Self {
        Self::new(format!("cluster.{name}"), "cluster", vec![Tag { key: "cluster_name", value: name.to_owned() }])
    }

    /// `http.<stat prefix>.` of an HTTP connection manager.
    pub fn http(stat_prefix: &str) -> Self {
        Self::new(format!("http.{stat_prefix}"), "http", vec![Tag { key: "http_conn_manager_prefix", value: stat_prefix.to_owned() }])
    }

    /// `http.<stat prefix>.<filter>.`: a filter's metrics under its connection manager (`fault`, `rbac`, `jwt_authn`).
    pub fn http_filter(stat_prefix: &str, filter: &str) -> Self {
        Self::http(stat_prefix).below(filter)
    }

    /// `http.<stat prefix>.rbac.[<rules prefix>.]`: the rules of an RBAC filter.
    pub fn http_rbac(stat_prefix: &str, rules: &str) -> Self {
        let name = Self::http_filter(stat_prefix, "rbac");
        if rules.is_empty() { name } else { name.tagged("rbac_http_prefix", rules) }
    }

    /// `<stat prefix>.rbac.`: the rules of an RBAC filter of connections.
    pub fn rbac(stat_prefix: &str) -> Self {
        Self::plain("").tagged("rbac_prefix", stat_prefix).below("rbac")
    }

    /// `ext_authz.[<filter's prefix>.]` below what it counts for.
    #[must_use]
    pub fn ext_authz(self, filter: &str) -> Self {
        let name = self.below("ext_authz");
        if filter.is_empty() { name } else { name.tagged("ext_authz_prefix", filter) }
    }

    /// `local_rate_limit.<stat prefix>.` of a limit of connections.
    pub fn local_rate_limit(stat_prefix: &str) -> Self {
        Self::plain("local_rate_limit").tagged("local_network_ratelimit_prefix", stat_prefix)
    }

    /// `listener_local_ratelimit.<stat prefix>.` of a listener's limit of connections.
    pub fn listener_rate_limit(stat_prefix: &str) -> Self {
        Self::plain("listener_local_ratelimit").tagged("local_listener_ratelimit_prefix", stat_prefix)
    }

    /// `ratelimit.<stat prefix>.` of a service that limits connections.
    pub fn ratelimit(stat_prefix: &str) -> Self {
        Self::plain("ratelimit").tagged("ratelimit_prefix", stat_prefix)
    }

    /// `<stat prefix>.` of a local rate limit of requests.
    pub fn http_local_rate_limit(stat_prefix: &str) -> Self {
        Self::plain("").tagged("local_http_ratelimit_prefix", stat_prefix)
    }

    /// The same name, one part longer.
    #[must_use]
    pub fn below(mut self, part: &str) -> Self {
        self.dotted.push_str(part);
        self.dotted.push('.');
        self.flat.push_str(&sanitized(part));
        self.flat.push('_');
        self
    }

    /// The same name, one part longer, which is a label and so no part of a family's name.
    #[must_use]
    pub fn tagged(mut self, key: &'static str, value: &str) -> Self {
        self.dotted.push_str(value);
        self.dotted.push('.');
        self.tags.insert(0, Tag { key, value: value.to_owned() });
        self
    }

    /// `listener.<address>.`: `0.0.0.0_15001`, or the listener's `stat_prefix`.
    pub fn listener(address: &str) -> Self {
        let address = address.replace(':', "_");
        Self::new(format!("listener.{address}"), "listener", vec![Tag { key: "listener_address", value: address }])
    }

    /// `listener.<address>.http.<stat prefix>.`: the response classes of one connection manager on one listener.
    pub fn listener_http(address: &str, stat_prefix: &str) -> Self {
        let address = address.replace(':', "_");
        let tags = vec![
            Tag { key: "http_conn_manager_prefix", value: stat_prefix.to_owned() },
            Tag { key: "listener_address", value: address.clone() },
        ];
        Self::new(format!("listener.{address}.http.{stat_prefix}"), "listener_http", tags)
    }

    /// `tcp.<stat prefix>.` of a TCP proxy.
    pub fn tcp(stat_prefix: &str) -> Self {
        Self::new(format!("tcp.{stat_prefix}"), "tcp", vec![Tag { key: "tcp_prefix", value: stat_prefix.to_owned() }])
    }

    /// A name without labels: `server`, `cluster_manager`, `listener_manager`, or empty for none.
    pub fn plain(name: &str) -> Self {
        Self::new(name, name, Vec::new())
    }

    /// The dotted prefix, with its dot.
    pub fn dotted(&self) -> &str {
        &self.dotted
    }
}

/// Prometheus allows letters, digits and `_` in names; Envoy turns all else into `_`.
pub(super) fn sanitized(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
