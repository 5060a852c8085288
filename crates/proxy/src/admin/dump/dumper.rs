//! The dumps, one for each kind of resource.
use std::collections::HashMap;

use lateen_core::utc::rfc3339_millis;
use lateen_proto::json::{Codec, InvalidJson};
use lateen_proto::{Any, any};
use lateen_snapshot::Cluster;
use lateen_snapshot::cluster::Discovery;
use lateen_snapshot::compile::{Failure, Kind, KnownSecret, Listed, Origin, Record, SecretKey, SecretSource};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::redact::{SECRET, redact, secret};
use super::{endpoints, typed};
use crate::main_thread::Main;

const ADMIN: &str = "type.googleapis.com/envoy.admin.v3.";
const SCOPE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";

/// Writes what is kept of each kind.
pub(super) struct Dumper {
    codec: Codec,
    names: Option<Regex>,
    started: String,
}

impl Dumper {
    /// Of resources whose name matches, if a pattern is given.
    pub(super) fn new(names: Option<Regex>, main: &Main) -> Self {
        Self { codec: Codec::new(), names, started: rfc3339_millis(main.started_at) }
    }

    fn body(&self, body: &Any) -> Value {
        match self.shown_bytes(body) {
            Ok(value) => typed(&body.type_url, value),
            // A refused resource may be no message at all; its type still helps.
            Err(e) => json!({"@type": body.type_url, "error": e.to_string()}),
        }
    }

    /// Without its type, as a part of another message.
    fn content(&self, body: &Any) -> Option<Value> {
        self.shown_bytes(body).ok()
    }

    fn shown_bytes(&self, body: &Any) -> Result<Value, InvalidJson> {
        let name = any::name_of(&body.type_url);
        Ok(redact(self.codec.schema(), name, self.codec.show_bytes(name, &body.value)?))
    }

