//! Hosts and references by Istio's rules: short names, wildcards, `exportTo`, gateway references.
use std::collections::BTreeSet;
use std::fmt;

/// The DNS suffix of cluster services.
pub const DEFAULT_DOMAIN: &str = "cluster.local";

/// The reserved gateway name that stands for all sidecars.
pub const MESH_GATEWAY: &str = "mesh";

/// The annotation of a Service that says where it is visible, as a comma-separated `exportTo` list.
pub const EXPORT_TO_ANNOTATION: &str = "networking.istio.io/exportTo";

/// A host name or wildcard (`*`, `*.example.com`), in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

impl Host {
    /// Takes a name that is complete already.
    pub fn new(name: &str) -> Self {
        Self(name.to_ascii_lowercase())
    }

    /// Completes a name as written in a rule of `namespace`: `reviews` becomes `reviews.<namespace>.svc.<domain>`.
    /// Names with a dot, addresses and wildcards stay as they are, `reviews.default` included.
    pub fn resolve(written: &str, namespace: &str, domain: &str) -> Self {
        if is_short(written) { Self::new(&service_fqdn(written, namespace, domain)) } else { Self::new(written) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// Whether there is a name that both stand for. `*.a.com` and `x.a.com` do, `*.a.com` and `a.com` do not.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self.suffix(), other.suffix()) {
            (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
            (Some(suffix), None) => covers(suffix, &other.0),
            (None, Some(suffix)) => covers(suffix, &self.0),
            (None, None) => self.0 == other.0,
        }
    }

    /// Whether every name `other` stands for is one of `self`'s.
    pub fn contains(&self, other: &Self) -> bool {
        match (self.suffix(), other.suffix()) {
            (Some(a), Some(b)) => b.ends_with(a),
            (Some(suffix), None) => covers(suffix, &other.0),
            (None, Some(_)) => false,
            (None, None) => self.0 == other.0,
        }
    }

    /// What follows the `*` of a wildcard.
    fn suffix(&self) -> Option<&str> {
        self.0.strip_prefix('*')
    }
}

/// Whether the wildcard `*<suffix>` stands for a plain name; the `*` is at least one character.
fn covers(suffix: &str, name: &str) -> bool {
    name.len() > suffix.len() && name.ends_with(suffix)
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a host is a bare service name, to be completed with a namespace.
pub fn is_short(host: &str) -> bool {
    !host.is_empty() && !host.contains(['.', '*', ':'])
}

/// `reviews`, `default`, `cluster.local` to `reviews.default.svc.cluster.local`.
pub fn service_fqdn(name: &str, namespace: &str, domain: &str) -> String {
    format!("{name}.{namespace}.svc.{domain}")
}

/// The service name and namespace within a complete service name.
pub fn split_service_fqdn<'a>(host: &'a str, domain: &str) -> Option<(&'a str, &'a str)> {
    let (name, rest) = host.strip_suffix(domain)?.strip_suffix(".svc.")?.split_once('.')?;
    (!name.is_empty() && !rest.is_empty() && !rest.contains('.')).then_some((name, rest))
}

/// The namespaces a rule or service is visible in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportTo {
    All,
    /// The named namespaces; the own one when `.` was written.
    Namespaces(BTreeSet<String>),
    /// `~`: nowhere.
    Nowhere,
}

impl ExportTo {
    /// Reads the list of a resource of `namespace`; an empty list gives `default`. `*` beats all the rest.
    pub fn parse<S: AsRef<str>>(list: &[S], namespace: &str, default: &Self) -> Self {
        if list.is_empty() {
            return default.clone();
        }
        let mut namespaces = BTreeSet::new();
        for item in list.iter().map(AsRef::as_ref) {
            match item {
                "*" => return Self::All,
                "." => {
                    namespaces.insert(namespace.to_owned());
                }
                "~" => {}
                other => {
                    namespaces.insert(other.to_owned());
                }
            }
        }
        if namespaces.is_empty() { Self::Nowhere } else { Self::Namespaces(namespaces) }
    }

    /// Whether proxies of a namespace see the resource.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(namespaces) => namespaces.contains(namespace),
            Self::Nowhere => false,
        }
    }
}

/// What a VirtualService's `gateways` names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GatewayRef {
    /// All sidecars.
    Mesh,
    Named {
        namespace: String,
        name: String,
    },
}

