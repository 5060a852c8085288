//! Targets, their corpora, and the seeded mutation that makes new inputs of old ones. It needs no nightly compiler.
mod mutate;
pub mod search;
mod target;

pub use mutate::Mutator;

use std::path::PathBuf;

/// Something that reads bytes from outside. `run` panics when it finds what must not be.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs to begin with, besides the files of the corpus.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: [Target; 6] = [
    Target { name: "http1_requests", run: target::http1::requests, seeds: target::http1::request_seeds },
    Target { name: "http1_responses", run: target::http1::responses, seeds: target::http1::response_seeds },
    Target { name: "http2", run: target::http2::run, seeds: target::http2::seeds },
    Target { name: "first_bytes", run: target::first_bytes::run, seeds: target::first_bytes::seeds },
    Target { name: "resources", run: target::resources::run, seeds: target::resources::seeds },
    Target { name: "bootstrap", run: target::bootstrap::run, seeds: target::bootstrap::seeds },
];

impl Target {
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|t| t.name == name)
    }

    /// Where inputs that once found something are kept.
    pub fn folder(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name)
    }

    /// Seeds, and the files of the corpus in the order of their names.
    pub fn corpus(&self) -> Vec<Vec<u8>> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(self.folder()).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default();
        files.sort();
        let mut all = (self.seeds)();
        all.extend(files.iter().filter_map(|f| std::fs::read(f).ok()));
        all
    }
}
