//! DestinationRule: the host, its subsets, and their policies.
use super::checker::Checker;
use super::{text, traffic_policy};
use crate::kinds::DestinationRule;
use crate::resource::Resource;
use crate::schema::path::join;

pub(super) fn check(resource: &Resource<DestinationRule>, check: &mut Checker<'_>) {
    let rule = &resource.spec;
    if rule.host.is_empty() {
        check.error("spec", "host is required");
    } else {
        check.expect("spec.host", text::wildcard_host(&rule.host));
    }
    if let Some(policy) = &rule.traffic_policy {
        traffic_policy::check(policy, "spec.trafficPolicy", check);
    }
    for (index, subset) in rule.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{index}]");
        if subset.name.is_empty() {
            check.error(&path, "name is required");
        } else if !text::is_label(&subset.name) {
            check.error(&join(&path, "name"), format!("{:?} is no subset name: letters, digits and inner hyphens", subset.name));
        } else if rule.subsets[..index].iter().any(|other| other.name == subset.name) {
            check.error(&join(&path, "name"), format!("the subset {:?} is defined twice", subset.name));
        }
        text::labels(check, &join(&path, "labels"), &subset.labels);
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy::check(policy, &join(&path, "trafficPolicy"), check);
        }
    }
    text::export_to(check, &rule.export_to, resource.namespace(), false);
}
