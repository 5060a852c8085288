//! SPIFFE ids in Istio's form: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
use std::fmt;
use std::str::FromStr;

/// The identity of a workload. All parts are non-empty and free of `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

/// A text that is not an Istio SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct InvalidSpiffeId(String);

impl SpiffeId {
    /// Puts an id together.
    ///
    /// # Errors
    /// When a part is empty or contains a slash.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, InvalidSpiffeId> {
        let parts = [trust_domain, namespace, service_account];
        if parts.iter().any(|p| p.is_empty() || p.contains('/')) {
            return Err(InvalidSpiffeId(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")));
        }
        Ok(Self { trust_domain: trust_domain.to_owned(), namespace: namespace.to_owned(), service_account: service_account.to_owned() })
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSpiffeId(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(invalid)?;
        match rest.split('/').collect::<Vec<_>>()[..] {
            [trust_domain, "ns", namespace, "sa", account] => Self::new(trust_domain, namespace, account).map_err(|_| invalid()),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        let id = SpiffeId::new("cluster.local", "default", "reviews").unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/default/sa/reviews");
        assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in ["", "spiffe://td", "spiffe://td/ns//sa/x", "http://td/ns/a/sa/b", "spiffe://td/ns/a/sa/b/c"] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
