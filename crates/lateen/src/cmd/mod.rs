//! The subcommands, in the order that `--help` shows them.
mod agent;
mod analyze;
mod app;
mod apply;
mod control;
mod delete;
mod demo;
mod down;
mod exec;
mod get;
mod logs;
mod mesh;
mod proxy;
mod ps;
mod restart;
mod up;
mod waiting;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// What serves has read its configuration by then, and gives back what reading it took.
const SETTLED: Duration = Duration::from_secs(3);

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
    /// Run Deployments, Services and Istio YAML as processes of this machine
    Up(up::Args),
    /// End a mesh; nothing of it is left
    Down(down::Args),
    /// Change the running mesh to what files say
    Apply(apply::Args),
    /// Remove resources from the running mesh
    Delete(delete::Args),
    /// Show what the mesh holds
    Get(get::Args),
    /// Show what a container prints
    Logs(logs::Args),
    /// Run a command in a pod
    Exec(exec::Args),
    /// Every process of the mesh with its memory and processor time
    Ps(ps::Args),
    /// Check YAML without running it
    Analyze(analyze::Args),
    /// The control plane and certificate authority
    Control(control::Args),
    /// The data plane: a sidecar, a gateway, or an Envoy bootstrap file
    Proxy(proxy::Args),
    /// Certificates and bootstrap for a stock Envoy as sidecar or gateway
    Agent(agent::Args),
    /// A sample service and load generator, for demos and tests
    App(lateen_app::AppArgs),
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Demo(args) => demo::run(&args),
            Self::Up(args) => up::run(&args),
            Self::Down(args) => down::run(&args),
            Self::Apply(args) => apply::run(&args),
            Self::Delete(args) => delete::run(&args),
            Self::Get(args) => get::run(&args),
            Self::Logs(args) => logs::run(&args),
            Self::Exec(args) => exec::run(&args),
            Self::Ps(args) => ps::run(&args),
            Self::Analyze(args) => analyze::run(&args),
            Self::Control(args) => control::run(&args),
            Self::Proxy(args) => proxy::run(&args),
            Self::Agent(args) => agent::run(&args),
            Self::App(args) => app::run(args).map(|()| ExitCode::SUCCESS),
        }
    }
}
