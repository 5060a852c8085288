//! `/config_dump`: the configuration as it arrived, with versions, times and refusals.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use http::StatusCode;
use lateen_identity::pem;
use lateen_proto::json::Codec;
use lateen_proto::{Any, any};
use lateen_snapshot::compile::{Failure, Kind, KnownSecret, Listed, Origin, Record, SecretKey, SecretSource, SecretValue};
use serde_json::{Map, Value, json};

use super::endpoints;
use super::mask::Mask;
use super::server::{Ask, Reply};
use crate::main_thread::Main;

const ADMIN: &str = "type.googleapis.com/envoy.admin.v3.";
const SCOPE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
const REDACTED: &str = "[redacted]";

pub(super) fn config_dump(main: &Main, ask: &Ask<'_>) -> Reply {
    let mask = ask.parameter("mask").as_deref().and_then(Mask::parse);
    let names = match ask.parameter("name_regex").map(|text| regex::RegexBuilder::new(&text).size_limit(1 << 20).build()).transpose() {
        Ok(names) => names,
        Err(e) => return refused(StatusCode::BAD_REQUEST, format!("Error while parsing name_regex: {e}\n")),
    };
    let dumper = Dumper { codec: Codec::new(), names, started: timestamp(main.started_at) };
    let mut configs = vec![dumper.bootstrap(main), dumper.clusters(main)];
    if ask.parameter("include_eds").is_some() || ask.parameter("resource").is_some_and(|r| r.contains("endpoint")) {
        configs.push(dumper.endpoints(main));
    }
    configs.extend([dumper.listeners(main), dumper.scopes(main), dumper.routes(main), dumper.secrets(main)]);
    configs.extend(dumper.extensions(main));
    drop(dumper);
    let reply = match ask.parameter("resource") {
        None => all_fields(configs, mask.as_ref(), ask),
        Some(field) => one_field(configs, &field, mask.as_ref()),
    };
    crate::main_thread::memory::trim();
    reply
}

/// Envoy names no character set here.
fn refused(status: StatusCode, text: impl Into<String>) -> Reply {
    Reply { content_type: "text/plain", ..Reply::error(status, text) }
}

/// Without what the mask leaves out.
fn all_fields(configs: Vec<Value>, mask: Option<&Mask>, ask: &Ask<'_>) -> Reply {
    let Some(mask) = mask else { return Reply::json(&json!({ "configs": configs })) };
    let kept: Vec<Value> = configs.iter().filter_map(|dump| mask.of_dump(dump, known_fields(type_of(dump)))).collect();
    if kept.is_empty() {
        let mask = ask.parameter("mask").unwrap_or_default();
        return refused(StatusCode::BAD_REQUEST, format!("FieldMask {mask} could not be successfully applied to any configs.\n"));
    }
    Reply::json(&json!({ "configs": kept }))
}

fn type_of(dump: &Value) -> &str {
    dump.get("@type").and_then(Value::as_str).unwrap_or_default()
}

/// `?resource=dynamic_listeners`: the entries of that field alone, each with its type.
fn one_field(configs: Vec<Value>, field: &str, mask: Option<&Mask>) -> Reply {
    if ["bootstrap", "last_updated", "version_info"].contains(&field) {
        let text = format!("{field} is not a repeated field. Use ?mask={field} to get only this field\n");
        return refused(StatusCode::BAD_REQUEST, text);
    }
    for config in configs {
        let Value::Object(mut fields) = config else { continue };
        let dump = fields.get("@type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !known_fields(&dump).contains(&field) {
            continue;
        }
        let Some(Value::Array(entries)) = fields.remove(field) else { return Reply::json(&json!({})) };
        let entries = entries.into_iter().map(|e| typed(&format!("{dump}.{}", camel(field)), e));
        let entries: Option<Vec<Value>> = entries.map(|e| mask.map_or(Some(e.clone()), |mask| mask.of_entry(&e))).collect();
        return match entries {
            Some(entries) => Reply::json(&json!({ "configs": entries })),
            None => refused(StatusCode::BAD_REQUEST, "FieldMask could not be successfully used.\n"),
        };
    }
    refused(StatusCode::NOT_FOUND, format!("{field} not found in config dump\n"))
}

