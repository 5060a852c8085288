//! The pages by path, with Istio's paths and, where it has one, Istio's form.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use lateen_core::utc::rfc3339_millis;
use lateen_model::Kind;
use lateen_translate::world::services::{Health, Service};
use lateen_xds::client::Mode;
use lateen_xds::server::{Connection, TypeStatus};
use lateen_xds::types::{CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, short_name};
use serde_json::{Value, json};

use super::{Context, Page, dump};
use crate::backend::Client;
use crate::metrics::Gauges;
use crate::snapshot::Snapshot;

type Stream = Arc<Connection<Client, Arc<Snapshot>>>;

const INDEX: [(&str, &str); 10] = [
    ("/debug/syncz", "what every proxy was last sent, accepted and refused"),
    ("/debug/adsz", "connected proxies and their subscriptions"),
    ("/debug/registryz", "services"),
    ("/debug/endpointz", "endpoints of services"),
    ("/debug/configz", "configuration in force, with file and line"),
    ("/debug/config_dump?proxyID=POD.NAMESPACE", "resources of one proxy, in Envoy's form"),
    ("/debug/provenance?proxyID=POD.NAMESPACE", "which configuration each resource of one proxy comes from"),
    ("/debug/push_status", "problems found while building the current world"),
    ("/debug/diagnostics", "messages about the configuration"),
    ("/debug/mesh", "mesh settings in force"),
];

/// Makes the page of a path.
pub(super) fn page(context: &Context, path: &str, query: &str) -> Page {
    match path {
        "/ready" => return ready(context),
        "/version" => return Page::Json(version(context)),
        "/metrics" => return Page::Metrics(context.metrics.text(context.version, &gauges(context))),
        "/debug" | "/debug/" | "/debug/list" => {
            return Page::Text(INDEX.iter().map(|(path, what)| format!("{path:42} {what}\n")).collect());
        }
        "/debug/syncz" => return Page::Json(streams(context).iter().map(|s| sync_status(context, s)).collect()),
        "/debug/adsz" => return Page::Json(ads(context)),
        _ => {}
    }
    let Some(snapshot) = context.current.borrow().clone() else {
        return Page::Refused(StatusCode::SERVICE_UNAVAILABLE, "the configuration has not been read completely yet".into());
    };
    match path {
        "/debug/registryz" => Page::Json(snapshot.world.services().iter().map(|s| service(s)).collect()),
        "/debug/endpointz" => Page::Json(snapshot.world.services().iter().map(|s| endpoints(s)).collect()),
        "/debug/configz" => Page::Json(snapshot.resources.iter().filter(|r| r.kind() != Kind::Secret).map(configuration).collect()),
        "/debug/push_status" => Page::Json(push_status(&snapshot)),
        "/debug/diagnostics" => Page::Json(diagnostics(&snapshot)),
        "/debug/mesh" => Page::Text(format!("{:#?}\n", snapshot.world.mesh)),
        "/debug/config_dump" => of_proxy(context, query, |stream| dump::config_dump(context, &snapshot, stream)),
        "/debug/provenance" => of_proxy(context, query, |stream| dump::provenance(&snapshot, stream)),
        _ => Page::Refused(StatusCode::NOT_FOUND, format!("no page {path}; see /debug/list")),
    }
}

fn ready(context: &Context) -> Page {
    if context.current.borrow().is_some() {
        Page::Text("ready\n".into())
    } else {
        Page::Refused(StatusCode::SERVICE_UNAVAILABLE, "the configuration has not been read completely yet".into())
    }
}

fn version(context: &Context) -> Value {
    json!({"version": context.version, "component": "pilot", "id": context.identifier})
}

fn streams(context: &Context) -> Vec<Stream> {
    context.streams.connections()
}

/// The stream of the proxy that `query` names, by node id or as `pod.namespace`.
fn of_proxy(context: &Context, query: &str, make: impl FnOnce(&Stream) -> Page) -> Page {
    let Some(wanted) = parameter(query, "proxyID") else {
        return Page::Refused(StatusCode::BAD_REQUEST, "say which proxy: ?proxyID=POD.NAMESPACE; see /debug/adsz".into());
    };
    let named = |s: &&Stream| s.node_id == wanted || format!("{}.{}", s.proxy.view.name, s.proxy.view.namespace) == wanted;
    // After a reconnect the old stream may linger for a moment; the newest is the true one.
    match streams(context).iter().rev().find(named) {
        Some(stream) => make(stream),
        None => Page::Refused(StatusCode::NOT_FOUND, format!("no proxy `{wanted}` is connected; see /debug/adsz")),
    }
}

