//! The resources of one proxy: in the form of Envoy's `config_dump`, and with where they come from.
use std::sync::Arc;

use http::StatusCode;
use lateen_proto::any::pack;
use lateen_proto::envoy::admin::v3 as admin;
use lateen_proto::{Any, Timestamp};
use lateen_xds::server::{Connection, Names};
use lateen_xds::types::{CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, short_name};
use serde_json::{Value, json};

use super::{Context, Page};
use crate::backend::Client;
use crate::resources::{self, Entry};
use crate::snapshot::Snapshot;

/// What the proxy is subscribed to, generated from the current world.
fn entries(snapshot: &Snapshot, stream: &Connection<Client, Arc<Snapshot>>) -> Vec<(String, Vec<Arc<Entry>>)> {
    let everything = Names { wildcard: true, ..Names::default() };
    let mut types: Vec<(String, Names)> = stream.types().into_iter().map(|t| (t.type_url, t.names)).collect();
    if types.is_empty() {
        types = [CLUSTER, LISTENER].map(|t| (t.to_owned(), everything.clone())).into();
    }
    types.sort_by_key(|(t, _)| lateen_xds::types::rank(t));
    types
        .into_iter()
        // Keys and certificates are nobody's business here.
        .filter(|(type_url, _)| type_url != SECRET)
        .map(|(type_url, names)| {
            let made = resources::entries(snapshot, &stream.proxy.view, &type_url, &names);
            (type_url, made)
        })
        .collect()
}

/// Envoy's `ConfigDump` message as JSON.
pub(super) fn config_dump(context: &Context, snapshot: &Snapshot, stream: &Connection<Client, Arc<Snapshot>>) -> Page {
    let version = snapshot.number.to_string();
    let at = Some(Timestamp::from(snapshot.built_at));
    let made = entries(snapshot, stream);
    let of = |wanted: &'static str| made.iter().filter(move |(t, _)| t == wanted).flat_map(|(_, list)| list.iter());
    let clusters = admin::ClustersConfigDump {
        version_info: version.clone(),
        dynamic_active_clusters: of(CLUSTER)
            .map(|e| admin::clusters_config_dump::DynamicCluster {
                version_info: e.resource.version.clone(),
                cluster: Some(e.resource.body.clone()),
                last_updated: at,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let listeners = admin::ListenersConfigDump {
        version_info: version,
        dynamic_listeners: of(LISTENER)
            .map(|e| admin::listeners_config_dump::DynamicListener {
                name: e.resource.name.clone(),
                active_state: Some(admin::listeners_config_dump::DynamicListenerState {
                    version_info: e.resource.version.clone(),
                    listener: Some(e.resource.body.clone()),
                    last_updated: at,
                }),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let routes = admin::RoutesConfigDump {
        dynamic_route_configs: of(ROUTE)
            .map(|e| admin::routes_config_dump::DynamicRouteConfig {
                version_info: e.resource.version.clone(),
                route_config: Some(e.resource.body.clone()),
                last_updated: at,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let endpoints = admin::EndpointsConfigDump {
        dynamic_endpoint_configs: of(ENDPOINT)
            .map(|e| admin::endpoints_config_dump::DynamicEndpointConfig {
                version_info: e.resource.version.clone(),
                endpoint_config: Some(e.resource.body.clone()),
                last_updated: at,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let configs: Vec<Any> = vec![pack(&clusters), pack(&listeners), pack(&routes), pack(&endpoints)];
    match context.codec.write(&admin::ConfigDump { configs }) {
        Ok(json) => Page::Json(json),
        Err(error) => Page::Refused(StatusCode::INTERNAL_SERVER_ERROR, format!("the dump cannot be written as JSON: {error}")),
    }
}

/// Each resource with the configuration that shaped it.
pub(super) fn provenance(snapshot: &Snapshot, stream: &Connection<Client, Arc<Snapshot>>) -> Page {
    let list: Vec<Value> = entries(snapshot, stream)
        .into_iter()
        .flat_map(|(type_url, list)| list.into_iter().map(move |entry| (short_name(&type_url).to_owned(), entry)))
        .map(|(kind, entry)| {
            let from =
                entry.provenance.iter().map(|p| json!({"kind": p.kind, "namespace": p.namespace, "name": p.name, "origin": p.place()}));
            json!({"type": kind, "name": entry.resource.name, "version": entry.resource.version, "from": from.collect::<Vec<_>>()})
        })
        .collect();
    Page::Json(json!({"proxy": stream.node_id, "world": snapshot.number, "resources": list}))
}
