//! `lateen demo`: a bookstore in a live mesh, five things to try, and what its traffic does meanwhile.
mod edges;
mod guide;
mod scenario;
mod screen;
mod watch;

use std::process::ExitCode;

use clap::Subcommand;
use lateen_runner::config::{Publish, SourceText, UpConfig};
use lateen_runner::pod::inject::DataPlane;
use lateen_runner::up;

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  lateen demo                                      until Ctrl-C, which leaves nothing behind
  lateen demo show canary                          the YAML of one of the five things to try
  lateen demo show canary | lateen apply -f -      and try it on the running demo"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<DemoCommand>,
    /// Name of the mesh, for a second demo beside another
    #[arg(long, default_value = "default", env = "LATEEN_MESH")]
    name: String,
    /// Port of the ingress gateway on 127.0.0.1; 0 for any free one
    #[arg(long, default_value_t = 8080, value_name = "PORT", env = "LATEEN_INGRESS_PORT")]
    ingress_port: u16,
    /// What runs beside each service
    #[arg(long, default_value = "lateen", value_parser = ["lateen", "envoy"])]
    data_plane: String,
}

#[derive(Debug, Subcommand)]
enum DemoCommand {
    /// Print the YAML of the bookstore or of one of the things to try
    Show {
        #[arg(value_parser = scenario::names())]
        what: String,
    },
    /// Print what sidecars measured, once a second (used by the demo itself)
    #[command(hide = true)]
    Watch {
        /// Addresses of the sidecars' statistics
        targets: Vec<std::net::SocketAddr>,
    },
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Some(DemoCommand::Show { what }) => {
            print!("{}", scenario::yaml(what).unwrap_or_default());
            Ok(ExitCode::SUCCESS)
        }
        Some(DemoCommand::Watch { targets }) => watch::run(targets),
        None => live(args),
    }
}

fn live(args: &Args) -> anyhow::Result<ExitCode> {
    let config = UpConfig {
        name: args.name.clone(),
        data_plane: if args.data_plane == "envoy" { DataPlane::Envoy } else { DataPlane::Lateen },
        publish: vec![ingress(args.ingress_port)],
        sources: vec![SourceText { file: "demo/bookstore.yaml".into(), text: scenario::BOOKSTORE.into() }],
        quiet: true,
        ..UpConfig::default()
    };
    eprintln!("Starting the bookstore…");
    // The runner forks: no other thread may be there yet.
    let mesh = up::start(config)?;
    let port = mesh.published.first().map_or(args.ingress_port, |p| p.host_port);
    let name = args.name.clone();
    std::thread::Builder::new().name("guide".into()).spawn(move || {
        if let Err(error) = guide::run(&name, port) {
            eprintln!("lateen: {error:#}");
        }
    })?;
    let code = mesh.serve()?;
    screen::leave();
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn ingress(host_port: u16) -> Publish {
    Publish { host_port, namespace: "istio-system".into(), service: "istio-ingressgateway".into(), port: 80 }
}
