//! `lateen get`: what the mesh holds, in kubectl's columns.
use std::process::ExitCode;

use lateen_runner::api::{Output, Request};

use super::mesh::{MeshArgs, NamespaceArgs};

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Yaml,
    Json,
    Wide,
    Name,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen get pods -A -o wide
  lateen get virtualservice reviews -o yaml
  lateen get vs,dr,gw
  lateen get pods -w")]
pub(crate) struct Args {
    /// Kind, its short name, several with commas, or all
    kind: String,
    /// Names; everything of the kind if none
    names: Vec<String>,
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// Go on and show what changes
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let output = match args.output {
        None => Output::Table,
        Some(Format::Wide) => Output::Wide,
        Some(Format::Yaml) => Output::Yaml,
        Some(Format::Json) => Output::Json,
        Some(Format::Name) => Output::Name,
    };
    let namespace = (!args.all_namespaces).then(|| args.namespace.namespace.clone());
    args.mesh.run(&Request::Get { kinds: args.kind.clone(), names: args.names.clone(), namespace, output, watch: args.watch })
}
