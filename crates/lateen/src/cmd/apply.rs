//! `lateen apply`: change the running mesh to what files say.
use std::process::ExitCode;

use lateen_runner::api::Request;
use lateen_runner::client::read_sources;

use super::mesh::{MeshArgs, NamespaceArgs, exit};
use super::waiting;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen apply -f canary.yaml
  lateen apply -f rules/ -n shop
  lateen apply -f services.yaml --wait
  sed s/90/50/ canary.yaml | lateen apply -f -

A resource with a mistake is refused with its place in the file; the others are applied, and the exit code is 1.")]
pub(crate) struct Args {
    /// Files, folders, or - for standard input
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Return when every pod is ready
    #[arg(long)]
    wait: bool,
    /// How long --wait waits, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let request = Request::Apply { sources: read_sources(&args.files)?, namespace: args.namespace.namespace.clone() };
    let applied = args.mesh.run(&request)?;
    if !args.wait || applied != ExitCode::SUCCESS {
        return Ok(applied);
    }
    Ok(exit(waiting::until_ready(&args.mesh.mesh, args.timeout, false)?))
}
