//! VirtualServices with their names in full and their delegates merged in, in the order in which they are tried.
use std::collections::HashMap;
use std::sync::Arc;

use lateen_model::kinds::VirtualService as Spec;
use lateen_model::kinds::virtual_service::{HttpMatchRequest, HttpRoute};
use lateen_model::{Diagnostic, ExportTo, GatewayRef, Resource, ResourceSet, Severity};

use super::delegates;
use super::hosts;
use super::mesh::Mesh;
use super::services::Service;
use crate::names::MESH_GATEWAY;
use crate::provenance::Provenance;

/// A VirtualService as it takes effect.
#[derive(Clone, Debug)]
pub struct VirtualService {
    pub name: String,
    pub namespace: String,
    pub visibility: ExportTo,
    /// With all hosts, destinations and gateways in full, and delegates replaced by their routes.
    pub spec: Spec,
    /// The resource itself, then its delegates.
    pub provenance: Vec<Provenance>,
}

impl VirtualService {
    /// Whether it is bound to a gateway (`namespace/name`, or `mesh`).
    pub fn binds(&self, gateway: &str) -> bool {
        self.spec.gateways.iter().any(|bound| bound == gateway)
    }

    pub(crate) fn origin(&self) -> Option<&Provenance> {
        self.provenance.first()
    }
}

/// All VirtualServices, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct VirtualServices {
    all: Vec<Arc<VirtualService>>,
}

impl VirtualServices {
    pub(crate) fn build(resources: &ResourceSet, mesh: &Mesh, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut all: Vec<_> = resources.virtual_services().cloned().collect();
        all.sort_by(|a, b| super::age(&a.meta).cmp(&super::age(&b.meta)));
        let resolved: Vec<(Arc<Resource<Spec>>, VirtualService)> = all.into_iter().map(|r| (Arc::clone(&r), resolve(&r, mesh))).collect();
        let delegates: HashMap<(String, String), VirtualService> = resolved
            .iter()
            .filter(|(_, service)| service.spec.hosts.is_empty())
            .map(|(_, service)| ((service.namespace.clone(), service.name.clone()), service.clone()))
            .collect();
        let roots = resolved.into_iter().filter(|(_, service)| !service.spec.hosts.is_empty());
        let all = roots
            .map(|(resource, mut service)| {
                delegates::merge(&mut service, &delegates, &resource, diagnostics);
                check(&resource, &service, diagnostics);
                Arc::new(service)
            })
            .collect();
        Self { all }
    }

    /// Those that bind `gateway` and are exported to `namespace`.
    ///
    /// A namespace's private ones come first, then those exported to it by name, then the public ones,
    /// each the oldest first: where two claim one host, the first wins.
    pub fn bound<'a>(&'a self, gateway: &'a str, namespace: &'a str) -> Vec<&'a Arc<VirtualService>> {
        let mut found: Vec<(u8, &Arc<VirtualService>)> = self
            .all
            .iter()
            .filter(|service| service.binds(gateway) && service.visibility.includes(namespace))
            .map(|service| (rank(service, namespace), service))
            .collect();
        found.sort_by_key(|(rank, _)| *rank);
        found.into_iter().map(|(_, service)| service).collect()
    }

    /// For each service that wildcard hosts cover, the one whose wildcard is the narrowest.
    pub fn most_specific_wildcard<'a>(
        bound: &[&'a Arc<VirtualService>],
        services: impl Iterator<Item = &'a Arc<Service>>,
    ) -> HashMap<&'a str, &'a Arc<VirtualService>> {
        services
            .filter_map(|service| {
                let mut best: Option<(usize, &Arc<VirtualService>)> = None;
                for candidate in bound {
                    let covering =
                        candidate.spec.hosts.iter().filter(|host| hosts::is_wildcard(host) && hosts::covers(host, &service.host));
                    if let Some(length) = covering.map(String::len).max()
                        && best.is_none_or(|(other, _)| length > other)
                    {
                        best = Some((length, candidate));
                    }
                }
                best.map(|(_, found)| (service.host.as_str(), found))
            })
            .collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.all.iter()
    }
}

