//! Endpoints of `/config_dump`: what a cluster has of hosts, and how they are.
use std::collections::HashMap;
use std::net::IpAddr;

use lateen_balance::{Address, Host, Locality};
use lateen_snapshot::Cluster;
use lateen_snapshot::cluster::Discovery;
use lateen_snapshot::compile::file_and_name;
use serde_json::{Map, Value, json};

use super::listeners;

/// The name of a cluster's endpoints: of the service that they are discovered by, or its own.
pub(super) fn name(cluster: &Cluster) -> &str {
    match &cluster.config.discovery {
        Discovery::Eds(service) => file_and_name(service).1,
        _ => &cluster.config.name,
    }
}

/// The hosts of a cluster as a ClusterLoadAssignment. What nothing is done with here is as it was sent.
pub(super) fn assignment(cluster: &Cluster, sent: &Value) -> Value {
    let metadata = metadata(sent);
    let mut localities = Vec::new();
    for (priority, level) in cluster.hosts.priorities.iter().enumerate() {
        for group in level.localities.iter().filter(|group| !group.hosts.is_empty()) {
            let hosts: Vec<Value> = group.hosts.iter().map(|host| endpoint(host, &metadata)).collect();
            let mut shown = json!({"locality": locality(&group.locality), "lb_endpoints": hosts, "load_balancing_weight": group.weight});
            if priority > 0 {
                shown["priority"] = json!(priority);
            }
            localities.push(shown);
        }
    }
    let mut policy = json!({"overprovisioning_factor": cluster.hosts.overprovisioning_percent});
    if cluster.hosts.dropped_per_million > 0 {
        let category = sent.pointer("/policy/drop_overloads/0/category").and_then(Value::as_str).unwrap_or_default();
        let percentage = json!({"numerator": cluster.hosts.dropped_per_million, "denominator": "MILLION"});
        policy["drop_overloads"] = json!([{"category": category, "drop_percentage": percentage}]);
    }
    let mut shown = json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name(cluster),
        "policy": policy,
    });
    if !localities.is_empty() {
        shown["endpoints"] = Value::Array(localities);
    }
    shown
}

/// The metadata that endpoints were sent with, by where they are.
fn metadata(sent: &Value) -> HashMap<String, &Value> {
    let endpoints = list(sent, "endpoints").flat_map(|locality| list(locality, "lb_endpoints"));
    endpoints.filter_map(|endpoint| Some((place(endpoint)?, endpoint.get("metadata")?))).collect()
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// Where an endpoint is, as hosts have it that are there or were resolved from its name.
fn place(endpoint: &Value) -> Option<String> {
    let address = endpoint.pointer("/endpoint/address")?;
    let Some(socket) = address.get("socket_address") else { return Some(address.pointer("/pipe/path")?.as_str()?.to_owned()) };
    let host = socket.get("address")?.as_str()?;
    let host = host.parse().map_or_else(|_| host.to_owned(), |ip: IpAddr| ip.to_string());
    Some(at(&host, socket.get("port_value")?.as_u64()?))
}

fn at(host: &str, port: u64) -> String {
    format!("{host} {port}")
}

fn endpoint(host: &Host, metadata: &HashMap<String, &Value>) -> Value {
    let mut fields = Map::new();
    fields.insert("address".to_owned(), address(&host.address));
    fields.insert("health_check_config".to_owned(), check(host));
    if !host.hostname.is_empty() {
        fields.insert("hostname".to_owned(), json!(*host.hostname));
    }
    let others: Vec<Value> = host.addresses.iter().skip(1).map(|other| json!({"address": listeners::address(*other)})).collect();
    if !others.is_empty() {
        fields.insert("additional_addresses".to_owned(), Value::Array(others));
    }
    let mut shown = json!({"endpoint": fields, "health_status": health(host), "load_balancing_weight": host.weight()});
    let found = match &host.address {
        Address::Socket(address) => {
            let port = u64::from(address.port());
            metadata.get(&at(&address.ip().to_string(), port)).or_else(|| metadata.get(&at(&host.hostname, port)))
        }
        Address::Pipe(path) => metadata.get(&**path),
    };
    if let Some(found) = found {
        shown["metadata"] = (*found).clone();
    }
    shown
}

/// Where and how it is checked, as far as that is not where it serves.
fn check(host: &Host) -> Value {
    let mut fields = Map::new();
    let Some(checked) = &host.checked_at else { return Value::Object(fields) };
    if let Some(Address::Socket(address)) = &checked.address {
        fields.insert("port_value".to_owned(), json!(address.port()));
    }
    if !checked.hostname.is_empty() {
        fields.insert("hostname".to_owned(), json!(*checked.hostname));
    }
    Value::Object(fields)
}

fn locality(locality: &Locality) -> Value {
    let Locality { region, zone, sub_zone } = locality;
    let parts = [("region", region), ("zone", zone), ("sub_zone", sub_zone)];
    let known = parts.into_iter().filter(|(_, part)| !part.is_empty());
    Value::Object(known.map(|(name, part)| (name.to_owned(), json!(**part))).collect())
}

pub(super) fn address(address: &Address) -> Value {
    match address {
        Address::Socket(address) => listeners::address(*address),
        Address::Pipe(path) => json!({"pipe": {"path": **path}}),
    }
}

fn health(host: &Host) -> &'static str {
    match (host.is_healthy(), host.is_degraded()) {
        (true, false) => "HEALTHY",
        (true, true) => "DEGRADED",
        _ => "UNHEALTHY",
    }
}
