//! DestinationRules: their host exists (IST0174) and their subsets select pods (IST0173).
use super::index::{Index, KnownHost};
use crate::diagnostic::{Diagnostic, Severity};
use crate::kinds::DestinationRule;
use crate::resource::Resource;

pub(super) fn check(index: &Index<'_>, found: &mut Vec<Diagnostic>) {
    for rule in index.resources.destination_rules() {
        let known = index.hosts(&rule.spec.host, rule.namespace());
        if known.is_empty() {
            let message = format!("no Service or ServiceEntry defines the host {:?}", rule.spec.host);
            found.push(rule.report(Severity::Warning, "spec.host", message).with_code("IST0174"));
            continue;
        }
        found.extend(empty_subsets(index, rule, &known));
    }
}

fn empty_subsets(index: &Index<'_>, rule: &Resource<DestinationRule>, known: &[&KnownHost]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    // Only services made of pods can be judged, and only when their pods are here.
    let judged: Vec<(&KnownHost, &lateen_core::Labels)> = known.iter().filter_map(|host| Some((*host, host.selector.as_ref()?))).collect();
    if judged.len() < known.len() || !judged.iter().any(|(host, selector)| index.selects_any(Some(&host.namespace), selector)) {
        return found;
    }
    for (number, subset) in rule.spec.subsets.iter().enumerate() {
        if subset.labels.keys().any(|key| is_of_a_node(key)) {
            continue;
        }
        let selects = judged.iter().any(|(host, selector)| {
            let mut labels = (*selector).clone();
            labels.extend(subset.labels.clone());
            index.selects_any(Some(&host.namespace), &labels)
        });
        if !selects {
            let listed = subset.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ");
            let message = format!("no pod of {:?} has the labels {listed}; requests to this subset will get 503", rule.spec.host);
            found.push(rule.report(Severity::Warning, &format!("spec.subsets[{number}]"), message).with_code("IST0173"));
        }
    }
    found
}

/// Labels that pods get from the node they run on, which no file tells.
fn is_of_a_node(key: &str) -> bool {
    key.starts_with("topology.") || key == "kubernetes.io/hostname"
}
