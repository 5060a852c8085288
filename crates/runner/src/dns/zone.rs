//! The names of the mesh as plain data.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the mesh knows about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Found(Vec<IpAddr>),
    /// In our domain, and nothing there.
    NoSuchName,
    /// Another name, outside, stands for it (a Service of type ExternalName).
    Alias(String),
    NotOurs,
}

/// Names and their addresses; what lies under the cluster's domain and is not here does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    domain: String,
    names: BTreeMap<String, BTreeSet<IpAddr>>,
    aliases: BTreeMap<String, String>,
}

impl Zone {
    /// An empty zone of `domain`, for instance `cluster.local`.
    pub fn new(domain: &str) -> Self {
        Self { domain: domain.to_ascii_lowercase(), names: BTreeMap::new(), aliases: BTreeMap::new() }
    }

    /// Adds addresses to a full name; a name may exist with none (a headless service without pods).
    pub fn add(&mut self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        self.names.entry(normal(name)).or_default().extend(addresses);
    }

    /// Makes `name` stand for the outside name `target`.
    pub fn alias(&mut self, name: &str, target: &str) {
        self.aliases.insert(normal(name), normal(target));
    }

    /// Looks a full name up.
    pub fn lookup(&self, name: &str) -> Answer {
        let name = normal(name);
        if let Some(found) = self.names.get(&name) {
            return Answer::Found(found.iter().copied().collect());
        }
        if let Some(target) = self.aliases.get(&name) {
            return match self.names.get(target) {
                Some(found) => Answer::Found(found.iter().copied().collect()),
                None => Answer::Alias(target.clone()),
            };
        }
        let ours = name.strip_suffix(&self.domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        // A name of one label is a search that went wrong or the like of `localhost`: no resolver outside knows our pods.
        if ours || !name.contains('.') { Answer::NoSuchName } else { Answer::NotOurs }
    }
}

fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_known_or_does_not_exist_and_the_rest_is_not_ours() {
        let mut zone = Zone::new("cluster.local");
        zone.add("a.default.svc.cluster.local", ["10.96.0.1".parse().unwrap()]);
        zone.add("headless.default.svc.cluster.local", []);
        zone.alias("db.default.svc.cluster.local", "db.example.com.");
        zone.alias("same.default.svc.cluster.local", "a.default.svc.cluster.local");
        assert_eq!(zone.lookup("A.default.svc.cluster.local."), Answer::Found(vec!["10.96.0.1".parse().unwrap()]));
        assert_eq!(zone.lookup("headless.default.svc.cluster.local"), Answer::Found(vec![]));
        assert_eq!(zone.lookup("b.default.svc.cluster.local"), Answer::NoSuchName);
        assert_eq!(zone.lookup("db.default.svc.cluster.local"), Answer::Alias("db.example.com".into()));
        assert!(matches!(zone.lookup("same.default.svc.cluster.local"), Answer::Found(_)));
        assert_eq!(zone.lookup("notcluster.local"), Answer::NotOurs);
        assert_eq!(zone.lookup("reviews"), Answer::NoSuchName);
    }
}
