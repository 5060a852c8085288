//! Endpoints of `/config_dump`: as they arrived, with what they have become.
use std::net::SocketAddr;

use lateen_balance::{Address, Host};
use lateen_snapshot::Snapshot;
use serde_json::{Value, json};

/// Overprovisioning where nobody says otherwise (Envoy `overprovisioning_factor`).
const OVERPROVISIONING: u32 = 140;

/// Adds defaults and the health of this moment to a ClusterLoadAssignment.
pub(super) fn complete(assignment: &mut Value, snapshot: &Snapshot) {
    let name = assignment.get("cluster_name").and_then(Value::as_str).unwrap_or_default();
    let hosts: Vec<&Host> = snapshot.cluster_named(name).into_iter().flat_map(|(_, c)| c.hosts.hosts()).map(|h| &**h).collect();
    let Value::Object(fields) = assignment else { return };
    let policy = fields.entry("policy").or_insert_with(|| json!({}));
    absent(policy, "overprovisioning_factor", json!(OVERPROVISIONING));
    let localities = fields.get_mut("endpoints").and_then(Value::as_array_mut);
    for locality in localities.into_iter().flatten() {
        absent(locality, "locality", json!({}));
        absent(locality, "load_balancing_weight", json!(0));
        let endpoints = locality.get_mut("lb_endpoints").and_then(Value::as_array_mut);
        for endpoint in endpoints.into_iter().flatten() {
            absent(endpoint, "load_balancing_weight", json!(1));
            let health = find(&hosts, endpoint).map(health);
            let Value::Object(fields) = endpoint else { continue };
            fields.insert("health_status".to_owned(), json!(health.unwrap_or("HEALTHY")));
        }
    }
}

fn absent(value: &mut Value, key: &str, default: Value) {
    if let Value::Object(fields) = value {
        fields.entry(key).or_insert(default);
    }
}

/// The host that an endpoint became; none where its name is resolved.
fn find<'a>(hosts: &[&'a Host], endpoint: &Value) -> Option<&'a Host> {
    let address = endpoint.pointer("/endpoint/address")?;
    let wanted = match address.get("socket_address") {
        Some(socket) => {
            let (ip, port) = (socket.get("address")?.as_str()?.parse().ok()?, u16::try_from(socket.get("port_value")?.as_u64()?).ok()?);
            Address::Socket(SocketAddr::new(ip, port))
        }
        None => Address::Pipe(address.pointer("/pipe/path")?.as_str()?.into()),
    };
    hosts.iter().copied().find(|host| host.address == wanted)
}

fn health(host: &Host) -> &'static str {
    match (host.is_healthy(), host.is_degraded()) {
        (true, false) => "HEALTHY",
        (true, true) => "DEGRADED",
        _ => "UNHEALTHY",
    }
}
