//! Policies and gateways choose workloads that exist, and one scope has one policy.
use std::collections::BTreeMap;

use super::index::Index;
use crate::diagnostic::{Diagnostic, Severity};
use crate::kinds::PeerAuthentication;
use crate::resource::Resource;

pub(super) fn check(index: &Index<'_>, found: &mut Vec<Diagnostic>) {
    peer_authentications(index, found);
    // In a set without workloads nothing can be said about selectors.
    if index.workloads.is_empty() {
        return;
    }
    for policy in index.resources.peer_authentications() {
        let Some(labels) = labels(policy) else { continue };
        if policy.namespace() == index.mesh.root_namespace {
            let message = "is ignored, as by Istio: in the root namespace a policy with a selector has no effect";
            found.push(policy.report(Severity::Warning, "spec.selector", message).with_code("IST0167"));
        } else if !index.selects_any(Some(policy.namespace()), labels) {
            let message = format!("no workload of namespace {} has these labels", policy.namespace());
            found.push(policy.report(Severity::Warning, "spec.selector", message).with_code("IST0127"));
        }
    }
    for gateway in index.resources.gateways() {
        if !gateway.spec.selector.is_empty() && !index.selects_any(None, &gateway.spec.selector) {
            let message = "no workload among the resources at hand has these labels";
            found.push(gateway.report(Severity::Info, "spec.selector", message).with_code("IST0101"));
        }
    }
}

fn labels(policy: &Resource<PeerAuthentication>) -> Option<&lateen_core::Labels> {
    policy.spec.selector.as_ref().map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty())
}

/// Of several policies for a whole namespace the oldest counts.
fn peer_authentications(index: &Index<'_>, found: &mut Vec<Diagnostic>) {
    let mut whole: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for policy in index.resources.peer_authentications().filter(|policy| labels(policy).is_none()) {
        whole.entry(policy.namespace()).or_default().push(policy);
    }
    for policies in whole.values_mut() {
        policies.sort_by(|a, b| a.meta.precedence().cmp(&b.meta.precedence()));
        if let [first, rest @ ..] = &policies[..] {
            for policy in rest {
                let message = format!("PeerAuthentication {} holds for the whole namespace already; this one is not used", first.name());
                found.push(policy.report(Severity::Warning, "", message));
            }
        }
    }
}
