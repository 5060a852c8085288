//! `/runtime`: the layers of the bootstrap and what each says. Of its values the proxy reads those of the overload manager.
use lateen_proto::any;
use lateen_proto::json::Codec;
use serde_json::{Map, Value, json};

use super::server::Reply;
use crate::main_thread::Main;

pub(super) fn page(main: &Main) -> Reply {
    let encoded = &main.bootstrap.encoded;
    let bootstrap = Codec::new().write_bytes(any::name_of(&encoded.type_url), &encoded.value).unwrap_or_default();
    let layers = bootstrap.pointer("/layered_runtime/layers").and_then(Value::as_array).cloned().unwrap_or_default();
    Reply::json(&render(&layers))
}

fn render(layers: &[Value]) -> Value {
    let names: Vec<&str> = layers.iter().map(|layer| layer.get("name").and_then(Value::as_str).unwrap_or_default()).collect();
    let mut entries: Map<String, Value> = Map::new();
    for (index, layer) in layers.iter().enumerate() {
        let mut values = Vec::new();
        flatten("", layer.get("static_layer").unwrap_or(&Value::Null), &mut values);
        for (key, value) in values {
            let entry = entries.entry(key).or_insert_with(|| json!({"layer_values": vec![""; layers.len()], "final_value": ""}));
            if let Some(of_layer) = entry.pointer_mut(&format!("/layer_values/{index}")) {
                *of_layer = json!(value);
            }
            // Later layers override earlier ones.
            entry["final_value"] = json!(value);
        }
    }
    json!({"layers": names, "entries": entries})
}

/// Nested keys are joined by dots.
fn flatten(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, out);
            }
        }
        Value::Null => {}
        Value::String(text) => out.push((prefix.to_owned(), text.clone())),
        other => out.push((prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_override_one_another() {
        let layers = [
            json!({"name": "a", "static_layer": {"x": {"y": 1, "z": "t"}}}),
            json!({"name": "b", "static_layer": {"x.y": true}}),
            json!({"name": "admin", "admin_layer": {}}),
        ];
        assert_eq!(
            render(&layers),
            json!({"layers": ["a", "b", "admin"], "entries": {
                "x.y": {"layer_values": ["1", "true", ""], "final_value": "true"},
                "x.z": {"layer_values": ["t", "", ""], "final_value": "t"},
            }})
        );
    }
}
