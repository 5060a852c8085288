//! `lateen delete`: remove what files hold, or by kind and name.
use std::process::ExitCode;

use lateen_runner::api::Request;
use lateen_runner::client::read_sources;

use super::mesh::{MeshArgs, NamespaceArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen delete -f canary.yaml
  lateen delete virtualservice reviews
  lateen delete pod reviews-v1-5b7d9c6f4-x2x8z     another one takes its place")]
pub(crate) struct Args {
    /// Kind and names, or kind/name
    #[arg(value_name = "KIND NAME", required_unless_present = "files", conflicts_with = "files")]
    what: Vec<String>,
    /// Files, folders, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<String>,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let namespace = args.namespace.namespace.clone();
    if !args.files.is_empty() {
        return args.mesh.run(&Request::DeleteSources { sources: read_sources(&args.files)?, namespace });
    }
    let (kind, names) = match args.what.split_first() {
        Some((kind, names)) if !names.is_empty() => (kind.clone(), names.to_vec()),
        Some((both, _)) => match both.split_once('/') {
            Some((kind, name)) => (kind.to_owned(), vec![name.to_owned()]),
            None => anyhow::bail!("say which {both} to delete: `lateen delete {both} NAME`"),
        },
        None => anyhow::bail!("say what to delete: `lateen delete KIND NAME` or `lateen delete -f FILE`"),
    };
    args.mesh.run(&Request::Delete { kind, names, namespace })
}