impl GatewayRef {
    /// Reads `mesh`, `name`, `namespace/name`, `./name`, or the old `name.namespace.svc.cluster.local`.
    pub fn parse(written: &str, namespace: &str) -> Self {
        if written == MESH_GATEWAY {
            return Self::Mesh;
        }
        let (namespace, name) = match written.split_once('/') {
            Some((".", name)) => (namespace, name),
            Some((other, name)) => (other, name),
            None => match written.split_once('.') {
                Some((name, rest)) => (rest.split('.').next().unwrap_or(rest), name),
                None => (namespace, written),
            },
        };
        Self::Named { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The gateways of a rule; an empty list means `mesh`.
    pub fn parse_all<S: AsRef<str>>(written: &[S], namespace: &str) -> Vec<Self> {
        if written.is_empty() {
            return vec![Self::Mesh];
        }
        written.iter().map(|gateway| Self::parse(gateway.as_ref(), namespace)).collect()
    }
}

impl fmt::Display for GatewayRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str(MESH_GATEWAY),
            Self::Named { namespace, name } => write!(f, "{namespace}/{name}"),
        }
    }
}

/// Whose VirtualServices a server of a Gateway takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NamespaceScope {
    Any,
    Named(String),
}

/// A host of a Gateway's server: `[namespace/]dnsName`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayHost {
    pub scope: NamespaceScope,
    pub host: Host,
}

impl GatewayHost {
    /// Reads `host`, `*/host`, `./host`, `namespace/host` in a Gateway of `namespace`.
    pub fn parse(written: &str, namespace: &str) -> Self {
        let (scope, host) = match written.split_once('/') {
            None | Some(("*", _)) => (NamespaceScope::Any, written.split_once('/').map_or(written, |(_, host)| host)),
            Some((".", host)) => (NamespaceScope::Named(namespace.to_owned()), host),
            Some((other, host)) => (NamespaceScope::Named(other.to_owned()), host),
        };
        Self { scope, host: Host::new(host) }
    }

    /// Whether it takes VirtualServices of a namespace.
    pub fn admits(&self, namespace: &str) -> bool {
        match &self.scope {
            NamespaceScope::Any => true,
            NamespaceScope::Named(own) => own == namespace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_take_the_namespace_of_the_rule() {
        let cases = [
            ("reviews", "reviews.books.svc.cluster.local"),
            ("Reviews", "reviews.books.svc.cluster.local"),
            ("reviews.default", "reviews.default"),
            ("*", "*"),
            ("*.wikipedia.org", "*.wikipedia.org"),
            ("::1", "::1"),
        ];
        for (written, host) in cases {
            assert_eq!(Host::resolve(written, "books", DEFAULT_DOMAIN).as_str(), host);
        }
        assert_eq!(split_service_fqdn("a.b.svc.cluster.local", DEFAULT_DOMAIN), Some(("a", "b")));
        assert_eq!(split_service_fqdn("a.b.c.svc.cluster.local", DEFAULT_DOMAIN), None);
        assert_eq!(split_service_fqdn("www.google.com", DEFAULT_DOMAIN), None);
    }

    #[test]
    fn wildcards_cover_at_least_one_label_more() {
        let host = Host::new;
        assert!(host("*").contains(&host("a.com")) && host("*").contains(&host("*.a.com")));
        assert!(host("*.a.com").contains(&host("x.a.com")) && host("*.a.com").contains(&host("*.x.a.com")));
        assert!(!host("*.a.com").contains(&host("a.com")) && !host("x.a.com").contains(&host("*.a.com")));
        assert!(host("x.a.com").overlaps(&host("*.a.com")) && !host("a.com").overlaps(&host("*.a.com")));
        assert!(!host("*.a.com").overlaps(&host("*.b.com")));
    }

    #[test]
    fn export_lists_and_gateway_names() {
        let parse = |list: &[&str]| ExportTo::parse(list, "own", &ExportTo::All);
        assert_eq!(parse(&[]), ExportTo::All);
        assert_eq!(parse(&[".", "*"]), ExportTo::All);
        assert!(parse(&["."]).includes("own") && !parse(&["."]).includes("other"));
        assert_eq!(parse(&["~"]), ExportTo::Nowhere);
        let named = |namespace: &str, name: &str| GatewayRef::Named { namespace: namespace.into(), name: name.into() };
        assert_eq!(GatewayRef::parse("gw", "own"), named("own", "gw"));
        assert_eq!(GatewayRef::parse("./gw", "own"), named("own", "gw"));
        assert_eq!(GatewayRef::parse("sys/gw", "own"), named("sys", "gw"));
        assert_eq!(GatewayRef::parse("gw.sys.svc.cluster.local", "own"), named("sys", "gw"));
        assert_eq!(GatewayRef::parse_all::<&str>(&[], "own"), [GatewayRef::Mesh]);
        assert!(GatewayHost::parse("./a.com", "own").admits("own") && !GatewayHost::parse("./a.com", "own").admits("x"));
        assert!(GatewayHost::parse("*/a.com", "own").admits("x"));
    }
}