    fn shows(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.is_match(name))
    }

    fn shown<'a>(&self, list: Vec<Listed<'a>>) -> Vec<Listed<'a>> {
        let mut list = list;
        list.retain(|l| self.shows(l.name));
        list.sort_by_key(|l| l.name);
        list
    }

    /// `{ <field>: body, last_updated, version_info }`
    fn record(&self, field: &str, record: &Record) -> Map<String, Value> {
        let mut fields = Map::new();
        if !record.version.is_empty() {
            fields.insert("version_info".to_owned(), json!(*record.version));
        }
        fields.insert(field.to_owned(), self.body(&record.body));
        fields.insert("last_updated".to_owned(), json!(rfc3339_millis(record.updated)));
        fields
    }

    fn failure(&self, failure: &Failure) -> Value {
        json!({
            "failed_configuration": self.body(&failure.body),
            "last_update_attempt": rfc3339_millis(failure.at),
            "details": failure.reason,
            "version_info": *failure.version,
        })
    }

    fn status(&self, fields: &mut Map<String, Value>, failure: Option<&Failure>) {
        fields.insert("client_status".to_owned(), json!(if failure.is_some() { "NACKED" } else { "ACKED" }));
        if let Some(failure) = failure {
            fields.insert("error_state".to_owned(), self.failure(failure));
        }
    }

    /// What was refused was told the control plane, which is the graver; files are no matter of its.
    fn files(&self, fields: &mut Map<String, Value>, unusable: Option<&Failure>) {
        if let Some(failure) = unusable {
            fields.entry("error_state").or_insert_with(|| self.failure(failure));
        }
    }

    pub(super) fn bootstrap(&self, main: &Main) -> Value {
        let encoded = &main.bootstrap.encoded;
        let mut body = self.content(encoded).unwrap_or_default();
        if let Some(Value::Object(others)) = body.get_mut("static_resources") {
            // They are kept once, as resources.
            let compiler = main.compiler();
            let mut fields = Map::new();
            for (field, kind) in [("listeners", Kind::Listener), ("clusters", Kind::Cluster)] {
                let fixed = compiler.list(kind).into_iter().filter(|l| l.origin == Origin::Static);
                let bodies = fixed.filter_map(|l| l.active.or(l.warming)).map(|record| &record.body);
                let bodies: Vec<Value> = bodies.filter_map(|body| self.content(body)).collect();
                if !bodies.is_empty() {
                    fields.insert(field.to_owned(), Value::Array(bodies));
                }
            }
            fields.append(others);
            *others = fields;
        }
        json!({"@type": format!("{ADMIN}BootstrapConfigDump"), "bootstrap": body, "last_updated": self.started})
    }

    pub(super) fn clusters(&self, main: &Main) -> Value {
        let compiler = main.compiler();
        let (mut fixed, mut active, mut warming) = (Vec::new(), Vec::new(), Vec::new());
        let mut version = "";
        let list = compiler.list(Kind::Cluster);
        for entry in self.shown(list) {
            for (record, to) in [(entry.active, &mut active), (entry.warming, &mut warming)] {
                let Some(record) = record else { continue };
                let mut fields = self.record("cluster", record);
                if entry.origin == Origin::Static {
                    fixed.push(Value::Object(fields));
                    continue;
                }
                version = &record.version;
                self.status(&mut fields, entry.failure);
                self.files(&mut fields, entry.unusable_files.as_ref());
                to.push(Value::Object(fields));
            }
            if let (None, None, Some(failure)) = (entry.active, entry.warming, entry.failure) {
                let mut fields = Map::new();
                self.status(&mut fields, Some(failure));
                warming.push(Value::Object(fields));
            }
        }
        let lists = [("static_clusters", fixed), ("dynamic_active_clusters", active), ("dynamic_warming_clusters", warming)];
        dump("ClustersConfigDump", version, lists)
    }

    pub(super) fn listeners(&self, main: &Main) -> Value {
        let compiler = main.compiler();
        let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
        let mut version = "";
        for entry in self.shown(compiler.list(Kind::Listener)) {
            if entry.origin == Origin::Static {
                fixed.extend(entry.active.or(entry.warming).map(|r| Value::Object(self.record("listener", r))));
                continue;
            }
            let mut fields = Map::new();
            fields.insert("name".to_owned(), json!(entry.name));
            for (state, record) in [("active_state", entry.active), ("warming_state", entry.warming)] {
                if let Some(record) = record {
                    version = &record.version;
                    fields.insert(state.to_owned(), Value::Object(self.record("listener", record)));
                }
            }
            self.status(&mut fields, entry.failure);
            self.files(&mut fields, entry.unusable_files.as_ref());
            dynamic.push(Value::Object(fields));
        }
        dump("ListenersConfigDump", version, [("static_listeners", fixed), ("dynamic_listeners", dynamic)])
    }

    /// Discovered routes, and those inside of listeners.
    pub(super) fn routes(&self, main: &Main) -> Value {
        let compiler = main.compiler();
        let mut dynamic = Vec::new();
        for entry in self.shown(compiler.list(Kind::Route)) {
            let Some(record) = entry.active.or(entry.warming) else { continue };
            let mut fields = self.record("route_config", record);
            let mut found: Vec<Value> = compiler.discovered_hosts(entry.name).filter_map(|body| self.content(body)).collect();
            if let Some(Value::Object(config)) = fields.get_mut("route_config").filter(|_| !found.is_empty())
                && let Value::Array(own) = config.entry("virtual_hosts").or_insert_with(|| Value::Array(Vec::new()))
            {
                own.append(&mut found);
            }
            self.status(&mut fields, entry.failure);
            dynamic.push(Value::Object(fields));
        }
        let mut fixed = Vec::new();
        for entry in compiler.list(Kind::Listener) {
            let Some(record) = entry.active else { continue };
            let mut found = Vec::new();
            below(&self.body(&record.body), "route_config", "virtual_hosts", &mut found);
            for config in found {
                let name = config.get("name").and_then(Value::as_str).unwrap_or_default();
                if self.shows(name) {
                    let config = typed("type.googleapis.com/envoy.config.route.v3.RouteConfiguration", config);
                    fixed.push(json!({"route_config": config, "last_updated": rfc3339_millis(record.updated)}));
                }
            }
        }
        dump("RoutesConfigDump", "", [("static_route_configs", fixed), ("dynamic_route_configs", dynamic)])
    }

    /// Scopes of routes: those that listeners list, and those that are discovered.
    pub(super) fn scopes(&self, main: &Main) -> Value {
        let compiler = main.compiler();
        let (mut inline, mut dynamic) = (Vec::new(), Vec::new());
        for entry in compiler.list(Kind::Listener) {
            let Some(record) = entry.active else { continue };
            let mut found = Vec::new();
            below(&self.body(&record.body), "scoped_routes", "scope_key_builder", &mut found);
            for config in found {
                let name = config.get("name").and_then(Value::as_str).unwrap_or_default();
                if !self.shows(name) {
                    continue;
                }
                match config.pointer("/scoped_route_configurations_list/scoped_route_configurations").and_then(Value::as_array) {
                    Some(all) => {
                        let all: Vec<Value> = all.iter().map(|scope| typed(SCOPE, scope.clone())).collect();
                        inline.push(json!({"name": name, "scoped_route_configs": all, "last_updated": rfc3339_millis(record.updated)}));
                    }
                    None => dynamic.push(self.discovered_scopes(name, compiler.list(Kind::Scope))),
                }
            }
        }
        let lists = [("inline_scoped_route_configs", inline), ("dynamic_scoped_route_configs", dynamic)];
        dump("ScopedRoutesConfigDump", "", lists)
    }

    fn discovered_scopes(&self, name: &str, mut list: Vec<Listed<'_>>) -> Value {
        list.sort_by_key(|scope| scope.name);
        let records: Vec<&Record> = list.iter().filter_map(|scope| scope.active.or(scope.warming)).collect();
        let mut fields = Map::new();
        fields.insert("name".to_owned(), json!(name));
        if let Some(last) = records.iter().max_by_key(|record| record.updated) {
            fields.insert("version_info".to_owned(), json!(*last.version));
            fields.insert("last_updated".to_owned(), json!(rfc3339_millis(last.updated)));
        }
        let bodies: Vec<Value> = records.iter().map(|record| self.body(&record.body)).collect();
        fields.insert("scoped_route_configs".to_owned(), Value::Array(bodies));
        self.status(&mut fields, list.iter().find_map(|scope| scope.failure));
        Value::Object(fields)
    }

    /// Filters that are discovered.
    pub(super) fn extensions(&self, main: &Main) -> Option<Value> {
        let compiler = main.compiler();
        let mut filters = Vec::new();
        for entry in self.shown(compiler.list(Kind::Extension)) {
            let Some(record) = entry.active else { continue };
            let mut fields = self.record("ecds_filter", record);
            self.status(&mut fields, entry.failure);
            filters.push(Value::Object(fields));
        }
        (!filters.is_empty()).then(|| dump("EcdsConfigDump", "", [("ecds_filters", filters)]))
    }

    /// What each cluster in use has of hosts.
    pub(super) fn endpoints(&self, main: &Main) -> Value {
        let (snapshot, compiler) = (main.snapshot(), main.compiler());
        let by_name = |kind: Kind| compiler.list(kind).into_iter().map(|l| (l.name, l)).collect::<HashMap<_, _>>();
        let (clusters, discovered) = (by_name(Kind::Cluster), by_name(Kind::Endpoint));
        let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
        let mut shown: Vec<&Cluster> = snapshot.clusters.iter().flatten().map(|c| &**c).collect();
        shown.retain(|cluster| self.shows(endpoints::name(cluster)));
        shown.sort_by_key(|cluster| &cluster.config.name);
        for cluster in shown {
            let own = clusters.get(&*cluster.config.name);
            let found = if let Discovery::Eds(service) = &cluster.config.discovery { discovered.get(&**service) } else { None };
            let source = found.or(own).and_then(|l| l.active);
            let sent = source.and_then(|record| self.content(&record.body)).unwrap_or_default();
            let sent = if found.is_some() { &sent } else { &sent["load_assignment"] };
            let mut fields = Map::new();
            fields.insert("endpoint_config".to_owned(), endpoints::assignment(cluster, sent));
            if own.is_none_or(|l| l.origin == Origin::Static) {
                fixed.push(Value::Object(fields));
                continue;
            }
            if let (Some(found), Some(record)) = (found, source) {
                fields.insert("version_info".to_owned(), json!(*record.version));
                fields.insert("last_updated".to_owned(), json!(rfc3339_millis(record.updated)));
                self.status(&mut fields, found.failure);
            }
            dynamic.push(Value::Object(fields));
        }
        dump("EndpointsConfigDump", "", [("static_endpoint_configs", fixed), ("dynamic_endpoint_configs", dynamic)])
    }

    pub(super) fn secrets(&self, main: &Main) -> Value {
        let compiler = main.compiler();
        let (mut fixed, mut active) = (Vec::new(), Vec::new());
        let mut all: Vec<(&SecretKey, &KnownSecret)> = compiler.secrets().collect();
        all.sort_by_key(|(key, _)| *key);
        for (key, known) in all {
            // Files are part of the TLS contexts that name them.
            if key.source == SecretSource::Files || !self.shows(&key.name) {
                continue;
            }
            let mut entry =
                json!({"name": *key.name, "last_updated": rfc3339_millis(known.updated), "secret": secret(&key.name, &known.value)});
            if !known.version.is_empty() {
                entry["version_info"] = json!(*known.version);
            }
            let fields = if key.source == SecretSource::Static { &mut fixed } else { &mut active };
            fields.push(entry);
        }
        let mut warming = Vec::new();
        for (key, since) in compiler.awaited_secrets() {
            if self.shows(&key.name) && key.source != SecretSource::Files {
                let secret = json!({"@type": SECRET, "name": *key.name});
                let since = rfc3339_millis(since);
                warming.push(json!({"name": *key.name, "version_info": "uninitialized", "last_updated": since, "secret": secret}));
            }
        }
        let lists = [("static_secrets", fixed), ("dynamic_active_secrets", active), ("dynamic_warming_secrets", warming)];
        dump("SecretsConfigDump", "", lists)
    }
}

fn dump<const N: usize>(name: &str, version: &str, lists: [(&str, Vec<Value>); N]) -> Value {
    let mut fields = Map::new();
    fields.insert("@type".to_owned(), json!(format!("{ADMIN}{name}")));
    if !version.is_empty() {
        fields.insert("version_info".to_owned(), json!(version));
    }
    for (field, list) in lists {
        if !list.is_empty() {
            fields.insert(field.to_owned(), Value::Array(list));
        }
    }
    Value::Object(fields)
}

/// What stands below `key`, wherever that is, if it has the field `with`.
fn below(value: &Value, key: &str, with: &str, found: &mut Vec<Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == key && value.get(with).is_some() {
                    found.push(value.clone());
                } else {
                    below(value, key, with, found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|i| below(i, key, with, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
