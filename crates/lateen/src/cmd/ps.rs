//! `lateen ps`: every process of the mesh with its memory and processor time.
use std::process::ExitCode;

use lateen_runner::api::Request;

use super::mesh::MeshArgs;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.mesh.run(&Request::Ps)
}
