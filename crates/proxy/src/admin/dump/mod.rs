//! `/config_dump`: the configuration as it arrived, with versions, times and refusals.
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::endpoints;
use super::mask::Mask;
use super::server::{Ask, Reply};
use crate::main_thread::Main;
use dumper::Dumper;

mod dumper;
mod redact;

pub(super) fn config_dump(main: &Main, ask: &Ask<'_>) -> Reply {
    let mask = ask.parameter("mask").as_deref().and_then(Mask::parse);
    let names = match ask.parameter("name_regex").map(|text| regex::RegexBuilder::new(&text).size_limit(1 << 20).build()).transpose() {
        Ok(names) => names,
        Err(e) => return refused(StatusCode::BAD_REQUEST, format!("Error while parsing name_regex: {e}\n")),
    };
    let dumper = Dumper::new(names, main);
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
        "EcdsConfigDump" => &["ecds_filters"],
        "SecretsConfigDump" => &["static_secrets", "dynamic_active_secrets", "dynamic_warming_secrets"],
        _ => &[],
    }
}

/// `dynamic_listeners` to the name of its entries' message, `DynamicListener`.
fn camel(field: &str) -> String {
    let field = if field == "ecds_filters" { "ecds_filter_config" } else { field };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discovered_filters_can_be_asked_for() {
        let filter = json!({"name": "f", "version_info": "1"});
        let dump = json!({"@type": "x.EcdsConfigDump", "ecds_filters": [filter]});
        let Reply { status, body, .. } = one_field(vec![dump.clone()], "ecds_filters", None);
        let shown: Value = serde_json::from_slice(&body).unwrap();
        let expected = typed("x.EcdsConfigDump.EcdsFilterConfig", filter);
        assert_eq!((status, shown), (StatusCode::OK, json!({"configs": [expected]})));
        let kept = Mask::parse("ecds_filters").and_then(|mask| mask.of_dump(&dump, known_fields(type_of(&dump))));
        assert_eq!(kept, Some(dump));
    }

    #[test]
    fn fields_name_their_messages() {
        assert_eq!(camel("dynamic_active_clusters"), "DynamicCluster");
        assert_eq!(camel("static_route_configs"), "StaticRouteConfig");
        assert_eq!(camel("ecds_filters"), "EcdsFilterConfig");
        assert_eq!(camel("inline_scoped_route_configs"), "InlineScopedRouteConfigs");
    }
}
