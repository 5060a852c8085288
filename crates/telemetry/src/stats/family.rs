//! What metrics are called in Prometheus: which parts of a name are labels, and which are part of the family's name.
//!
//! Envoy's default tags and those of Istio's bootstrap differ in more than the names of the labels. Istio switches the
//! defaults off and has a list of its own, in which the prefixes of most filters are missing: they stay in the family's
//! name there, which dashboards ask for (`envoy_http_local_rate_limiter_http_local_rate_limit_rate_limited`).
use super::extract::Found;
use super::name::{BlockName, Tag};
use super::sample::{TagStyle, split_code};

/// A block's name in Prometheus.
pub(super) struct Form {
    /// `cluster_`, sanitised: what stands before the metric's name. What differs only in other characters is one family.
    pub(super) flat: String,
    /// The length of `flat` without the dot that ends it.
    bare: usize,
    /// In printing order.
    pub(super) tags: Vec<Tag>,
    /// Istio's labels tell what an authorisation came to (`rbac.allowed`).
    pub(super) of_rules: bool,
}

impl Form {
    pub(super) fn new(name: &BlockName, style: TagStyle) -> Self {
        let found = Found::new(name.dotted(), style);
        let has = |key| found.tags.iter().any(|tag| tag.key == key);
        let of_rules = name.dotted().ends_with("rbac.") && !has("authz_enforce_result");
        let rest = found.rest();
        Self { flat: sanitized(&rest), bare: sanitized(rest.trim_end_matches('.')).len(), tags: found.tags, of_rules }
    }

    /// The family of one of the block's metrics, and the label that was part of the metric's name.
    pub(super) fn family(&self, metric: &str, style: TagStyle) -> (String, Option<Tag>) {
        match self.result(metric, style) {
            // The dot before it went with it.
            Some(tag) => (format!("envoy_{}", self.flat.get(..self.bare).unwrap_or_default()), Some(tag)),
            None => {
                let (stem, tag) = split_code(metric, style);
                (format!("envoy_{}{}", self.flat, sanitized(&stem)), tag)
            }
        }
    }

    /// What Istio's labels take for the result of an authorisation: `rbac.allowed`, and of rules that are only tried
    /// `.shadow_denied`, whoever counts it.
    fn result(&self, metric: &str, style: TagStyle) -> Option<Tag> {
        if style == TagStyle::Envoy {
            return None;
        }
        let (key, value) = match metric {
            "allowed" | "denied" if self.of_rules => ("authz_enforce_result", metric),
            "shadow_allowed" | "shadow_denied" => ("authz_dry_run_result", metric.trim_start_matches("shadow_")),
            _ => return None,
        };
        Some(Tag { key, value: value.to_owned() })
    }
}

/// Prometheus allows letters, digits and `_` in names; Envoy turns all else into `_`.
fn sanitized(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
