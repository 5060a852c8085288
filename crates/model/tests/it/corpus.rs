//! Real configuration, where it is at hand: every VirtualService and DestinationRule loads or says what is wrong.
use std::collections::BTreeSet;
use std::path::PathBuf;

use lateen_model::{Limits, Severity, load_paths};

/// The folder that `LATEEN_CORPUS` names, or `shared/corpus` beside the repository.
fn corpus() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/corpus");
    let folder = std::env::var_os("LATEEN_CORPUS").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    folder.is_dir().then_some(folder)
}

#[test]
fn every_document_gives_a_resource_or_a_message() {
    let Some(folder) = corpus() else { return };
    let files = load_paths(&[&folder], "default", &Limits::default()).files;
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let documents = text.lines().filter(|line| line.starts_with("kind:")).count();
        let loaded = load_paths(&[&file], "default", &Limits::default());
        let told = loaded.diagnostics.iter().filter(|diagnostic| diagnostic.severity > Severity::Info).count();
        assert!(loaded.resources.len() + told >= documents, "{} is passed over in silence", file.display());
        for diagnostic in loaded.diagnostics.iter().filter(|diagnostic| diagnostic.severity > Severity::Info) {
            assert!(diagnostic.line > 0 && diagnostic.resource.is_some(), "{diagnostic}");
        }
    }
}

#[test]
fn only_what_istio_refuses_is_refused() {
    let Some(folder) = corpus() else { return };
    let mut refused = BTreeSet::new();
    for file in load_paths(&[&folder], "default", &Limits::default()).files {
        if load_paths(&[&file], "default", &Limits::default()).has_errors() {
            refused.insert(file.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    // The old layout of a DestinationRule, a percentage that the API has dropped, an HTTPS server without tls.
    let known = ["circuit-breaker-legacy-layout.yaml", "faults.yaml", "gateway-and-egress.yaml"];
    if folder.ends_with("shared/corpus") {
        assert_eq!(refused, known.map(str::to_owned).into());
    }
}