fn rank(service: &VirtualService, namespace: &str) -> u8 {
    match &service.visibility {
        ExportTo::Namespaces(_) if service.namespace == namespace => 0,
        ExportTo::Namespaces(_) => 1,
        _ => 2,
    }
}

fn resolve(resource: &Resource<Spec>, mesh: &Mesh) -> VirtualService {
    let namespace = resource.namespace();
    let mut spec = resource.spec.clone();
    let host = |host: &mut String| *host = mesh.qualify(host, namespace);
    let gateways = |list: &mut Vec<String>| {
        for gateway in list {
            *gateway = GatewayRef::parse(gateway, namespace).to_string();
        }
    };
    spec.hosts.iter_mut().for_each(host);
    gateways(&mut spec.gateways);
    if spec.gateways.is_empty() {
        spec.gateways.push(MESH_GATEWAY.to_owned());
    }
    for route in &mut spec.http {
        route.r#match.iter_mut().for_each(|block| gateways(&mut block.gateways));
        route.route.iter_mut().for_each(|to| host(&mut to.destination.host));
        route.mirror.iter_mut().for_each(|to| host(&mut to.host));
        route.mirrors.iter_mut().for_each(|mirror| host(&mut mirror.destination.host));
    }
    for route in &mut spec.tcp {
        route.r#match.iter_mut().for_each(|block| gateways(&mut block.gateways));
        route.route.iter_mut().for_each(|to| host(&mut to.destination.host));
    }
    for route in &mut spec.tls {
        route.r#match.iter_mut().for_each(|block| gateways(&mut block.gateways));
        route.route.iter_mut().for_each(|to| host(&mut to.destination.host));
    }
    VirtualService {
        name: resource.name().to_owned(),
        namespace: namespace.to_owned(),
        visibility: ExportTo::parse(&resource.spec.export_to, namespace, &mesh.default_virtual_service_export_to),
        spec,
        provenance: vec![Provenance::of(resource)],
    }
}

/// Tells about routes that cannot take effect.
fn check(resource: &Resource<Spec>, service: &VirtualService, diagnostics: &mut Vec<Diagnostic>) {
    let reachable = service.spec.http.iter().position(|route| route.r#match.is_empty() || route.r#match.iter().any(matches_everything));
    if let Some(at) = reachable.filter(|at| at + 1 < service.spec.http.len()) {
        let text = format!("http[{at}] matches every request, so the routes after it are never used");
        diagnostics.push(resource.report(Severity::Warning, "spec.http", text).with_code("IST0130"));
    }
    for (at, route) in service.spec.http.iter().enumerate() {
        if does_nothing(route) {
            let text = "the route has no destination of any weight, redirect, directResponse or delegate, and is left out";
            diagnostics.push(resource.report(Severity::Error, &format!("spec.http[{at}]"), text));
        }
    }
}

/// Whether nobody could say where a request goes.
pub(crate) fn does_nothing(route: &HttpRoute) -> bool {
    let nowhere = route.route.is_empty() || (route.route.len() > 1 && route.route.iter().all(|to| to.weight == 0));
    nowhere && route.redirect.is_none() && route.direct_response.is_none() && route.delegate.is_none()
}

fn matches_everything(block: &HttpMatchRequest) -> bool {
    use lateen_model::kinds::common::StringMatch;
    let path = match &block.uri {
        None => true,
        Some(StringMatch::Prefix(prefix)) => prefix == "/",
        Some(StringMatch::Regex(regex)) => regex == ".*",
        _ => false,
    };
    path && *block
        == HttpMatchRequest {
            uri: block.uri.clone(),
            name: block.name.clone(),
            ignore_uri_case: block.ignore_uri_case,
            ..Default::default()
        }
}
