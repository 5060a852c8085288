//! Whether every test and bench runs what it holds: with the harness a `main` of its own is never called, and its tests pass unseen.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A test or bench: its file, and whether the library's harness runs it.
#[derive(Debug)]
struct Target {
    file: PathBuf,
    harness: bool,
}

/// What a manifest says of one target.
#[derive(Default)]
struct Said {
    name: String,
    path: Option<String>,
    harness: bool,
}

/// The sections `[[test]]` or `[[bench]]` of a manifest.
fn sections(manifest: &str, kind: &str) -> Vec<Said> {
    let (header, mut found, mut inside) = (format!("[[{kind}]]"), Vec::new(), false);
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == header;
            if inside {
                found.push(Said { harness: true, ..Said::default() });
            }
        } else if let (true, Some((key, value)), Some(said)) = (inside, line.split_once('='), found.last_mut()) {
            let value = value.trim().trim_matches('"');
            match key.trim() {
                "name" => value.clone_into(&mut said.name),
                "path" => said.path = Some(value.to_owned()),
                "harness" => said.harness = value == "true",
                _ => {}
            }
        }
    }
    found
}

/// The targets of a kind in a crate: those that its manifest names, and those that cargo finds by their place.
fn targets(krate: &Path, kind: &str, folder: &str) -> Vec<Target> {
    let manifest = fs::read_to_string(krate.join("Cargo.toml")).unwrap_or_default();
    let mut found: BTreeMap<String, Target> = BTreeMap::new();
    for entry in fs::read_dir(krate.join(folder)).into_iter().flatten().flatten() {
        let path = entry.path();
        let file = if path.is_dir() { path.join("main.rs") } else { path.clone() };
        if file.extension().is_some_and(|e| e == "rs") && file.is_file() {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.insert(name, Target { file, harness: true });
        }
    }
    for Said { name, path, harness } in sections(&manifest, kind) {
        let by_place = found.remove(&name).map(|target| target.file);
        let file = path.map(|path| krate.join(path)).or(by_place).unwrap_or_default();
        found.insert(name, Target { file, harness });
    }
    found.into_values().collect()
}

/// Whether a file defines or generates a `main`.
fn has_main(source: &str) -> bool {
    let starts = ["fn main(", "pub fn main(", "async fn main(", "criterion_main!"];
    source.lines().any(|line| starts.iter().any(|start| line.starts_with(start)))
}

#[test]
fn a_target_has_a_main_of_its_own_or_the_harness() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut own, mut wrong) = (0, Vec::new());
    for krate in fs::read_dir(crates).unwrap().map(|entry| entry.unwrap().path()) {
        for target in targets(&krate, "test", "tests").into_iter().chain(targets(&krate, "bench", "benches")) {
            let source = fs::read_to_string(&target.file).unwrap_or_else(|e| panic!("{}: {e}", target.file.display()));
            own += usize::from(!target.harness);
            match (has_main(&source), target.harness) {
                (true, true) => wrong.push(format!("{}: its main is never called; say `harness = false`", target.file.display())),
                (false, false) => wrong.push(format!("{}: has no main, so nothing runs its tests", target.file.display())),
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(own > 0, "none was found");
}

#[test]
fn sections_say_whether_the_harness_runs_a_target() {
    let manifest = "[package]\nname = \"p\"\n[[test]]\nname = \"a\"\npath = \"x/a.rs\"\nharness = false\n[[bench]]\nname = \"b\"\n[lints]\nharness = false\n";
    let tests = sections(manifest, "test");
    assert_eq!(tests.iter().map(|s| (s.name.as_str(), s.path.as_deref(), s.harness)).collect::<Vec<_>>(), [("a", Some("x/a.rs"), false)]);
    assert!(sections(manifest, "bench").iter().all(|s| s.name == "b" && s.harness));
    assert!(has_main("fn main() {}") && !has_main("    fn main() {}") && !has_main("// fn main()"));
}
