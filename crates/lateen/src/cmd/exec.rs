//! `lateen exec`: run a command in a pod's network and files, with this terminal as its input and output.
use std::process::ExitCode;

use lateen_runner::api::Request;
use lateen_runner::client::Client;

use super::mesh::{MeshArgs, NamespaceArgs, exit};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen exec deploy/productpage -- curl -s http://reviews:9080/
  lateen exec deploy/productpage -- lateen app get http://reviews:9080/
  lateen exec deploy/productpage -c istio-proxy -- curl -s localhost:15000/clusters")]
pub(crate) struct Args {
    /// Pod, or deploy/NAME for one of a Deployment's
    pod: String,
    /// Container whose environment and rights the command gets; the application's if not given
    #[arg(short, long)]
    container: Option<String>,
    /// Accepted for kubectl's sake: input is always passed on
    #[arg(short = 'i', long, hide = true)]
    stdin: bool,
    /// Accepted for kubectl's sake: a terminal is always passed on
    #[arg(short = 't', long, hide = true)]
    tty: bool,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    mesh: MeshArgs,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let request = Request::Exec {
        pod: args.pod.clone(),
        namespace: args.namespace.namespace.clone(),
        container: args.container.clone(),
        command: args.command.clone(),
        term: std::env::var("TERM").ok(),
    };
    Ok(exit(Client::connect(&args.mesh.mesh)?.exec(&request)?))
}
