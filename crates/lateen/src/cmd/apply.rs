//! `lateen apply`: change the running mesh to what files say.
use std::process::ExitCode;

use lateen_runner::api::Request;
use lateen_runner::client::read_sources;

use super::mesh::{MeshArgs, NamespaceArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen apply -f canary.yaml
  lateen apply -f rules/ -n shop
  sed s/90/50/ canary.yaml | lateen apply -f -

A resource with a mistake is refused with its place in the file; the others are applied, and the exit code is 1.")]
pub(crate) struct Args {
    /// Files, folders, or - for standard input
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    files: Vec<String>,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.mesh.run(&Request::Apply { sources: read_sources(&args.files)?, namespace: args.namespace.namespace.clone() })
}
