//! The page of every field of every kind with what Lateen does with it, made from the declarations themselves.
use std::fmt::Write as _;

use crate::kinds::Kind;
use crate::mesh_config::MeshConfigFields;
use crate::resource::message_of;
use crate::schema::field::{Message, Shape, Status};
use crate::schema::path::join;

/// A field with its path in the kind, e.g. `spec.http[].match[].uri`.
#[derive(Clone, Debug)]
pub struct Row {
    pub path: String,
    pub shape: String,
    pub status: Status,
}

/// How deep messages are followed; none is deeper, and a message that held itself would end here.
const MAX_DEPTH: usize = 16;

/// Every field of a kind. Fields under one that is not honoured are left out: they share its fate.
pub fn rows(kind: Kind) -> Vec<Row> {
    let under = if kind.has_fields_at_top() { "" } else { "spec" };
    message_rows(message_of(kind), under)
}

/// Every field of MeshConfig.
pub fn mesh_config_rows() -> Vec<Row> {
    message_rows(&MeshConfigFields::MESSAGE, "")
}

fn message_rows(message: &Message, under: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    collect(message, under, 0, &mut rows);
    rows
}

fn collect(message: &Message, path: &str, depth: usize, rows: &mut Vec<Row>) {
    if depth > MAX_DEPTH {
        return;
    }
    for field in message.fields {
        let shape = (field.shape)();
        let path = format!("{}{}", join(path, &field.json_name()), suffix(shape));
        rows.push(Row { path: path.clone(), shape: word(shape), status: field.status });
        if let (true, Some(inner)) = (works(field.status), shape.message()) {
            collect(inner, &path, depth + 1, rows);
        }
    }
}

fn works(status: Status) -> bool {
    matches!(status, Status::Honoured | Status::Partly(_))
}

fn suffix(shape: Shape) -> &'static str {
    match shape {
        Shape::List(_) => "[]",
        Shape::Map(_) => "{}",
        _ => "",
    }
}

fn word(shape: Shape) -> String {
    match shape {
        Shape::Scalar(word) => word.trim_start_matches("a ").to_owned(),
        Shape::Enum(names) => names.join(", "),
        Shape::List(item) => format!("list of {}", word(item())),
        Shape::Map(value) => format!("map of {}", word(value())),
        Shape::Message(message) => message.name.to_owned(),
        Shape::Any => "any".to_owned(),
    }
}

/// The page `docs/coverage.md`.
pub fn table() -> String {
    let mut page = String::from(HEAD);
    let _ = writeln!(page, "\n| kind | works | warns | refused |\n| --- | ---: | ---: | ---: |");
    let sections: Vec<(String, Vec<Row>)> = Kind::ALL
        .into_iter()
        .filter(|kind| kind.is_istio())
        .chain(Kind::ALL.into_iter().filter(|kind| !kind.is_istio()))
        .map(|kind| (kind.to_string(), rows(kind)))
        .chain([("MeshConfig".to_owned(), mesh_config_rows())])
        .collect();
    for (name, rows) in &sections {
        let count = |wanted: fn(&Status) -> bool| rows.iter().filter(|row| wanted(&row.status)).count();
        let works = count(|status| works(*status));
        let warns = count(|status| matches!(status, Status::Warned(_)));
        let refused = count(|status| matches!(status, Status::Refused(_)));
        let _ = writeln!(page, "| [{name}](#{}) | {works} | {warns} | {refused} |", name.to_lowercase());
    }
    for (name, rows) in &sections {
        section(&mut page, name, rows);
    }
    page
}

const HEAD: &str = "# Configuration coverage

This page is generated from the declarations in `crates/model`; a test keeps it true
(`UPDATE_DOCS=1 cargo test -p lateen-model coverage` writes it anew).

- **works**: the field takes effect, but for what a note says.
- **warns**: the field is read and checked, has no effect, and Lateen says so with file and line.
- **refused**: the resource is left out, and Lateen says why with file and line.

Any other field of an Istio kind is an error with the spelling that was probably meant. Fields of Kubernetes kinds that
are not listed have no meaning for a mesh; they are accepted and summed up in one line.
";

fn section(page: &mut String, name: &str, rows: &[Row]) {
    let _ = write!(page, "\n## {name}\n\n");
    if let Ok(kind) = name.parse::<Kind>() {
        let group = if kind.group().is_empty() { String::new() } else { format!("{}/", kind.group()) };
        let versions: Vec<String> = kind.versions().iter().map(|version| format!("`{group}{version}`")).collect();
        let _ = write!(page, "{}\n\n", versions.join(", "));
    }
    if rows.is_empty() {
        let _ = writeln!(page, "Only its metadata is used.");
        return;
    }
    let _ = writeln!(page, "| field | holds | status | note |\n| --- | --- | --- | --- |");
    for row in rows {
        let (status, note) = match row.status {
            Status::Honoured => ("works", ""),
            Status::Partly(note) => ("works", note),
            Status::Warned(note) => ("warns", note),
            Status::Refused(note) => ("refused", note),
        };
        let _ = writeln!(page, "| `{}` | {} | {status} | {} |", row.path, row.shape.replace('|', "\\|"), note.replace('|', "\\|"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page on disk is what the declarations say.
    #[test]
    fn coverage_page_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/coverage.md");
        let page = table();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs")).unwrap();
            std::fs::write(path, &page).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == page, "docs/coverage.md is out of date; run UPDATE_DOCS=1 cargo test -p lateen-model coverage");
    }

    #[test]
    fn fields_are_listed_with_their_status() {
        let rows = rows(Kind::VirtualService);
        let status = |path: &str| rows.iter().find(|row| row.path == path).map(|row| row.status);
        assert_eq!(status("spec.http[].match[].headers{}.exact"), Some(Status::Honoured));
        assert!(matches!(status("spec.http[].match[].statPrefix"), Some(Status::Warned(_))));
        assert!(matches!(status("spec.http[].fault.delay.exponentialDelay"), Some(Status::Refused(_))));
    }
}
