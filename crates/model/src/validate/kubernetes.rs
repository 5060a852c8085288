//! Names of all resources, and what Lateen needs of Services, Deployments and Pods to run them.
use super::checker::Checker;
use super::text;
use crate::kinds::service::{Service, ServiceType};
use crate::kinds::workload::{Container, Deployment, PodSpec};
use crate::resource::AnyResource;
use crate::schema::path::join;

/// The name, the namespace and the labels.
pub(super) fn metadata(resource: &AnyResource, check: &mut Checker<'_>) {
    let meta = resource.meta();
    let is_subdomain =
        |name: &str| name.len() <= 253 && name.split('.').all(text::is_label) && !name.bytes().any(|byte| byte.is_ascii_uppercase());
    if meta.name.is_empty() {
        check.error("metadata", "name is required");
    } else if !is_subdomain(&meta.name) {
        check.error("metadata.name", format!("{:?} is no resource name: lower-case letters, digits, inner hyphens and dots", meta.name));
    }
    if !meta.namespace.is_empty() && (!text::is_label(&meta.namespace) || !is_subdomain(&meta.namespace)) {
        check.error("metadata.namespace", format!("{:?} is no namespace: lower-case letters, digits and inner hyphens", meta.namespace));
    }
    text::labels(check, "metadata.labels", &meta.labels);
}

pub(super) fn service(service: &Service, check: &mut Checker<'_>) {
    if service.r#type == ServiceType::ExternalName {
        match &service.external_name {
            Some(name) => check.expect("spec.externalName", text::fqdn(name)),
            None => check.error("spec", "type ExternalName needs externalName"),
        }
    } else if service.ports.is_empty() && !service.is_headless() {
        check.error("spec", "at least one port is required");
    }
    if let Some(address) = service.cluster_ip.as_deref().filter(|address| *address != "None" && !text::is_ip(address)) {
        check.error("spec.clusterIP", format!("{address:?} is neither an IP address nor None"));
    }
    for (index, port) in service.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        check.expect(&join(&path, "port"), text::port(port.port));
        let before = &service.ports[..index];
        if before.iter().any(|other| other.port == port.port && other.protocol == port.protocol) {
            check.error(&join(&path, "port"), format!("the port {} is given twice", port.port));
        }
        match &port.name {
            None if service.ports.len() > 1 => check.error(&path, "name is required when there are several ports"),
            Some(name) if before.iter().any(|other| other.name.as_ref() == Some(name)) => {
                check.error(&join(&path, "name"), format!("the port name {name:?} is used twice"));
            }
            _ => {}
        }
    }
    text::labels(check, "spec.selector", &service.selector);
}

pub(super) fn deployment(deployment: &Deployment, check: &mut Checker<'_>) {
    let template = &deployment.template;
    let selector = &deployment.selector;
    if selector.match_labels.is_empty() && selector.match_expressions.is_empty() {
        check.error_with("spec", "selector is required", "add selector with matchLabels, the same as the template's labels");
    } else if !selector.matches(&template.metadata.labels) {
        check.error("spec.selector", "does not select the pods of spec.template.metadata.labels");
    }
    text::labels(check, "spec.template.metadata.labels", &template.metadata.labels);
    pod_spec(&template.spec, "spec.template.spec", check);
}

pub(super) fn pod_spec(pod: &PodSpec, path: &str, check: &mut Checker<'_>) {
    if pod.containers.is_empty() {
        check.error(path, "at least one container is required");
    }
    for (field, containers) in [("containers", &pod.containers), ("initContainers", &pod.init_containers)] {
        for (index, found) in containers.iter().enumerate() {
            let at = format!("{path}.{field}[{index}]");
            container(found, &at, check);
            if containers[..index].iter().any(|other| other.name == found.name) {
                check.error(&join(&at, "name"), format!("the container name {:?} is used twice", found.name));
            }
        }
    }
}

fn container(container: &Container, path: &str, check: &mut Checker<'_>) {
    if !text::is_label(&container.name) {
        check.error(path, "name is required: letters, digits and inner hyphens");
    }
    for (index, port) in container.ports.iter().enumerate() {
        check.expect(&format!("{path}.ports[{index}].containerPort"), text::port(port.container_port));
    }
    for (index, variable) in container.env.iter().enumerate() {
        if variable.name.is_empty() || variable.name.contains('=') {
            check.error(&format!("{path}.env[{index}].name"), "the name of a variable is not empty and has no `=`");
        }
    }
}
