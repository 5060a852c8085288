//! The program `lateen`: control plane, proxy, certificate authority, runner and command line of the mesh.
//!
//! One file a subcommand below `cmd`; each has its arguments and a `run` that returns the exit code.
mod cmd;
mod log;
mod paint;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The first process inside a mesh's namespaces is this program again.
    lateen_runner::up::become_inside_if_told();
    let cli = cmd::Cli::parse();
    match cli.command.run() {
        Ok(code) => code,
        Err(error) => {
            // `{:#}` prints the causes after the message, on one line.
            eprintln!("lateen: {error:#}");
            ExitCode::FAILURE
        }
    }
}
