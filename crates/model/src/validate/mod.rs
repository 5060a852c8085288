//! What a type cannot say: required fields, ranges, fields that need or exclude each other. One file a kind.
//!
//! The rules are Istio's (pkg/config/validation); the wording is ours. An error keeps the resource out of the mesh, a
//! warning does not.
mod checker;
mod destination_rule;
mod gateway;
mod http_route;
mod kubernetes;
pub mod pattern;
mod peer_authentication;
mod service_entry;
mod text;
mod traffic_policy;
mod unreachable;
mod virtual_service;

use checker::Checker;

use crate::diagnostic::Diagnostic;
use crate::resource::AnyResource;

/// Checks one resource by itself.
pub fn validate(resource: &AnyResource) -> Vec<Diagnostic> {
    let mut check = Checker::new(resource);
    kubernetes::metadata(resource, &mut check);
    match resource {
        AnyResource::VirtualService(resource) => virtual_service::check(resource, &mut check),
        AnyResource::DestinationRule(resource) => destination_rule::check(resource, &mut check),
        AnyResource::Gateway(resource) => gateway::check(&resource.spec, &mut check),
        AnyResource::ServiceEntry(resource) => service_entry::check(resource, &mut check),
        AnyResource::PeerAuthentication(resource) => peer_authentication::check(&resource.spec, &mut check),
        AnyResource::Service(resource) => kubernetes::service(&resource.spec, &mut check),
        AnyResource::Deployment(resource) => kubernetes::deployment(&resource.spec, &mut check),
        AnyResource::Pod(resource) => kubernetes::pod_spec(&resource.spec, "spec", &mut check),
        AnyResource::Namespace(_) | AnyResource::ServiceAccount(_) | AnyResource::ConfigMap(_) | AnyResource::Secret(_) => {}
    }
    check.finish()
}
