//! `lateen up`: run Deployments, Services and Istio YAML as processes of this machine.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use lateen_runner::client::read_sources;
use lateen_runner::config::{Publish, UpConfig};
use lateen_runner::pod::inject::DataPlane;
use lateen_runner::up;

use super::waiting;

/// Which proxy runs as sidecar and gateway.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Plane {
    Lateen,
    Envoy,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen up shop/                       run a folder; Ctrl-C ends it without a trace
  lateen up shop/ --detach              run it in the background; `lateen down` ends it
  lateen up shop/ --image shop/web=/usr/local/bin/web
                                        what stands for an image that a Deployment names
  lateen up shop/ --data-plane envoy    with the real Envoy as every sidecar

Each pod is a group of processes with a network, a host name and a /run of its own; its other files are this
machine's. A container runs its `command:`, or what --image says, or the sample service for image lateen/app.")]
pub(crate) struct Args {
    /// Files and folders of YAML or JSON; - reads standard input
    #[arg(value_name = "FILE")]
    files: Vec<String>,
    /// Name of this mesh, for a second one beside the first
    #[arg(long, default_value = "default", env = "LATEEN_MESH")]
    name: String,
    /// The proxy of every sidecar and gateway
    #[arg(long, value_enum, default_value = "lateen")]
    data_plane: Plane,
    /// The Envoy binary for --data-plane envoy; found on the PATH if not given
    #[arg(long, value_name = "PATH")]
    envoy: Option<String>,
    /// Run in the background, return when everything is ready
    #[arg(long, short)]
    detach: bool,
    /// Host port that leads to the ingress gateway's port 80; 0 for a free one
    #[arg(long, default_value_t = 8080, value_name = "PORT", env = "LATEEN_INGRESS_PORT")]
    ingress_port: u16,
    /// Do not run an ingress gateway
    #[arg(long)]
    no_ingress: bool,
    /// Do not run a control plane: plain processes with names and addresses
    #[arg(long)]
    no_control_plane: bool,
    /// Pods in namespace default get a sidecar only if a label says so
    #[arg(long)]
    no_default_injection: bool,
    /// Host port that leads to a service
    #[arg(long = "publish", value_name = "HOSTPORT:[NS/]SERVICE:PORT")]
    publish: Vec<Publish>,
    /// The command that stands for an image
    #[arg(long = "image", value_name = "NAME=COMMAND", value_parser = image)]
    images: Vec<(String, Vec<String>)>,
    /// Trust domain of all identities
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// IPv6 addresses for pods and services too
    #[arg(long)]
    dual_stack: bool,
    /// How long to wait until everything is ready, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    /// Say only what went wrong
    #[arg(long, short)]
    quiet: bool,
}

fn image(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, command) = text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form NAME=COMMAND"))?;
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    if name.is_empty() || words.is_empty() {
        return Err(format!("`{text}` is not of the form NAME=COMMAND"));
    }
    Ok((name.to_owned(), words))
}

/// Set for the background half of `--detach`: the process tells its parent when the mesh runs.
const BACKGROUND: &str = "LATEEN_UP_BACKGROUND";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let background = std::env::var_os(BACKGROUND).is_some();
    if args.detach && !background {
        return detach(args);
    }
    let config = config(args)?;
    let (quiet, gateway) = (config.quiet, config.ingress_gateway);
    let outer = up::start(config)?;
    if !quiet {
        for publish in &outer.published {
            let what = if gateway && publish.service == "istio-ingressgateway" { "ingress" } else { "published" };
            eprintln!("{what}: http://127.0.0.1:{} -> {}/{}:{}", publish.host_port, publish.namespace, publish.service, publish.port);
        }
    }
    if !quiet && !background {
        let (name, timeout, since) = (args.name.clone(), args.timeout, Instant::now());
        std::thread::Builder::new().name("waiting".into()).spawn(move || match waiting::until_ready(&name, timeout, false) {
            Ok(0) => eprintln!(
                "mesh `{name}` is ready after {:.1} s; `lateen get pods -A{}` shows its pods, Ctrl-C ends it",
                since.elapsed().as_secs_f64(),
                flag(&name)
            ),
            Ok(_) => {}
            // It ended while we waited, and has said why.
            Err(_) => {}
        })?;
    }
    if background {
        println!("started");
        let _ = std::io::stdout().flush();
    }
    let code = outer.serve()?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn config(args: &Args) -> anyhow::Result<UpConfig> {
    let ingress = !args.no_ingress && !args.no_control_plane;
    let mut publish = args.publish.clone();
    if ingress {
        let gateway =
            Publish { host_port: args.ingress_port, namespace: "istio-system".into(), service: "istio-ingressgateway".into(), port: 80 };
        publish.insert(0, gateway);
    }
    Ok(UpConfig {
        name: args.name.clone(),
        data_plane: match args.data_plane {
            Plane::Lateen => DataPlane::Lateen,
            Plane::Envoy => DataPlane::Envoy,
        },
        control_plane: !args.no_control_plane,
        ingress_gateway: ingress,
        inject_default: !args.no_default_injection,
        trust_domain: args.trust_domain.clone(),
        publish,
        images: args.images.iter().cloned().collect::<BTreeMap<_, _>>(),
        dual_stack: args.dual_stack,
        envoy_path: args.envoy.as_deref().map(absolute),
        sources: read_sources(&args.files)?,
        quiet: args.quiet,
    })
}

/// Pods run in another folder: a path must not depend on ours. A bare name is looked up on the PATH.
fn absolute(program: &str) -> String {
    match std::path::absolute(program) {
        Ok(path) if program.contains('/') => path.display().to_string(),
        _ => program.to_owned(),
    }
}

/// How the other commands are told which mesh is meant.
fn flag(name: &str) -> String {
    if name == "default" { String::new() } else { format!(" --name {name}") }
}

/// Starts the same command again in a session of its own, and waits until its mesh is ready.
fn detach(args: &Args) -> anyhow::Result<ExitCode> {
    let (report, told) = std::io::pipe()?;
    // Passed on until the mesh is ready and no longer: who waits for the end of our output must not wait for the mesh's.
    let (mut errors, complaints) = std::io::pipe()?;
    let passing = std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::stderr()));
    // What is wrong at the start is said here; later output has nowhere to go but the pods' logs.
    let mut child = Command::new("/proc/self/exe")
        .arg0("lateen")
        .args(std::env::args_os().skip(1))
        .env(BACKGROUND, "1")
        .stdin(if args.files.iter().any(|f| f == "-") { Stdio::inherit() } else { Stdio::null() })
        .stdout(Stdio::from(OwnedFd::from(told)))
        .stderr(Stdio::from(OwnedFd::from(complaints)))
        .process_group(0)
        .spawn()?;
    let mut line = String::new();
    BufReader::new(report).read_line(&mut line)?;
    if line.trim() != "started" {
        let status = child.wait()?;
        let _ = passing.join();
        return Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)));
    }
    let code = waiting::until_ready(&args.name, args.timeout, args.quiet)?;
    if !args.quiet {
        let flag = flag(&args.name);
        eprintln!("mesh `{}` is up; `lateen get pods -A{flag}` shows its pods, `lateen down{flag}` ends it", args.name);
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
