//! `/config_dump?mask=`: the fields of a dump that are asked for, by their paths (protobuf's field masks).
//!
//! A path goes through single messages only, as protobuf has it: to see into the entries of a list, `resource=` names the list
//! and the mask is that of an entry.
use lateen_proto::any;
use lateen_proto::schema::{Cardinality, Kind, Schema};
use serde_json::{Map, Value};

/// What a field of a dump holds. The dumps themselves are no messages of the configuration, so they are known here.
#[derive(Clone, Copy)]
enum Holds {
    /// A number, a text, a list: no path goes further.
    Plain,
    Fields(&'static [(&'static str, Holds)]),
    Message(&'static str),
    /// A message of the type that it names; a path must go into it.
    Any,
}

use Holds::{Any, Fields, Message, Plain};

const FAILURE: Holds =
    Fields(&[("failed_configuration", Any), ("last_update_attempt", Plain), ("details", Plain), ("version_info", Plain)]);
const LISTENER_STATE: Holds = Fields(&[("version_info", Plain), ("listener", Any), ("last_updated", Plain)]);
/// Of the entries of every dump but that of listeners: what is common to them.
const ENTRY: &[(&str, Holds)] = &[
    ("version_info", Plain),
    ("last_updated", Plain),
    ("name", Plain),
    ("client_status", Plain),
    ("error_state", FAILURE),
    ("cluster", Any),
    ("listener", Any),
    ("route_config", Any),
    ("endpoint_config", Any),
    ("secret", Any),
    ("ecds_filter", Any),
    ("active_state", LISTENER_STATE),
    ("warming_state", LISTENER_STATE),
];

/// Paths, taken apart.
pub(super) struct Mask(Vec<Vec<String>>);

impl Mask {
    /// Names with commas between; `None` when there is nothing.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let paths: Vec<Vec<String>> =
            text.split(',').filter(|p| !p.is_empty()).map(|p| p.split('.').map(str::to_owned).collect()).collect();
        (!paths.is_empty()).then_some(Self(paths))
    }

    /// The dump with the fields asked for; `None` when it has not all of them.
    pub(super) fn of_dump(&self, dump: &Value, lists: &[&str]) -> Option<Value> {
        let is_of = |kind: &str| dump.get("@type").and_then(Value::as_str).is_some_and(|t| t.ends_with(kind));
        let known = |name: &str| match name {
            _ if lists.contains(&name) => Some(Plain),
            "bootstrap" if is_of("BootstrapConfigDump") => Some(Message("envoy.config.bootstrap.v3.Bootstrap")),
            "last_updated" if is_of("BootstrapConfigDump") => Some(Plain),
            "version_info" if is_of("ClustersConfigDump") || is_of("ListenersConfigDump") => Some(Plain),
            _ => None,
        };
        self.apply(dump, known)
    }

    /// The same for an entry of a list.
    pub(super) fn of_entry(&self, entry: &Value) -> Option<Value> {
        self.apply(entry, |name| ENTRY.iter().find(|(known, _)| *known == name).map(|(_, holds)| *holds))
    }

    fn apply(&self, value: &Value, known: impl Fn(&str) -> Option<Holds>) -> Option<Value> {
        let schema = Schema::new();
        let mut kept = Map::new();
        keep_type(value, &mut kept);
        for path in &self.0 {
            let (first, rest) = path.split_first()?;
            let inner = value.get(first);
            if !is_path(&schema, known(first)?, rest, inner) {
                return None;
            }
            keep(value, path, &mut kept);
        }
        Some(Value::Object(kept))
    }
}

fn keep_type(value: &Value, kept: &mut Map<String, Value>) {
    if let Some(url) = value.get("@type") {
        kept.insert("@type".to_owned(), url.clone());
    }
}

/// Whether what is left of a path leads to a field. `value` says of which type an `Any` is.
fn is_path(schema: &Schema, holds: Holds, rest: &[String], value: Option<&Value>) -> bool {
    match holds {
        Plain => rest.is_empty(),
        Message(name) => is_path_of(schema, name, rest),
        Fields(fields) => match rest.split_first() {
            None => true,
            Some((first, rest)) => {
                let field = fields.iter().find(|(name, _)| name == first);
                field.is_some_and(|(_, holds)| is_path(schema, *holds, rest, value.and_then(|v| v.get(first))))
            }
        },
        // Nothing of this entry is missed where it is not there.
        Any => match value.and_then(|v| v.get("@type")).and_then(Value::as_str) {
            Some(url) => !rest.is_empty() && is_path_of(schema, any::name_of(url), rest),
            None => true,
        },
    }
}

fn is_path_of(schema: &Schema, message: &str, path: &[String]) -> bool {
    let mut message = schema.message_named(message);
    for (index, name) in path.iter().enumerate() {
        let Some((_, field)) = message.and_then(|id| schema.message(id).field_named(name)) else { return false };
        let is_last = index + 1 == path.len();
        message = match (field.kind, field.cardinality) {
            (Kind::Message(id), Cardinality::Single) => Some(id),
            _ if is_last => None,
            _ => return false,
        };
    }
    true
}

/// Copies what a path leads to.
fn keep(value: &Value, path: &[String], kept: &mut Map<String, Value>) {
    let Some((first, rest)) = path.split_first() else { return };
    let Some(inner) = value.get(first) else { return };
    if rest.is_empty() {
        kept.insert(first.clone(), inner.clone());
        return;
    }
    let entry = kept.entry(first.clone()).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(kept) = entry {
        keep_type(inner, kept);
        keep(inner, rest, kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry() -> Value {
        let cluster = json!({"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "a", "type": "STATIC",
                             "load_assignment": {"cluster_name": "a", "endpoints": []}});
        json!({"@type": "E", "cluster": cluster, "last_updated": "now"})
    }

    fn masked(mask: &str) -> Option<Value> {
        Mask::parse(mask).and_then(|m| m.of_entry(&entry()))
    }

    #[test]
    fn an_entry_is_cut_to_the_paths_asked_for() {
        let url = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
        assert_eq!(masked("cluster.name"), Some(json!({"@type": "E", "cluster": {"@type": url, "name": "a"}})));
        assert_eq!(
            masked("cluster.load_assignment.cluster_name,last_updated"),
            Some(json!({"@type": "E", "cluster": {"@type": url, "load_assignment": {"cluster_name": "a"}}, "last_updated": "now"}))
        );
        // A field that could be there and is not.
        assert_eq!(masked("cluster.alt_stat_name"), Some(json!({"@type": "E", "cluster": {"@type": url}})));
        for wrong in ["nope", "cluster", "cluster.nope", "cluster.load_assignment.endpoints.locality", "last_updated.seconds"] {
            assert_eq!(masked(wrong), None, "{wrong}");
        }
        assert!(Mask::parse("").is_none() && Mask::parse(",").is_none());
    }

    #[test]
    fn a_dump_is_cut_when_it_has_all_of_the_fields() {
        let dump = json!({"@type": "x.BootstrapConfigDump", "bootstrap": {"node": {"id": "n", "cluster": "c"}}, "last_updated": "now"});
        let masked = |mask: &str, lists: &[&str]| Mask::parse(mask).and_then(|m| m.of_dump(&dump, lists));
        assert_eq!(masked("bootstrap.node.id", &[]), Some(json!({"@type": "x.BootstrapConfigDump", "bootstrap": {"node": {"id": "n"}}})));
        assert_eq!(masked("bootstrap,static_clusters", &[]), None);
        assert_eq!(masked("static_clusters.cluster", &["static_clusters"]), None);
    }
}
