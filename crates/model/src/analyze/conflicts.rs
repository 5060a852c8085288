//! Hosts that several VirtualServices claim for sidecars: only the oldest counts there (IST0109).
use std::collections::BTreeMap;
use std::sync::Arc;

use super::index::Index;
use crate::diagnostic::{Diagnostic, Severity};
use crate::kinds::VirtualService;
use crate::names::{ExportTo, GatewayRef, Host};
use crate::resource::Resource;

pub(super) fn check(index: &Index<'_>, found: &mut Vec<Diagnostic>) {
    let mut claims: BTreeMap<Host, Vec<&Arc<Resource<VirtualService>>>> = BTreeMap::new();
    for rule in index.resources.virtual_services() {
        if GatewayRef::parse_all(&rule.spec.gateways, rule.namespace()).contains(&GatewayRef::Mesh) {
            for host in &rule.spec.hosts {
                claims.entry(Host::resolve(host, rule.namespace(), &index.mesh.domain)).or_default().push(rule);
            }
        }
    }
    for (host, mut rules) in claims {
        rules.sort_by(|a, b| a.meta.precedence().cmp(&b.meta.precedence()));
        for (position, rule) in rules.iter().enumerate() {
            if let Some(first) = rules[..position].iter().find(|first| meet(index, first, rule)) {
                let message = format!(
                    "VirtualService {}/{} claims the host {host} for sidecars already; for it this one is not used there",
                    first.namespace(),
                    first.name()
                );
                let path = rule.spec.hosts.iter().position(|written| Host::resolve(written, rule.namespace(), &index.mesh.domain) == host);
                let path = path.map_or_else(|| "spec.hosts".to_owned(), |position| format!("spec.hosts[{position}]"));
                let diagnostic = rule.report(Severity::Warning, &path, message).with_code("IST0109");
                found.push(diagnostic.with_suggestion("merge the two into one"));
            }
        }
    }
}

/// Whether some namespace sees both.
fn meet(index: &Index<'_>, a: &Resource<VirtualService>, b: &Resource<VirtualService>) -> bool {
    let exported = |rule: &Resource<VirtualService>| {
        ExportTo::parse(&rule.spec.export_to, rule.namespace(), &index.mesh.default_virtual_service_export_to)
    };
    match (exported(a), exported(b)) {
        (ExportTo::Nowhere, _) | (_, ExportTo::Nowhere) => false,
        (ExportTo::All, _) | (_, ExportTo::All) => true,
        (ExportTo::Namespaces(a), ExportTo::Namespaces(b)) => a.intersection(&b).next().is_some(),
    }
}
