//! PeerAuthentication: ports only for chosen workloads.
use super::checker::Checker;
use super::text;
use crate::kinds::PeerAuthentication;

pub(super) fn check(policy: &PeerAuthentication, check: &mut Checker<'_>) {
    let labels = policy.selector.as_ref().map(|selector| &selector.match_labels);
    if let Some(labels) = labels {
        if labels.is_empty() {
            check.warning("spec.selector", "selects every workload: it has no labels");
        }
        text::labels(check, "spec.selector.matchLabels", labels);
    }
    if !policy.port_level_mtls.is_empty() && labels.is_none_or(|labels| labels.is_empty()) {
        check.error_with("spec.portLevelMtls", "needs a selector: a port belongs to a workload", "add selector with matchLabels");
    }
}
