//! `docs/envoy-api.md`: every message of Envoy's API that the compiler takes apart, and what becomes of each field.
//!
//! The table is read off the source: the compiler destructures each message whole, names what it refuses in `refuse!` and
//! `unsupported`, and what changes no answer in `harmless!`. `UPDATE_DOCS=1` writes the page.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost_reflect::{DescriptorPool, MessageDescriptor};

const PAGE: &str = "../../docs/envoy-api.md";

#[derive(Default)]
struct Fields {
    honoured: BTreeSet<String>,
    harmless: BTreeSet<String>,
    refused: BTreeSet<String>,
}

#[test]
fn the_page_lists_what_becomes_of_every_field() {
    let pool = DescriptorPool::decode(lateen_proto::DESCRIPTORS).unwrap();
    let mut messages: BTreeMap<String, Fields> = BTreeMap::new();
    for source in sources(Path::new("src")) {
        for (at, fields) in destructured(&source) {
            let function = function_around(&source, at);
            for message in shaped(&pool, &type_name(&source[..at]), &fields) {
                let entry = messages.entry(message.full_name().to_owned()).or_default();
                for field in &fields {
                    file(entry, &message, field, function, &source);
                }
            }
        }
    }
    assert!(messages.len() > 80, "only {} messages found; has the way of destructuring changed?", messages.len());
    let page = page(&messages);
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(PAGE, &page).unwrap();
    }
    let written = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(written == page, "docs/envoy-api.md is out of date; UPDATE_DOCS=1 cargo test -p lateen-snapshot --test accepted writes it");
}

fn sources(folder: &Path) -> Vec<String> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![fs::read_to_string(path).unwrap()] };
    paths.into_iter().flat_map(read).collect()
}

/// Patterns `let some::Type { a, b: c, .. } =`: where each opens, and the fields it names.
fn destructured(source: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for (start, _) in source.match_indices("let ") {
        let rest = &source[start + 4..];
        let is_path = |text: &str| !text.trim().is_empty() && text.trim().chars().all(|c| c.is_alphanumeric() || ":_#".contains(c));
        let Some(open) = rest.find('{').filter(|open| is_path(&rest[..*open])) else { continue };
        let Some(close) = rest[open..].find('}') else { continue };
        if !rest[open + close + 1..].trim_start().starts_with('=') {
            continue;
        }
        let inner = &rest[open + 1..open + close];
        let fields = inner.split(',').map(|f| f.split(':').next().unwrap_or_default().trim().trim_start_matches("r#").to_owned());
        found.push((start + 4 + open, fields.filter(|f| !f.is_empty() && f != "..").collect()));
    }
    found
}

/// The last segment of the path that ends here.
fn type_name(before: &str) -> String {
    let path = before.trim_end().rsplit([' ', '\n']).next().unwrap_or_default();
    path.rsplit("::").next().unwrap_or_default().to_owned()
}

fn function_around(source: &str, at: usize) -> &str {
    let start = ["\nfn ", "\npub(crate) fn ", "\npub(super) fn ", "\n    fn "].iter().filter_map(|head| source[..at].rfind(head)).max();
    let end = source[at..].find("\n}\n").map_or(source.len(), |end| at + end);
    &source[start.unwrap_or(0)..end]
}

/// The messages of that Rust name with exactly these fields.
fn shaped(pool: &DescriptorPool, rust_name: &str, fields: &[String]) -> Vec<MessageDescriptor> {
    let wanted: BTreeSet<String> = fields.iter().cloned().collect();
    pool.all_messages().filter(|m| m.name().eq_ignore_ascii_case(rust_name) && rust_fields(m) == wanted).collect()
}

fn rust_fields(message: &MessageDescriptor) -> BTreeSet<String> {
    let plain = message.fields().filter(|f| f.containing_oneof().is_none_or(|o| o.is_synthetic())).map(|f| f.name().to_owned());
    plain.chain(message.oneofs().filter(|o| !o.is_synthetic()).map(|o| o.name().to_owned())).collect()
}

/// Puts a field, or the members of a `oneof`, where it belongs.
fn file(entry: &mut Fields, message: &MessageDescriptor, field: &str, function: &str, source: &str) {
    let named_in = |head: &str| {
        function.match_indices(head).any(|(at, _)| {
            let inner = function[at + head.len()..].split(')').next().unwrap_or_default();
            inner.split(',').any(|f| f.trim().trim_start_matches("r#") == field)
        })
    };
    let (refused, harmless) = (named_in("refuse!("), named_in("harmless!("));
    let members: Vec<String> = match message.oneofs().find(|o| o.name() == field && !o.is_synthetic()) {
        Some(oneof) => oneof.fields().map(|f| f.name().to_owned()).collect(),
        None => vec![field.to_owned()],
    };
    for name in members {
        let list = if refused || source.contains(&format!("unsupported(\"{name}\")")) {
            &mut entry.refused
        } else if harmless {
            &mut entry.harmless
        } else {
            &mut entry.honoured
        };
        list.insert(name);
    }
}

fn page(messages: &BTreeMap<String, Fields>) -> String {
    let mut text = "# What of Envoy's API is accepted\n\n\
        Every message that the proxy takes apart, from xDS or from a bootstrap file. A field under *honoured* works as in Envoy, \
        or is refused when its value is one that does not; a field under *changes no answer* is taken and steers only statistics, \
        memory or something that Lateen settles in another way; a field under *refused* is answered with its path, and the last \
        good configuration serves on. A message, filter or extension that is not listed is refused by name. Made from the source \
        by a test.\n"
        .to_owned();
    let mut package = String::new();
    for (name, fields) in messages {
        let (before, short) = name.split_once(".v3.").or(name.rsplit_once('.')).unwrap_or((name, ""));
        if before != package {
            before.clone_into(&mut package);
            let _ = write!(text, "\n## {before}\n\n| message | honoured | changes no answer | refused |\n| --- | --- | --- | --- |\n");
        }
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| {short} | {} | {} | {} |", list(&fields.honoured), list(&fields.harmless), list(&fields.refused));
    }
    text
}
