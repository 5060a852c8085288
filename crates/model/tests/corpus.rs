//! Real configuration, where it is at hand: every file gives resources or messages, never silence.
use std::path::Path;

use lateen_model::{Limits, load_paths};

/// Set `LATEEN_CORPUS` to a folder of Istio configuration to run against it.
fn corpus() -> Option<std::path::PathBuf> {
    let folder = std::env::var_os("LATEEN_CORPUS").map_or_else(|| Path::new("/work/shared/corpus").to_owned(), Into::into);
    folder.is_dir().then_some(folder)
}

#[test]
fn dump() {
    let Some(folder) = corpus() else { return };
    let mut files = lateen_model::load_paths(&[&folder], "default", &Limits::default()).files;
    files.sort();
    for file in files {
        let loaded = load_paths(&[&file], "default", &Limits::default());
        println!("== {} {} resources", file.strip_prefix(&folder).unwrap().display(), loaded.resources.len());
        for d in &loaded.diagnostics {
            println!("   {}", d.to_string().replace(&format!("{}/", folder.display()), ""));
        }
    }
}
