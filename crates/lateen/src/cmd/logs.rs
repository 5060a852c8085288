//! `lateen logs`: what a container prints.
use std::process::ExitCode;

use lateen_runner::api::Request;

use super::mesh::{MeshArgs, NamespaceArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen logs deploy/reviews-v1 -f
  lateen logs reviews-v1-5b7d9c6f4-x2x8z -c istio-proxy --tail 20")]
pub(crate) struct Args {
    /// Pod, or deploy/NAME for one of a Deployment's
    pod: String,
    /// Container; the application's if not given
    #[arg(short, long)]
    container: Option<String>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Of the run before the last restart
    #[arg(short, long)]
    previous: bool,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.mesh.run(&Request::Logs {
        pod: args.pod.clone(),
        namespace: args.namespace.namespace.clone(),
        container: args.container.clone(),
        follow: args.follow,
        tail: args.tail,
        previous: args.previous,
    })
}