fn known_fields(dump: &str) -> &'static [&'static str] {
    match dump.rsplit('.').next().unwrap_or_default() {
        "ClustersConfigDump" => &["static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters"],
        "EndpointsConfigDump" => &["static_endpoint_configs", "dynamic_endpoint_configs"],
        "ListenersConfigDump" => &["static_listeners", "dynamic_listeners"],
        "ScopedRoutesConfigDump" => &["inline_scoped_route_configs", "dynamic_scoped_route_configs"],
        "RoutesConfigDump" => &["static_route_configs", "dynamic_route_configs"],
        "SecretsConfigDump" => &["static_secrets", "dynamic_active_secrets", "dynamic_warming_secrets"],
        _ => &[],
    }
}

/// `dynamic_listeners` to the name of its entries' message, `DynamicListener`.
fn camel(field: &str) -> String {
    // Those of scopes are named for all that they hold.
    let singular =
        field.strip_suffix('s').filter(|_| !field.contains("scoped")).unwrap_or(field).replace("active_", "").replace("warming_", "");
    singular
        .split('_')
        .map(|word| word.chars().next().map(|c| c.to_ascii_uppercase().to_string() + word.get(1..).unwrap_or_default()).unwrap_or_default())
        .collect()
}

fn typed(url: &str, value: Value) -> Value {
    let mut fields = Map::new();
    fields.insert("@type".to_owned(), json!(url));
    if let Value::Object(others) = value {
        fields.extend(others);
    }
    Value::Object(fields)
}

struct Dumper {
    codec: Codec,
    names: Option<regex::Regex>,
    started: String,
}

impl Dumper {
    fn body(&self, body: &Any) -> Value {
        match self.codec.write_bytes(any::name_of(&body.type_url), &body.value) {
            Ok(value) => typed(&body.type_url, redact(value)),
            // A refused resource may be no message at all; its type still helps.
            Err(e) => json!({"@type": body.type_url, "error": e.to_string()}),
        }
    }

    /// Without its type, as a part of another message.
    fn content(&self, body: &Any) -> Option<Value> {
        self.codec.write_bytes(any::name_of(&body.type_url), &body.value).ok().map(redact)
    }

