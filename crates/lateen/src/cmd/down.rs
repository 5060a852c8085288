//! `lateen down`: end a mesh; nothing of it is left.
use std::process::ExitCode;

use lateen_runner::client;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the mesh, as given to `up`
    #[arg(long, default_value = "default", env = "LATEEN_MESH")]
    name: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    client::down(&args.name)?;
    println!("mesh `{}` is down", args.name);
    Ok(ExitCode::SUCCESS)
}
