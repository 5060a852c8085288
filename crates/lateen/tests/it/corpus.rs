//! Other people's configuration, where it is at hand: each VirtualService and DestinationRule takes effect, or a message names it.
use std::fs;
use std::path::{Path, PathBuf};

use crate::exercises::exercises;
use crate::mesh::Mesh;

exercises!("corpus": everything_is_taken_or_named);

/// Set `LATEEN_CORPUS` to a folder of Istio configuration; `../shared/corpus` beside the repository if not.
fn corpus() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    let folder = std::env::var_os("LATEEN_CORPUS").map_or(beside, PathBuf::from);
    folder.is_dir().then_some(folder)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Kind and name of each VirtualService and DestinationRule of a text, read without the code that is tested.
fn rules(text: &str) -> Vec<(String, String)> {
    let of_document = |document: &str| {
        let after = |line: &str, key: &str| line.strip_prefix(key).map(|v| v.split('#').next().unwrap_or(v).trim().to_owned());
        let kind = document.lines().find_map(|l| after(l, "kind:"))?;
        let metadata = document.lines().skip_while(|l| !l.starts_with("metadata:"));
        let name = metadata.skip(1).take_while(|l| l.starts_with(' ')).find_map(|l| after(l.trim_start(), "name:"))?;
        matches!(kind.as_str(), "VirtualService" | "DestinationRule").then_some((kind, name))
    };
    text.split("\n---").filter_map(of_document).collect()
}

fn everything_is_taken_or_named(mesh: &Mesh) {
    let Some(folder) = corpus() else {
        return eprintln!("skipped: there is no ../shared/corpus beside the repository, and LATEEN_CORPUS is not set");
    };
    let (mut rules_seen, mut taken, mut wrong) = (0, 0, Vec::new());
    for part in ["istio-tutorial", "jfuture", "bookinfo/networking", "decks"] {
        for file in files(&folder.join(part)) {
            let text = fs::read_to_string(&file).expect("a text");
            let expected = rules(&text);
            if expected.is_empty() {
                continue;
            }
            let path = file.display().to_string();
            let output = mesh.lateen(&["apply", "-f", &path]);
            for (kind, name) in &expected {
                rules_seen += 1;
                let line = format!("{}.networking.istio.io/{name} ", kind.to_ascii_lowercase());
                let applied = output.out.lines().any(|l| l.starts_with(&line));
                let named = output.err.lines().any(|l| l.starts_with(&path) && l.contains(kind.as_str()) && l.contains(name.as_str()));
                taken += usize::from(applied);
                if !applied && !named {
                    wrong.push(format!("{path}: {kind} {name} is neither taken nor named:\n{}{}", output.out, output.err));
                }
            }
            mesh.lateen(&["delete", "-f", &path]);
        }
    }
    println!("corpus: {taken} of {rules_seen} rules taken, the others named with the reason");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rules_seen > 50 && taken * 10 >= rules_seen * 9, "only {taken} of {rules_seen} rules are taken");
    mesh.all_ready().unwrap();
}