/// A parameter of a query, with `%xx` decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let (_, value) = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn gauges(context: &Context) -> Gauges {
    let current = context.current.borrow().clone();
    let mut gauges = Gauges { connections: streams(context).len(), ..Gauges::default() };
    if let Some(snapshot) = current {
        let services = snapshot.world.services();
        gauges.services = services.len();
        gauges.virtual_services = snapshot.resources.of_kind(Kind::VirtualService).count();
        gauges.endpoints_missing = services.iter().filter(|s| s.has_selector && s.endpoints.is_empty()).count();
        for diagnostic in &snapshot.diagnostics {
            *gauges.diagnostics.entry(diagnostic.severity.to_string()).or_default() += 1;
        }
    }
    let expiry = context.authority.as_ref().map(|ca| ca.expiry());
    gauges.root_expiry_seconds = expiry.map(|at| at.duration_since(SystemTime::now()).map_or(0.0, |d| d.as_secs_f64()));
    gauges
}

/// Istio's SyncStatus, and per type what Istio's leaves out.
fn sync_status(context: &Context, stream: &Stream) -> Value {
    let types: BTreeMap<String, TypeStatus> = stream.types().into_iter().map(|t| (t.type_url.clone(), t)).collect();
    let nonce = |type_url: &str, acked: bool| {
        let status = types.get(type_url);
        let entry = status.and_then(|t| if acked { t.acked.as_ref() } else { t.sent.as_ref() });
        entry.map_or("", |s| s.nonce.as_str()).to_owned()
    };
    let view = &stream.proxy.view;
    json!({
        "cluster_id": view.cluster_id,
        "proxy": format!("{}.{}", view.name, view.namespace),
        "proxy_type": if view.is_sidecar() { "sidecar" } else { "router" },
        "istio_version": context.version,
        "cluster_sent": nonce(CLUSTER, false), "cluster_acked": nonce(CLUSTER, true),
        "listener_sent": nonce(LISTENER, false), "listener_acked": nonce(LISTENER, true),
        "route_sent": nonce(ROUTE, false), "route_acked": nonce(ROUTE, true),
        "endpoint_sent": nonce(ENDPOINT, false), "endpoint_acked": nonce(ENDPOINT, true),
        "extensionconfig_sent": nonce(EXTENSION, false), "extensionconfig_acked": nonce(EXTENSION, true),
        "types": types.values().map(type_status).collect::<Vec<_>>(),
    })
}

/// SYNCED, STALE, NOT SENT as `istioctl proxy-status` says them, and REJECTED.
fn state(status: &TypeStatus) -> &'static str {
    match (&status.sent, &status.acked, &status.nacked) {
        // It reconnected with all it needs.
        (None, ..) if status.holds > 0 => "SYNCED",
        (None, ..) => "NOT SENT",
        (Some(_), _, Some(_)) => "REJECTED",
        (Some(sent), Some(acked), None) if sent.nonce == acked.nonce => "SYNCED",
        _ => "STALE",
    }
}

fn type_status(status: &TypeStatus) -> Value {
    let entry = |s: &lateen_xds::server::Sent| json!({"nonce": s.nonce, "at": rfc3339_millis(s.at)});
    json!({
        "type": short_name(&status.type_url),
        "type_url": status.type_url,
        "state": state(status),
        "wildcard": status.names.wildcard,
        "subscribed": status.names.names.len(),
        "held": status.holds,
        "sent": status.sent.as_ref().map(entry),
        "acked": status.acked.as_ref().map(entry),
        "rejected": status.nacked.as_ref().map(|n| json!({"nonce": n.nonce, "at": rfc3339_millis(n.at), "message": n.message})),
    })
}

