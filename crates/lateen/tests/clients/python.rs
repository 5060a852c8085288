//! gRPC by its library for Python on both sides, and a WebSocket client made of Python's standard library.
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::Outcome;
use crate::lab::{Lab, Way};

const GRPC: &str = include_str!("grpc_calls.py");
const WEBSOCKET: &str = include_str!("websocket_client.py");

/// The interpreter with the gRPC library, as `cargo xtask test` says it.
pub(crate) fn installed() -> Option<std::ffi::OsString> {
    std::env::var_os("LATEEN_TEST_PYTHON")
}

/// The gRPC server, to be started.
pub(crate) fn server(folder: &Path, port: u16) -> anyhow::Result<Option<Command>> {
    let Some(python) = installed() else { return Ok(None) };
    let script = folder.join("grpc_calls.py");
    std::fs::write(&script, GRPC)?;
    let mut command = Command::new(python);
    command.arg(script).args(["serve", &port.to_string()]);
    Ok(Some(command))
}

fn ask(lab: &Lab, way: Way, mut command: Command) -> anyhow::Result<String> {
    command.arg(lab.port(way).to_string()).arg(lab.requests().to_string());
    if way == Way::Mutual {
        command.args(["ca.pem", "client.pem", "client.key"].map(|name| lab.file(name)));
    }
    let (out, ended_well) = lab.client(&mut command)?;
    let last = out.lines().last().unwrap_or_default().to_owned();
    ensure!(ended_well && last.starts_with("0 errors"), "{out}");
    Ok(last)
}

pub(crate) fn grpc(lab: &Lab, way: Way) -> anyhow::Result<Outcome> {
    let Some(python) = installed() else {
        return Ok(Outcome::Skipped("LATEEN_TEST_PYTHON is not set (`cargo xtask test` sets it), so there is no gRPC library to try"));
    };
    let mut command = Command::new(python);
    command.arg(lab.file("grpc_calls.py")).arg("call");
    ask(lab, way, command).map(Outcome::Done)
}

pub(crate) fn websocket(lab: &Lab, way: Way) -> anyhow::Result<Outcome> {
    let script = lab.file("websocket_client.py");
    std::fs::write(&script, WEBSOCKET)?;
    let python = installed().unwrap_or_else(|| "python3".into());
    if Command::new(&python).arg("--version").output().is_err() {
        return Ok(Outcome::Skipped("there is no python3"));
    }
    let mut command = Command::new(python);
    command.arg(script);
    ask(lab, way, command).context("a WebSocket client").map(Outcome::Done)
}
