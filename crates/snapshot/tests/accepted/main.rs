//! `docs/envoy-api.md`: every message of Envoy's API that the compiler takes apart, and what becomes of each field.
//!
//! The table is read off the source. A message that can be reached through a field that is taken, and is taken apart nowhere,
//! fails the test: what may come and is not looked at whole would be accepted in silence. `UPDATE_DOCS=1` writes the page.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::{env, fs};

use names::{Names, members, real_oneofs, rust_fields};
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use reading::{Fate, Read};

mod names;
mod reading;
mod shapes;

const PAGE: &str = "../../docs/envoy-api.md";

/// Sent on as it came, whatever is in it.
const PASSED_ON: &str = "envoy.config.core.v3.Node";

type Table = BTreeMap<String, BTreeMap<String, Fate>>;

/// What is there to be taken apart, and what the source says of it.
static COMPILER: LazyLock<(DescriptorPool, Read)> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(lateen_proto::DESCRIPTORS).unwrap();
    let names = Names::new(&pool);
    let mut read = Read::default();
    sources(Path::new("src")).iter().for_each(|source| reading::read(source, &names, &mut read));
    (pool, read)
});

#[test]
fn the_page_lists_what_becomes_of_every_field() {
    let (pool, read) = &*COMPILER;
    let page = page(pool, &table(pool, read));
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(PAGE, &page).unwrap();
    }
    let written = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(written == page, "docs/envoy-api.md is out of date; UPDATE_DOCS=1 cargo test -p lateen-snapshot --test accepted writes it");
}

#[test]
fn every_message_that_is_opened_or_reached_is_taken_apart_whole() {
    let (pool, read) = &*COMPILER;
    assert!(read.opened.len() > 100, "only {} extensions found; has the way of opening changed?", read.opened.len());
    let table = table(pool, read);
    let opened = read.opened.iter().filter(|name| !table.contains_key(*name));
    let mut missing: Vec<String> = opened.map(|name| format!("{name} is opened")).collect();
    for (name, fields) in &table {
        let Some(message) = pool.get_message_by_name(name).filter(|_| !name.starts_with("google.")) else { continue };
        for field in message.fields() {
            match fields.get(field.name()) {
                None => missing.push(format!("{name}.{} is looked at nowhere", field.name())),
                Some(fate) if fate.honoured && name != PASSED_ON => missing.extend(
                    below(&field)
                        .filter(|below| !table.contains_key(below.full_name()))
                        .map(|below| format!("{} comes in {name}.{}", below.full_name(), field.name())),
                ),
                Some(_) => {}
            }
        }
    }
    assert!(missing.is_empty(), "{} to be named field by field in a pattern:\n{}", missing.len(), missing.join("\n"));
}

/// All but tests.
fn sources(folder: &Path) -> Vec<String> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| !["tests", "test_support"].contains(&path.file_stem().and_then(|s| s.to_str()).unwrap_or_default()));
    let read = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![fs::read_to_string(path).unwrap()] };
    paths.into_iter().flat_map(read).collect()
}

/// The message of a field, unless it is one of protobuf's own.
fn below(field: &FieldDescriptor) -> impl Iterator<Item = MessageDescriptor> + use<> {
    let kind = if field.is_map() { field.kind().as_message().unwrap().map_entry_value_field().kind() } else { field.kind() };
    let message = if let Kind::Message(message) = kind { Some(message) } else { None };
    message.into_iter().filter(|m| !m.full_name().starts_with("google."))
}

/// Messages by name, and what becomes of their fields. One without fields is taken apart when it is opened or reached.
fn table(pool: &DescriptorPool, read: &Read) -> Table {
    let mut table = Table::new();
    for (name, fields) in read.messages.iter().filter(|(name, _)| !name.starts_with("google.")) {
        let message = pool.get_message_by_name(name).unwrap();
        let row = table.entry(name.clone()).or_default();
        for field in rust_fields(&message) {
            let Some(&(mut fate)) = fields.get(&field) else { continue };
            fate.harmless |= !fate.honoured && !fate.refused;
            let of_members = real_oneofs(&message).find(|o| o.name() == field).map(|o| read.members.get(o.full_name()));
            for member in members(&message, &field) {
                let known = of_members.map(|m| m.and_then(|m| m.get(&member)));
                match known {
                    // Refused, or without effect, as a whole.
                    _ if !fate.honoured => row.insert(member, fate),
                    None => row.insert(member, fate),
                    Some(Some(of_member)) => row.insert(member, *of_member),
                    Some(None) => None,
                };
            }
        }
    }
    for name in &read.opened {
        if pool.get_message_by_name(name).is_none_or(|m| m.fields().len() == 0 || name.starts_with("google.")) {
            table.entry(name.clone()).or_default();
        }
    }
    let node = pool.get_message_by_name(PASSED_ON).unwrap();
    let honoured = Fate { honoured: true, ..Fate::default() };
    table.insert(PASSED_ON.to_owned(), node.fields().map(|f| (f.name().to_owned(), honoured)).collect());
    let empty: BTreeSet<String> = table
        .iter()
        .filter_map(|(name, fields)| Some((pool.get_message_by_name(name)?, fields)))
        .flat_map(|(message, fields)| message.fields().filter(|f| fields.get(f.name()).is_some_and(|f| f.honoured)).collect::<Vec<_>>())
        .flat_map(|field| below(&field))
        .filter(|message| message.fields().len() == 0)
        .map(|message| message.full_name().to_owned())
        .collect();
    table.extend(empty.into_iter().map(|name| (name, BTreeMap::new())));
    table
}

fn page(pool: &DescriptorPool, table: &Table) -> String {
    let mut text = "# What of Envoy's API is accepted\n\n\
        Every message that the proxy takes apart, from xDS or from a bootstrap file. A field under *honoured* works as in Envoy, \
        or is refused when its value is one that does not; a field under *changes no answer* is taken and steers only statistics, \
        memory or something that Lateen settles in another way; a field under *refused* is answered with its path, and the last \
        good configuration serves on. A field that stands in two columns has its way in some of the places where the message \
        stands, and not in others. A message, filter or extension that is not listed is refused by name. Made from the source by \
        a test.\n"
        .to_owned();
    let mut package = String::new();
    for (name, fields) in table {
        let known = pool.get_message_by_name(name).map(|m| m.package_name().to_owned());
        let before = known.unwrap_or_else(|| name.rsplit_once('.').map_or(String::new(), |(before, _)| before.to_owned()));
        let (before, short) = (before.trim_end_matches(".v3"), name[before.len()..].trim_start_matches('.'));
        if before != package {
            before.clone_into(&mut package);
            let _ = write!(text, "\n## {before}\n\n| message | honoured | changes no answer | refused |\n| --- | --- | --- | --- |\n");
        }
        let list = |has: fn(&Fate) -> bool| {
            let fields = fields.iter().filter(|(_, fate)| has(fate)).map(|(name, _)| name.as_str());
            fields.collect::<Vec<_>>().join(", ")
        };
        let _ = writeln!(text, "| {short} | {} | {} | {} |", list(|f| f.honoured), list(|f| f.harmless), list(|f| f.refused));
    }
    text
}