fn ads(context: &Context) -> Value {
    let clients: Vec<Value> = streams(context)
        .iter()
        .map(|stream| {
            let watches: serde_json::Map<String, Value> = stream
                .types()
                .into_iter()
                .map(|t| {
                    let star = t.names.wildcard.then(|| "*".to_owned());
                    (t.type_url, star.into_iter().chain(t.names.names).map(Value::String).collect())
                })
                .collect();
            json!({
                "connectionId": format!("{}-{}", stream.node_id, stream.id),
                "connectedAt": rfc3339_millis(stream.since),
                "address": stream.proxy.remote.map(|r| r.to_string()),
                "identity": stream.proxy.identity.as_ref().map(ToString::to_string),
                "mode": match stream.mode { Mode::Delta => "delta", Mode::Sotw => "state of the world" },
                "labels": stream.proxy.view.labels,
                "watches": watches,
            })
        })
        .collect();
    json!({"totalClients": clients.len(), "clients": clients})
}

fn service(service: &Service) -> Value {
    json!({
        "hostname": service.host,
        "name": service.name,
        "namespace": service.namespace,
        "registry": format!("{:?}", service.registry),
        "resolution": format!("{:?}", service.resolution),
        "addresses": service.addresses,
        "ports": service.ports.iter().map(|p| json!({"port": p.number, "name": p.name, "protocol": format!("{:?}", p.protocol)})).collect::<Vec<_>>(),
        "meshExternal": service.mesh_external,
        "endpoints": service.endpoints.len(),
        "origin": format!("{}:{}", service.origin.file, service.origin.line()),
    })
}

fn endpoints(service: &Service) -> Value {
    let list = service.endpoints.iter().map(|e| {
        json!({
            "addresses": e.addresses,
            "port": e.port,
            "servicePort": e.service_port,
            "healthy": e.health == Health::Healthy,
            "serviceAccount": format!("{}/{}", e.namespace, e.service_account),
            "workload": e.workload,
            "mutualTls": e.mutual_tls,
            "locality": e.locality,
            "labels": e.labels,
        })
    });
    json!({"service": service.host, "endpoints": list.collect::<Vec<_>>()})
}

fn configuration(resource: &lateen_model::AnyResource) -> Value {
    let origin = resource.origin();
    json!({
        "kind": resource.kind().as_str(),
        "namespace": resource.meta().namespace,
        "name": resource.meta().name,
        "origin": format!("{}:{}", origin.file, origin.line()),
        "resource": resource.raw(),
    })
}

fn push_status(snapshot: &Snapshot) -> Value {
    let problems: Vec<String> = snapshot.world.diagnostics.iter().map(ToString::to_string).collect();
    json!({"world": snapshot.number, "builtAt": rfc3339_millis(snapshot.built_at), "problems": problems})
}

fn diagnostics(snapshot: &Snapshot) -> Value {
    json!({
        "world": snapshot.number,
        "errors": snapshot.diagnostics.iter().filter(|d| d.is_error()).count(),
        "diagnostics": snapshot.diagnostics,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_xds::server::{Nacked, Names, Sent};

    #[test]
    fn parameters_are_decoded_and_garbage_is_not() {
        assert_eq!(parameter("a=1&proxyID=pod%2Ens", "proxyID").as_deref(), Some("pod.ns"));
        assert_eq!(parameter("proxyID=%zz", "proxyID"), None);
        assert_eq!(parameter("proxyID=%f", "proxyID"), None);
        assert_eq!(parameter("proxyID=%ff", "proxyID"), None);
        assert_eq!(parameter("", "proxyID"), None);
    }

    #[test]
    fn a_type_is_synced_only_when_its_last_response_was_accepted() {
        let at = SystemTime::now();
        let sent = |nonce: &str| Some(Sent { nonce: nonce.into(), at });
        let status = |sent, acked, nacked| TypeStatus { type_url: LISTENER.into(), names: Names::default(), holds: 0, sent, acked, nacked };
        assert_eq!(state(&TypeStatus { holds: 3, ..status(None, None, None) }), "SYNCED", "reconnected with all of it");
        let refused = Some(Nacked { nonce: "1".into(), at, message: "no".into() });
        assert_eq!(state(&status(None, None, None)), "NOT SENT");
        assert_eq!(state(&status(sent("1"), None, None)), "STALE");
        assert_eq!(state(&status(sent("2"), sent("1"), None)), "STALE");
        assert_eq!(state(&status(sent("2"), sent("2"), None)), "SYNCED");
        assert_eq!(state(&status(sent("2"), sent("2"), refused)), "REJECTED");
    }
}