    fn shown<'a>(&self, list: Vec<Listed<'a>>) -> Vec<Listed<'a>> {
        let mut list = list;
        list.retain(|l| self.names.as_ref().is_none_or(|n| n.is_match(l.name)));
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
        fields.insert("last_updated".to_owned(), json!(timestamp(record.updated)));
        fields
    }

    fn failure(&self, failure: &Failure) -> Value {
        json!({
            "failed_configuration": self.body(&failure.body),
            "last_update_attempt": timestamp(failure.at),
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

    fn bootstrap(&self, main: &Main) -> Value {
        let encoded = &main.bootstrap.encoded;
        let mut body = self.codec.write_bytes(any::name_of(&encoded.type_url), &encoded.value).unwrap_or_default();
        if let Some(Value::Object(others)) = body.get_mut("static_resources") {
            // They are kept once, as resources.
            let compiler = main.compiler();
            let mut fields = Map::new();
            for (field, kind) in [("listeners", Kind::Listener), ("clusters", Kind::Cluster)] {
                let fixed = compiler.list(kind).into_iter().filter(|l| l.origin == Origin::Static);
                let bodies = fixed.filter_map(|l| l.active.or(l.warming)).map(|record| &record.body);
                let bodies = bodies.filter_map(|b| self.codec.write_bytes(any::name_of(&b.type_url), &b.value).ok());
                let bodies: Vec<Value> = bodies.collect();
                if !bodies.is_empty() {
                    fields.insert(field.to_owned(), Value::Array(bodies));
                }
            }
            fields.append(others);
            *others = fields;
        }
        json!({"@type": format!("{ADMIN}BootstrapConfigDump"), "bootstrap": redact(body), "last_updated": self.started})
    }

    fn clusters(&self, main: &Main) -> Value {
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

    fn listeners(&self, main: &Main) -> Value {
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
            dynamic.push(Value::Object(fields));
        }
        dump("ListenersConfigDump", version, [("static_listeners", fixed), ("dynamic_listeners", dynamic)])
    }

    /// Discovered routes, and those inside of listeners.
    fn routes(&self, main: &Main) -> Value {
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
                if self.names.as_ref().is_none_or(|n| n.is_match(name)) {
                    let config = typed("type.googleapis.com/envoy.config.route.v3.RouteConfiguration", config);
                    fixed.push(json!({"route_config": config, "last_updated": timestamp(record.updated)}));
                }
            }
        }
        dump("RoutesConfigDump", "", [("static_route_configs", fixed), ("dynamic_route_configs", dynamic)])
    }

    /// Scopes of routes: those that listeners list, and those that are discovered.
    fn scopes(&self, main: &Main) -> Value {
        let compiler = main.compiler();
        let (mut inline, mut dynamic) = (Vec::new(), Vec::new());
        for entry in compiler.list(Kind::Listener) {
            let Some(record) = entry.active else { continue };
            let mut found = Vec::new();
            below(&self.body(&record.body), "scoped_routes", "scope_key_builder", &mut found);
            for config in found {
                let name = config.get("name").and_then(Value::as_str).unwrap_or_default();
                if self.names.as_ref().is_some_and(|n| !n.is_match(name)) {
                    continue;
                }
                match config.pointer("/scoped_route_configurations_list/scoped_route_configurations").and_then(Value::as_array) {
                    Some(all) => {
                        let all: Vec<Value> = all.iter().map(|scope| typed(SCOPE, scope.clone())).collect();
                        inline.push(json!({"name": name, "scoped_route_configs": all, "last_updated": timestamp(record.updated)}));
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
            fields.insert("last_updated".to_owned(), json!(timestamp(last.updated)));
        }
        let bodies: Vec<Value> = records.iter().map(|record| self.body(&record.body)).collect();
        fields.insert("scoped_route_configs".to_owned(), Value::Array(bodies));
        self.status(&mut fields, list.iter().find_map(|scope| scope.failure));
        Value::Object(fields)
    }

    /// Filters that are discovered.
    fn extensions(&self, main: &Main) -> Option<Value> {
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

    fn endpoints(&self, main: &Main) -> Value {
        let snapshot = main.snapshot();
        let compiler = main.compiler();
        let mut dynamic = Vec::new();
        for entry in self.shown(compiler.list(Kind::Endpoint)) {
            let Some(record) = entry.active else { continue };
            let mut fields = self.record("endpoint_config", record);
            if let Some(assignment) = fields.get_mut("endpoint_config") {
                endpoints::complete(assignment, &snapshot);
            }
            self.status(&mut fields, entry.failure);
            dynamic.push(Value::Object(fields));
        }
        let mut fixed = Vec::new();
        for entry in self.shown(compiler.list(Kind::Cluster)) {
            let Some(record) = entry.active else { continue };
            if let Some(assignment) = self.body(&record.body).get("load_assignment") {
                let mut config = typed("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", assignment.clone());
                endpoints::complete(&mut config, &snapshot);
                fixed.push(json!({"endpoint_config": config}));
            }
        }
        dump("EndpointsConfigDump", "", [("static_endpoint_configs", fixed), ("dynamic_endpoint_configs", dynamic)])
    }

    fn secrets(&self, main: &Main) -> Value {
        let compiler = main.compiler();
        let (mut fixed, mut active) = (Vec::new(), Vec::new());
        let mut all: Vec<(&SecretKey, &KnownSecret)> = compiler.secrets().collect();
        all.sort_by_key(|(key, _)| *key);
        for (key, known) in all {
            // Files are part of the TLS contexts that name them.
            if key.source == SecretSource::Files || self.names.as_ref().is_some_and(|n| !n.is_match(&key.name)) {
                continue;
            }
            let mut entry = json!({"name": *key.name, "last_updated": timestamp(known.updated), "secret": secret(&key.name, &known.value)});
            if !known.version.is_empty() {
                entry["version_info"] = json!(*known.version);
            }
            let fields = if key.source == SecretSource::Static { &mut fixed } else { &mut active };
            fields.push(entry);
        }
        let mut warming = Vec::new();
        for key in compiler.wanted().secrets.iter().filter(|k| !compiler.knows_secret(k)) {
            warming.push(json!({"name": *key.name, "client_status": "REQUESTED"}));
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

/// A secret as it would arrive, its key withheld.
fn secret(name: &str, value: &SecretValue) -> Value {
    let bytes = |text: &str| json!({"inline_bytes": base64::engine::general_purpose::STANDARD.encode(text)});
    let url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    match value {
        SecretValue::Certificate(c) => {
            let chain = pem::encode_certificates(&c.key.cert);
            json!({"@type": url, "name": name, "tls_certificate": {"certificate_chain": bytes(&chain), "private_key": bytes(REDACTED)}})
        }
        SecretValue::Validation(v) => {
            let roots = pem::encode_certificates(v.trusted());
            json!({"@type": url, "name": name, "validation_context": {"trusted_ca": bytes(&roots)}})
        }
    }
}

/// Fields that hold nothing but what must not be seen (Envoy `udpa.annotations.sensitive`).
const SENSITIVE: [&str; 8] = [
    "private_key",
    "private_key_provider",
    "password",
    "pkcs12",
    "inline_key",
    "session_ticket_keys",
    "generic_secret",
    "context_extensions",
];

/// Withholds keys and passwords given inline anywhere inside.
fn redact(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let field = |(key, value): (String, Value)| {
                let value = if SENSITIVE.contains(&key.as_str()) { withheld(value) } else { redact(value) };
                (key, value)
            };
            Value::Object(fields.into_iter().map(field).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(redact).collect()),
        other => other,
    }
}

/// Of a sensitive value its shape, and which files it is in.
fn withheld(value: Value) -> Value {
    match value {
        Value::Object(fields) if fields.contains_key("filename") => Value::Object(fields),
        Value::Object(fields) if ["inline_string", "inline_bytes", "environment_variable"].iter().any(|f| fields.contains_key(*f)) => {
            json!({"inline_string": REDACTED})
        }
        Value::Object(fields) => {
            let is_plain = |key: &str| ["@type", "provider_name"].contains(&key);
            let field = |(key, value): (String, Value)| if is_plain(&key) { (key, value) } else { (key, withheld(value)) };
            Value::Object(fields.into_iter().map(field).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(withheld).collect()),
        Value::String(_) => json!(REDACTED),
        other => other,
    }
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

/// RFC 3339 with milliseconds, as protobuf's JSON writes timestamps.
pub(super) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let days = i64::try_from(since.as_secs() / 86_400).unwrap_or(0);
    let seconds = since.as_secs() % 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// The date of a day counted from 1970, by counting years that begin in March.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day_of_year - (153 * month_index + 2) / 5 + 1)
}

/// Protobuf's JSON form of a duration.
pub(super) fn duration(value: Duration) -> String {
    format!("{}s", value.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_read_as_protobuf_writes_them() {
        for (seconds, expected) in
            [(0, "1970-01-01T00:00:00.000Z"), (951_782_400, "2000-02-29T00:00:00.000Z"), (1_767_225_599, "2025-12-31T23:59:59.000Z")]
        {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn inline_keys_are_withheld_and_file_names_are_not() {
        let value = redact(json!({"a": [{"private_key": {"inline_string": "KEY"}}, {"private_key": {"filename": "/k"}}]}));
        assert_eq!(value, json!({"a": [{"private_key": {"inline_string": "[redacted]"}}, {"private_key": {"filename": "/k"}}]}));
    }

    #[test]
    fn what_a_refused_listener_holds_of_keys_is_withheld() {
        let redacted = json!({"inline_string": "[redacted]"});
        let bytes = |text: &str| json!({"inline_bytes": base64::engine::general_purpose::STANDARD.encode(text)});
        let provider = |config: &Value| json!({"provider_name": "p", "typed_config": config});
        let tls = |key: &Value, config: &Value| {
            json!({"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                   "session_ticket_keys": {"keys": [key, {"filename": "/k"}]},
                   "common_tls_context": {"tls_certificates": [{"private_key_provider": provider(config), "password": key}]}})
        };
        let any = |text: &str| json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": text});
        let listener = |key: &Value, config: &Value| {
            let socket = json!({"name": "tls", "typed_config": tls(key, config)});
            json!({"name": "l", "filter_chains": [{"transport_socket": socket}]})
        };
        let url = lateen_xds::types::LISTENER;
        let value = Codec::new().encode(any::name_of(url), &(&listener(&bytes("KEY"), &any("KEY"))).into()).unwrap();
        let shown = dumper().body(&Any { type_url: url.to_owned(), value });
        assert_eq!(shown, typed(url, listener(&redacted, &any("[redacted]"))), "{shown:#}");
        let sent =
            |key: &Value, text: &str| json!({"generic_secret": {"secret": key, "secrets": {"a": key}}, "context_extensions": {"a": text}});
        assert_eq!(redact(sent(&bytes("KEY"), "KEY")), sent(&redacted, "[redacted]"));
    }

    const MANAGER: &str = "'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
                           stat_prefix: t, http_filters: [{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]";
    const KEY: &str = "scope_key_builder: {fragments: [{header_value_extractor: {name: x, index: 0}}]}";

    /// A main thread whose listeners have each of these settings, where discovery is incremental.
    fn with_listeners(settings: &[&str]) -> std::sync::Arc<Main> {
        let listener = |(index, more): (usize, &&str)| {
            format!(
                "{{name: l{index}, address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}, \
                 filter_chains: [{{filters: [{{name: h, typed_config: {{{MANAGER}, {more}}}}}]}}]}}",
                index + 1
            )
        };
        let listeners: Vec<String> = settings.iter().enumerate().map(listener).collect();
        crate::main_thread::test_support::main(&format!(
            "{{node: {{id: n, cluster: c}}, \
             dynamic_resources: {{ads_config: {{api_type: DELTA_GRPC, grpc_services: [{{envoy_grpc: {{cluster_name: x}}}}]}}}}, \
             static_resources: {{clusters: [{{name: x, type: STATIC, load_assignment: {{cluster_name: x}}}}], listeners: [{}]}}}}",
            listeners.join(", ")
        ))
    }

    fn discover(main: &Main, type_url: &str, name: &str, json: &Value) {
        let value = Codec::new().encode(any::name_of(type_url), &json.into()).unwrap();
        let body = Any { type_url: type_url.to_owned(), value };
        let update = lateen_snapshot::compile::Update { name: name.to_owned(), version: "7".to_owned(), body };
        assert_eq!(main.apply(&SecretSource::Ads, type_url, vec![update], &[]), []);
    }

    fn dumper() -> Dumper {
        Dumper { codec: Codec::new(), names: None, started: String::new() }
    }

    #[test]
    fn routes_are_shown_with_the_virtual_hosts_that_were_discovered() {
        use lateen_xds::types::{ROUTE, VIRTUAL_HOST};
        let main = with_listeners(&["rds: {route_config_name: r, config_source: {ads: {}}}"]);
        discover(&main, ROUTE, "r", &json!({"name": "r", "vhds": {"config_source": {"ads": {}}}}));
        discover(&main, VIRTUAL_HOST, "r/a", &json!({"name": "r/a", "domains": ["a.test"]}));
        let shown = dumper().routes(&main);
        let config = &shown["dynamic_route_configs"][0]["route_config"];
        assert_eq!(config["virtual_hosts"], json!([{"name": "r/a", "domains": ["a.test"]}]), "{shown:#}");
    }

    #[test]
    fn scopes_are_shown_as_listed_and_as_discovered() {
        let scope = |name: &str| json!({"name": name, "key": {"fragments": [{"string_key": name}]}, "route_configuration": {"name": "r"}});
        let listed = format!(
            "scoped_routes: {{name: one, {KEY}, scoped_route_configurations_list: {{scoped_route_configurations: [{}]}}}}",
            scope("a")
        );
        let found = format!("scoped_routes: {{name: two, {KEY}, scoped_rds: {{scoped_rds_config_source: {{ads: {{}}}}}}}}");
        let main = with_listeners(&[&listed, &found]);
        discover(&main, SCOPE, "b", &scope("b"));
        let shown = dumper().scopes(&main);
        let (inline, dynamic) = (&shown["inline_scoped_route_configs"][0], &shown["dynamic_scoped_route_configs"][0]);
        assert_eq!((&inline["name"], &inline["scoped_route_configs"][0]["name"]), (&json!("one"), &json!("a")), "{shown:#}");
        assert_eq!((&dynamic["name"], &dynamic["version_info"]), (&json!("two"), &json!("7")), "{shown:#}");
        assert_eq!(dynamic["scoped_route_configs"], json!([typed(SCOPE, scope("b"))]));
    }

    #[test]
    fn secrets_are_shown_with_when_they_came() {
        use lateen_xds::types::{CLUSTER, SECRET};
        let main = with_listeners(&[]);
        let context = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {"validation_context_sds_secret_config": {"name": "roots", "sds_config": {"ads": {}}}}
        });
        discover(
            &main,
            CLUSTER,
            "c",
            &json!({"name": "c", "type": "STATIC", "transport_socket": {"name": "tls", "typed_config": context}}),
        );
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        let before = SystemTime::now();
        discover(&main, SECRET, "roots", &json!({"name": "roots", "validation_context": {"trusted_ca": {"inline_string": root}}}));
        let shown = dumper().secrets(&main);
        let secret = &shown["dynamic_active_secrets"][0];
        assert_eq!((&secret["name"], &secret["version_info"]), (&json!("roots"), &json!("7")), "{shown:#}");
        assert!(secret["last_updated"].as_str().unwrap() >= &*timestamp(before), "{shown:#}");
    }

    #[test]
    fn fields_name_their_messages() {
        assert_eq!(camel("dynamic_active_clusters"), "DynamicCluster");
        assert_eq!(camel("static_route_configs"), "StaticRouteConfig");
        assert_eq!(camel("inline_scoped_route_configs"), "InlineScopedRouteConfigs");
    }
}
