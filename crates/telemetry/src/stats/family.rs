//! What metrics are called in Prometheus: which parts of a name are labels, and which are part of the family's name.
//!
//! Envoy's default tags and those of Istio's bootstrap differ in more than the names of the labels. Istio switches the
//! defaults off and has a list of its own, in which the prefixes of most filters are missing: they stay in the family's
//! name there, which dashboards ask for (`envoy_http_local_rate_limiter_http_local_rate_limit_rate_limited`).
use super::name::{BlockName, Tag};
use super::sample::{TagStyle, split_code};

/// A block's name in Prometheus.
#[derive(Default)]
pub(super) struct Form {
    /// `cluster`, sanitised. What differs only in other characters is one family.
    pub(super) flat: String,
    /// In printing order.
    pub(super) tags: Vec<Tag>,
    /// Istio's labels tell what an authorisation came to (`rbac.allowed`).
    pub(super) of_rules: bool,
}

impl Form {
    pub(super) fn new(name: &BlockName, style: TagStyle) -> Self {
        let mut form = Self::default();
        match style {
            TagStyle::Envoy => name.parts().for_each(|(text, key)| match key {
                Some(key) => form.tag(key, text),
                None => form.name(text),
            }),
            TagStyle::Istio => form.istio(name),
        }
        form
    }

    /// The family of one of the block's metrics, and the label that was part of the metric's name.
    pub(super) fn family(&self, metric: &str, style: TagStyle) -> (String, Option<Tag>) {
        let (stem, tag) = match self.result(metric, style) {
            Some(tag) => ("".into(), Some(tag)),
            None => split_code(metric, style),
        };
        let mut family = "envoy".to_owned();
        for part in [&self.flat, &sanitized(&stem)].into_iter().filter(|part| !part.is_empty()) {
            family.push('_');
            family.push_str(part);
        }
        (family, tag)
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

    /// By the list in Istio's bootstrap (`stats_tags` in `envoy_bootstrap.json`).
    fn istio(&mut self, name: &BlockName) {
        let kind = name.parts().next().map_or("", |(text, _)| text);
        let mut before = "";
        for (index, (text, key)) in name.parts().enumerate() {
            // All that stands between `tcp.` and the metric is a prefix there, whatever it was.
            if kind == "tcp" && index > 0 {
                continue;
            }
            match (key, before) {
                // The name of a cache, after `dns_`.
                (_, "dns_cache") => self.tag("cache", text),
                _ if dry_run(text).is_some() => {}
                (Some(key), _) => match istio_label(kind, key, text) {
                    Some((key, value)) => self.tag(key, value),
                    None => self.name(text),
                },
                (None, _) if text == "dns_cache" => self.name("dns"),
                (None, _) => self.name(text),
            }
            before = text;
        }
        if let ("tcp", Some((_, prefix))) = (kind, name.dotted().trim_end_matches('.').split_once('.')) {
            self.tag("tcp_prefix", prefix);
        }
        for action in name.parts().filter_map(|(text, _)| dry_run(text)) {
            self.tag("authz_dry_run_action", action);
        }
        self.of_rules = name.dotted().ends_with("rbac.");
    }

    fn name(&mut self, text: &str) {
        if !self.flat.is_empty() && !text.is_empty() {
            self.flat.push('_');
        }
        self.flat.push_str(&sanitized(text));
    }

    fn tag(&mut self, key: &'static str, value: &str) {
        self.tags.insert(0, Tag { key, value: value.to_owned() });
    }
}

/// The label that Istio's list makes of a part that Envoy would call `key`, if it does. Istio ends the names it gives
/// to clusters and connection managers with `;`, and knows them by it.
fn istio_label<'a>(kind: &str, key: &'static str, value: &'a str) -> Option<(&'static str, &'a str)> {
    let ended = || value.strip_suffix(';');
    match (kind, key) {
        ("cluster", "cluster_name") => ended().filter(|value| !value.is_empty()).map(|value| (key, value)),
        ("http", "http_conn_manager_prefix") => ended().filter(|value| words(value)).map(|value| (key, value)),
        ("listener", "http_conn_manager_prefix") => address(value).then_some(("http_conn_manager_listener_prefix", value)),
        ("listener", "listener_address") => address(value).then_some((key, value)),
        _ => None,
    }
}

/// The action whose rules are only tried, by the prefix that Istio gives their figures.
fn dry_run(part: &str) -> Option<&str> {
    part.strip_prefix("istio_dry_run_")?.strip_suffix('_').filter(|action| matches!(*action, "allow" | "deny"))
}

fn words(value: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    value.bytes().all(|b| word(b) || b == b'.') || value.bytes().all(|b| word(b) || b"[]:".contains(&b))
}

/// `0.0.0.0_80`, `[__1]_80`.
fn address(value: &str) -> bool {
    value.bytes().all(|b| b.is_ascii_digit() || b"_.".contains(&b)) || value.bytes().all(|b| b.is_ascii_hexdigit() || b"_[]".contains(&b))
}

/// Prometheus allows letters, digits and `_` in names; Envoy turns all else into `_`.
fn sanitized(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
