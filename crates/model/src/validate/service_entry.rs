//! ServiceEntry: hosts, addresses, ports and endpoints, as its resolution allows.
use super::checker::Checker;
use super::text;
use crate::kinds::ServiceEntry;
use crate::kinds::service_entry::{Resolution, WorkloadEntry};
use crate::protocol::Protocol;
use crate::resource::Resource;
use crate::schema::path::join;

pub(super) fn check(resource: &Resource<ServiceEntry>, check: &mut Checker<'_>) {
    let entry = &resource.spec;
    hosts(entry, check);
    for (index, address) in entry.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{index}]");
        check.expect(&path, text::subnet(address));
        if address.contains('/') && !matches!(entry.resolution, Resolution::None | Resolution::Static) {
            check.error(&path, format!("address blocks work with resolution NONE and STATIC, not {}", entry.resolution));
        }
    }
    ports(entry, check);
    endpoints(entry, check);
    text::export_to(check, &entry.export_to, resource.namespace(), true);
}

fn hosts(entry: &ServiceEntry, check: &mut Checker<'_>) {
    if entry.hosts.is_empty() {
        check.error("spec", "hosts is required");
    }
    for (index, host) in entry.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        if host == "*" {
            check.error(&path, "the host `*` would take every request; name the hosts");
            continue;
        }
        check.expect(&path, text::wildcard_host(host));
        if text::is_partial_wildcard(host) && entry.resolution != Resolution::DynamicDns {
            check.warning(&path, "a wildcard covers whole parts of a name; write *.example.com");
        }
        let by_dns = matches!(entry.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        if by_dns && entry.endpoints.is_empty() && entry.workload_selector.is_none() && host.starts_with('*') {
            check.error_with(
                &path,
                format!("a wildcard cannot be resolved (resolution {})", entry.resolution),
                "give endpoints, or resolution: NONE",
            );
        }
        if entry.resolution == Resolution::DynamicDns && !host.starts_with('*') {
            check.error(&path, "resolution DYNAMIC_DNS is for wildcards");
        }
    }
}

fn ports(entry: &ServiceEntry, check: &mut Checker<'_>) {
    for (index, port) in entry.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        check.expect(&path, text::port(port.number));
        if !text::is_label(&port.name) {
            check.error(&join(&path, "name"), format!("{:?} is no port name: letters, digits and inner hyphens", port.name));
        }
        let before = &entry.ports[..index];
        if before.iter().any(|other| other.name == port.name) {
            check.error(&join(&path, "name"), format!("the port name {:?} is used twice", port.name));
        }
        if before.iter().any(|other| other.number == port.number) {
            check.error(&join(&path, "number"), format!("the port {} is given twice", port.number));
        }
        if let Some(name) = port.protocol.as_deref().filter(|name| Protocol::from_name(name).is_none()) {
            let known = ["HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "MYSQL", "REDIS", "TCP", "TLS", "UDP"];
            check.expect(&join(&path, "protocol"), text::one_of(name, &known));
        }
    }
    let told_apart = |protocol: &Option<String>| {
        protocol.as_deref().and_then(Protocol::from_name).is_some_and(|protocol| protocol.is_http() || protocol.is_tls())
    };
    if entry.resolution != Resolution::None && entry.hosts.len() > 1 && entry.ports.iter().any(|port| !told_apart(&port.protocol)) {
        check.error("spec.hosts", "several hosts on one TCP port cannot be told apart; write one ServiceEntry for each");
    }
}

fn endpoints(entry: &ServiceEntry, check: &mut Checker<'_>) {
    if entry.workload_selector.is_some() {
        if !entry.endpoints.is_empty() {
            check.error_with("spec.workloadSelector", "workloadSelector cannot stand beside endpoints", "keep one of them");
        }
        if entry.resolution == Resolution::None {
            check.warning("spec.workloadSelector", "has no effect with resolution NONE");
        }
    }
    match entry.resolution {
        Resolution::None if !entry.endpoints.is_empty() => {
            check.error_with("spec.endpoints", "resolution NONE takes no endpoints", "write resolution: STATIC or DNS");
        }
        Resolution::DynamicDns => {
            if !entry.endpoints.is_empty() || !entry.addresses.is_empty() {
                check.error("spec.resolution", "resolution DYNAMIC_DNS takes no endpoints and no addresses");
            }
            check.error_with(
                "spec.resolution",
                "DYNAMIC_DNS is not supported yet",
                "write resolution: NONE, or name the hosts with resolution: DNS",
            );
        }
        Resolution::DnsRoundRobin if entry.endpoints.len() > 1 => {
            check.error("spec.endpoints", "resolution DNS_ROUND_ROBIN takes at most one endpoint");
        }
        Resolution::Static if entry.endpoints.is_empty() && entry.workload_selector.is_none() => {
            check.warning("spec.resolution", "resolution STATIC without endpoints or workloadSelector reaches nothing");
        }
        _ => {}
    }
    for (index, endpoint) in entry.endpoints.iter().enumerate() {
        workload_entry(entry, endpoint, &format!("spec.endpoints[{index}]"), check);
    }
}

fn workload_entry(entry: &ServiceEntry, endpoint: &WorkloadEntry, path: &str, check: &mut Checker<'_>) {
    let at = join(path, "address");
    match endpoint.address.as_deref() {
        None if endpoint.network.is_none() => check.error(path, "address is required"),
        None => {}
        Some(address) if address.starts_with("unix://") => {
            check.error(&at, "unix sockets as endpoints are not supported yet");
        }
        Some(address) if text::is_ip(address) => {}
        Some(address) if entry.resolution == Resolution::Static => {
            check.error_with(&at, format!("{address:?} is no IP address, which resolution STATIC needs"), "write resolution: DNS");
        }
        Some(address) => check.expect(&at, text::fqdn(address)),
    }
    for (name, number) in &endpoint.ports {
        let at = join(&join(path, "ports"), name);
        check.expect(&at, text::port(*number));
        if !entry.ports.iter().any(|port| port.name == *name) {
            check.error(&at, format!("the ServiceEntry has no port named {name:?}"));
        }
    }
    text::labels(check, &join(path, "labels"), &endpoint.labels);
}
