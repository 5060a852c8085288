//! The subcommands, in the order that `--help` shows them.
mod analyze;
mod app;
mod control;
mod demo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A service mesh in one program: Istio's configuration language, Envoy's wire protocol.
#[derive(Debug, Parser)]
#[command(name = "lateen", version, propagate_version = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  lateen demo                        a live mesh to play with
  lateen up shop/                    run the Deployments, Services and rules of a folder
  lateen apply -f canary.yaml        change the running mesh
  lateen analyze shop/               what is wrong with a folder, without running it";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A live mesh of sample services to play with
    Demo(demo::Args),
    /// Check YAML without running it
    Analyze(analyze::Args),
    /// The control plane and certificate authority
    Control(control::Args),
    /// A sample service and load generator, for demos and tests
    App(lateen_app::AppArgs),
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Demo(args) => demo::run(&args),
            Self::Analyze(args) => analyze::run(&args),
            Self::Control(args) => control::run(&args),
            Self::App(args) => app::run(args).map(|()| ExitCode::SUCCESS),
        }
    }
}
