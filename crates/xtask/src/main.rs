//! Tasks of this repository: `cargo xtask test` installs the foreign peers and runs every test.
mod instructions;
mod peers;
#[cfg(test)]
mod targets;

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

const HELP: &str = "\
Usage: cargo xtask <TASK>

Tasks:
  test [ARGS…]   install the foreign peers (Envoy, gRPC) below target/peers and run every test
  peers          install the foreign peers only
  clients [N]    run the clients of other languages with N requests each (a million where nothing is said)
  instructions [--check | --write]
                 count what a request costs (needs valgrind); compare with the committed figures, or replace them
  fuzz TARGET [--seconds N] [--seed N]
                 look for bytes that make a reader panic; without a target, lists them
  soak [--minutes N]
                 mixed traffic while everything changes, for 1 minute or so many; no call may fail, memory must stay flat
  lint           formatting and clippy, as continuous integration runs them";

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let outcome = match args.next().as_deref() {
        Some("test") => test(args),
        Some("peers") => peers::install().map(|_| ()),
        Some("soak") => soak(args),
        Some("clients") => clients(args.next()),
        Some("lint") => lint(),
        Some("instructions") => instructions::run(args),
        Some("fuzz") => run(cargo().args(["run", "--quiet", "-p", "lateen-fuzz", "--"]).args(args)),
        _ => {
            println!("{HELP}");
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn test(args: impl Iterator<Item = String>) -> Result<(), String> {
    let peers = peers::install()?;
    let mut cargo = cargo();
    // All that is wrong is told at once, not the first crate's mistakes alone.
    cargo.args(["test", "--workspace", "--no-fail-fast"]).args(args);
    for (key, value) in peers.environment() {
        cargo.env(key, value);
    }
    run(&mut cargo)
}

fn soak(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let minutes = match (args.next().as_deref(), args.next()) {
        (None, _) => "1".to_owned(),
        (Some("--minutes"), Some(minutes)) => minutes,
        _ => return Err("soak takes --minutes N".to_owned()),
    };
    let seconds = minutes.parse::<u64>().map_err(|e| format!("--minutes {minutes}: {e}"))? * 60;
    run(cargo().args(["test", "-p", "lateen", "--test", "soak", "--", "--nocapture"]).env("LATEEN_SOAK_SECONDS", seconds.to_string()))
}

fn clients(requests: Option<String>) -> Result<(), String> {
    let peers = peers::install()?;
    let mut cargo = cargo();
    cargo.args(["test", "--release", "-p", "lateen", "--test", "clients"]);
    cargo.env("LATEEN_CLIENT_REQUESTS", requests.as_deref().unwrap_or("1000000"));
    for (key, value) in peers.environment() {
        cargo.env(key, value);
    }
    run(&mut cargo)
}

fn lint() -> Result<(), String> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// The repository's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("."))
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command to its end, its output going where ours goes.
fn run(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|e| format!("{} does not start: {e}", command.get_program().display()))?;
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", command.get_program().display())) }
}
