//! The table of crates in ARCHITECTURE.md says of each what it uses, as its manifest does.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates by name, and those of ours that each uses outside of its tests.
type Uses = BTreeMap<String, BTreeSet<String>>;

#[test]
fn the_table_of_crates_has_what_each_uses() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let told = told(&fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap());
    let mut built = built(&root.join("crates"));
    built.retain(|name, _| !["xtask", "fuzz"].contains(&name.as_str()));
    assert_eq!(told.keys().collect::<Vec<_>>(), built.keys().collect::<Vec<_>>(), "the crates of the table");
    for (name, uses) in &built {
        let told = &told[name];
        // The program is made of all of them, whether it names them or not.
        assert!(told == uses || told.contains("all"), "{name} uses {uses:?}, and ARCHITECTURE.md says {told:?}");
    }
}

fn told(page: &str) -> Uses {
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, name, _, uses, _] = cells[..] else { return None };
        let name = name.strip_prefix('`')?.strip_suffix('`')?;
        Some((name.to_owned(), uses.split(',').map(str::trim).filter(|u| !u.is_empty()).map(str::to_owned).collect()))
    });
    rows.collect()
}

fn built(crates: &Path) -> Uses {
    let manifests = fs::read_dir(crates).unwrap().map(|entry| entry.unwrap().path().join("Cargo.toml")).filter(|path| path.exists());
    manifests.map(|path| (folder(&path), dependencies(&fs::read_to_string(&path).unwrap()))).collect()
}

fn folder(manifest: &Path) -> String {
    manifest.parent().and_then(Path::file_name).map(PathBuf::from).unwrap().display().to_string()
}

/// Ours in `[dependencies]`.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.split_once("\n[dependencies]\n").map_or("", |(_, after)| after);
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| line.split(['.', ' ', '=']).next()?.strip_prefix("lateen-")).map(str::to_owned).collect()
}
