//! Which DestinationRule a client obeys for a host: merging of rules for one host, and the order of lookup.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lateen_model::kinds::DestinationRule;
use lateen_model::{Diagnostic, ExportTo, Resource, ResourceSet, Severity};

use super::hosts;
use super::mesh::Mesh;
use super::services::Service;
use crate::provenance::Provenance;

/// One or several rules for a host, merged.
#[derive(Clone, Debug)]
pub struct Rule {
    /// In full.
    pub host: String,
    pub spec: DestinationRule,
    visibility: ExportTo,
    /// The oldest first.
    pub provenance: Vec<Provenance>,
}

/// All rules, by namespace.
#[derive(Clone, Debug, Default)]
pub struct DestinationRules {
    namespaces: HashMap<String, BTreeMap<String, Vec<Arc<Rule>>>>,
    root_namespace: String,
}

impl DestinationRules {
    pub(crate) fn build(resources: &ResourceSet, mesh: &Mesh, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut all: Vec<_> = resources.destination_rules().collect();
        all.sort_by(|a, b| super::age(&a.meta).cmp(&super::age(&b.meta)));
        let mut rules = Self { root_namespace: mesh.root_namespace.clone(), ..Self::default() };
        for resource in all {
            rules.add(resource, mesh, diagnostics);
        }
        rules
    }

    fn add(&mut self, resource: &Arc<Resource<DestinationRule>>, mesh: &Mesh, diagnostics: &mut Vec<Diagnostic>) {
        let namespace = resource.namespace();
        check(resource, diagnostics);
        let rule = Rule {
            host: mesh.qualify(&resource.spec.host, namespace),
            spec: resource.spec.clone(),
            visibility: ExportTo::parse(&resource.spec.export_to, namespace, &mesh.default_destination_rule_export_to),
            provenance: vec![Provenance::of(resource)],
        };
        let same_host = self.namespaces.entry(namespace.to_owned()).or_default().entry(rule.host.clone()).or_default();
        // Rules that other namespaces see differently stay apart: merged, one would leak through the other.
        match same_host.iter_mut().find(|known| known.visibility == rule.visibility) {
            Some(known) => merge(Arc::make_mut(known), rule, resource, diagnostics),
            None => same_host.push(Arc::new(rule)),
        }
    }

    /// The rule that clients of `client_namespace` obey for `service`.
    ///
    /// The first namespace with any rule for the host decides: the client's own, the service's, the root.
    pub fn find(&self, client_namespace: &str, service: &Service) -> Option<&Arc<Rule>> {
        self.find_host(client_namespace, &service.host, &service.namespace)
    }

    /// As [`Self::find`], for a host that may not be in the registry.
    pub fn find_host(&self, client_namespace: &str, host: &str, service_namespace: &str) -> Option<&Arc<Rule>> {
        // In the root namespace a client sees only what is private to it: the rest is for everyone, and asked last.
        let own = if client_namespace == self.root_namespace {
            self.matching(client_namespace, host, |rule| rule.visibility == ExportTo::Namespaces([client_namespace.to_owned()].into()))
        } else {
            self.matching(client_namespace, host, |_| true)
        };
        own.or_else(|| self.matching(service_namespace, host, |rule| rule.visibility.includes(client_namespace)))
            .or_else(|| self.matching(&self.root_namespace, host, |rule| rule.visibility.includes(client_namespace)))
    }

    /// The most specific of a namespace's rules: exact host first, then the longest wildcard.
    fn matching(&self, namespace: &str, host: &str, visible: impl Fn(&Rule) -> bool) -> Option<&Arc<Rule>> {
        let rules = self.namespaces.get(namespace)?;
        let usable = |list: &'_ Vec<Arc<Rule>>| list.iter().position(|rule| visible(rule));
        if let Some(found) = rules.get(host).and_then(|list| Some(&list[usable(list)?])) {
            return Some(found);
        }
        rules
            .iter()
            .filter(|(pattern, _)| hosts::is_wildcard(pattern) && hosts::covers(pattern, host))
            .filter_map(|(pattern, list)| Some((pattern, &list[usable(list)?])))
            .max_by_key(|(pattern, _)| pattern.len())
            .map(|(_, rule)| rule)
    }
}

/// Tells about TLS settings that only some proxies can follow.
fn check(resource: &Resource<DestinationRule>, diagnostics: &mut Vec<Diagnostic>) {
    let subsets =
        resource.spec.subsets.iter().enumerate().map(|(at, s)| (format!("spec.subsets[{at}].trafficPolicy"), s.traffic_policy.as_ref()));
    let policies = std::iter::once(("spec.trafficPolicy".to_owned(), resource.spec.traffic_policy.as_ref())).chain(subsets);
    for (path, policy) in policies.filter_map(|(path, policy)| Some((path, policy?))) {
        let ports = policy.port_level_settings.iter().enumerate();
        let ports = ports.map(|(at, settings)| (format!("{path}.portLevelSettings[{at}].tls.credentialName"), settings.tls.as_ref()));
        for (path, tls) in std::iter::once((format!("{path}.tls.credentialName"), policy.tls.as_ref())).chain(ports) {
            if tls.is_some_and(|tls| tls.credential_name.as_ref().is_some_and(|name| !name.is_empty())) {
                let text = "only gateways may read secrets: sidecars call this host without TLS of their own, as with Istio";
                diagnostics.push(resource.report(Severity::Warning, &path, text).with_suggestion("mount the files and name them instead"));
            }
        }
    }
}

/// Adds the new rule's subsets; the older rule's policy and subsets stand.
fn merge(known: &mut Rule, rule: Rule, resource: &Resource<DestinationRule>, diagnostics: &mut Vec<Diagnostic>) {
    for (at, subset) in rule.spec.subsets.into_iter().enumerate() {
        if known.spec.subsets.iter().any(|other| other.name == subset.name) {
            let first = known.provenance.first().map(Provenance::place).unwrap_or_default();
            let text =
                format!("subset `{}` of {} is defined already by an older rule ({first}); this one is ignored", subset.name, rule.host);
            diagnostics.push(resource.report(Severity::Warning, &format!("spec.subsets[{at}].name"), text));
        } else {
            known.spec.subsets.push(subset);
        }
    }
    if known.spec.traffic_policy.is_none() {
        known.spec.traffic_policy = rule.spec.traffic_policy;
    } else if rule.spec.traffic_policy.is_some() {
        let first = known.provenance.first().map(Provenance::place).unwrap_or_default();
        let text = format!("an older rule ({first}) has a traffic policy for {}; this one is ignored", rule.host);
        diagnostics.push(resource.report(Severity::Warning, "spec.trafficPolicy", text).with_suggestion("put both in one DestinationRule"));
    }
    known.provenance.extend(rule.provenance);
}
