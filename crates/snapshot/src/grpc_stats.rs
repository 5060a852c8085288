//! Which gRPC methods are counted by name (Envoy `grpc_stats` filter).
use std::collections::{HashMap, HashSet};

/// Envoy `envoy.extensions.filters.http.grpc_stats.v3.FilterConfig`.
#[derive(Debug, Default)]
pub struct GrpcStats {
    pub methods: GrpcMethods,
    /// `a.b.Service` is counted as `a_b_Service`, so that dots only divide parts of a metric's name.
    pub replace_dots: bool,
    /// Other filters may read the counts of a call (Envoy `emit_filter_state`).
    pub emits: bool,
}

/// Methods with counters of their own; all others share those of the cluster.
#[derive(Debug, Default)]
pub enum GrpcMethods {
    #[default]
    None,
    All,
    /// By service.
    Listed(HashMap<Box<str>, HashSet<Box<str>>>),
}

impl GrpcStats {
    /// Service and method of `/service/method`, where they are counted by name.
    pub fn names<'a>(&self, path: &'a str) -> Option<(&'a str, &'a str)> {
        if let GrpcMethods::None = self.methods {
            return None;
        }
        let path = path.split('?').next()?.strip_prefix('/')?;
        let (service, method) = path.split_once('/').filter(|(s, m)| !s.is_empty() && !m.is_empty() && !m.contains('/'))?;
        match &self.methods {
            GrpcMethods::Listed(services) => services.get(service)?.contains(method).then_some((service, method)),
            _ => Some((service, method)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_named_by_path_and_list() {
        let all = GrpcStats { methods: GrpcMethods::All, ..GrpcStats::default() };
        assert_eq!(all.names("/a.B/C?x"), Some(("a.B", "C")));
        for bad in ["", "/", "/a", "/a/", "//c", "/a/b/c", "a/b"] {
            assert_eq!(all.names(bad), None, "{bad}");
        }
        let listed = HashMap::from([("a.B".into(), HashSet::from(["C".into()]))]);
        let listed = GrpcStats { methods: GrpcMethods::Listed(listed), ..GrpcStats::default() };
        assert_eq!((listed.names("/a.B/C"), listed.names("/a.B/D"), listed.names("/b/C")), (Some(("a.B", "C")), None, None));
        assert_eq!(GrpcStats::default().names("/a.B/C"), None);
    }
}
