//! `lateen agent`: runs a stock Envoy as sidecar or gateway, with the certificates and the bootstrap it needs.
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use lateen_identity::sds::SdsServer;
use lateen_proxy::bootstrap::{Environment, EnvoyBootstrap, Role, StatsChoice};
use serde_json::json;
use tokio::process::{Child, Command};

use super::workload;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen agent sidecar                    as injected: the environment says all (POD_NAME, INSTANCE_IP …)
  LATEEN_ENVOY=/opt/envoy lateen agent router

Certificates are obtained from the mesh's authority and given to Envoy over a unix socket (SDS).")]
pub(crate) struct Args {
    /// What Envoy is to be
    #[arg(value_enum)]
    role: Kind,
    /// The Envoy binary
    #[arg(long, env = "LATEEN_ENVOY", default_value = "envoy", value_name = "PATH")]
    envoy: PathBuf,
    /// Where the socket and the bootstrap are kept while it runs
    #[arg(long, default_value = "/var/run/lateen", value_name = "DIR")]
    folder: PathBuf,
    /// What to log: error, warn, info, debug, or module=level
    #[arg(short, long, default_value = "warn")]
    log_level: String,
    /// The DNS domain of the pod's namespace, as injection passes it
    #[arg(long, value_name = "DOMAIN", hide = true)]
    domain: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Sidecar,
    Router,
}

/// Istio's ports of a sidecar's admin, statistics and health.
const ADMIN: u16 = 15_000;
const STATISTICS: u16 = 15_090;
const HEALTH: u16 = 15_021;
/// `SO_MARK` of `setsockopt`, level `SOL_SOCKET`.
const SOL_SOCKET: u32 = 1;
const SO_MARK: u32 = 36;

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let _ = crate::log::start(&args.log_level);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    runtime.block_on(supervise(args))
}

async fn supervise(args: &Args) -> anyhow::Result<ExitCode> {
    let role = if args.role == Kind::Sidecar { Role::Sidecar } else { Role::Router };
    let environment = Environment::of_process(role)?;
    std::fs::create_dir_all(&args.folder).with_context(|| format!("{} cannot be made", args.folder.display()))?;
    let rotation = workload::rotation(&environment)?;
    let socket = args.folder.join("sds.sock");
    let _sds = SdsServer::start(&socket, rotation.secrets()).with_context(|| format!("no secret service at {}", socket.display()))?;
    let bootstrap = bootstrap(&environment, &socket)?;
    let file = args.folder.join("envoy.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&bootstrap)?).with_context(|| format!("{} cannot be written", file.display()))?;
    let mut envoy = envoy(args, &environment, &file)?;
    let told = lateen_app::terminated()?;
    tokio::select! {
        status = envoy.wait() => {
            let status = status?;
            bail!("Envoy ended by itself with {status}");
        }
        () = told => {}
    }
    stop(&mut envoy, Duration::from_secs(environment.drain_seconds)).await?;
    Ok(ExitCode::SUCCESS)
}

fn bootstrap(environment: &Environment, socket: &Path) -> anyhow::Result<serde_json::Value> {
    let token = std::fs::read_to_string(&environment.token).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
    let settings = EnvoyBootstrap {
        control_plane: workload::control_plane(environment)?,
        secrets: socket.display().to_string(),
        admin_port: ADMIN,
        stats_port: STATISTICS,
        health_port: HEALTH,
        stats: StatsChoice::All,
        authorization: token,
    };
    let mut bootstrap = settings.render(environment);
    if let (Some(mark), Some(fields)) = (workload::socket_mark()?, bootstrap.as_object_mut()) {
        let option = json!({"description": "lets capture rules tell Envoy's connections", "level": SOL_SOCKET, "name": SO_MARK, "int_value": mark, "state": "STATE_PREBIND"});
        fields.insert("cluster_manager".into(), json!({"upstream_bind_config": {"socket_options": [option]}}));
    }
    Ok(bootstrap)
}

fn envoy(args: &Args, environment: &Environment, file: &Path) -> anyhow::Result<Child> {
    let concurrency = environment.concurrency.unwrap_or(1).to_string();
    Command::new(&args.envoy)
        .args([
            "--concurrency",
            &concurrency,
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "--component-log-level",
            "misc:error",
            "--drain-time-s",
        ])
        .arg(environment.drain_seconds.to_string())
        .arg("-c")
        .arg(file)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} does not start; name the Envoy binary with --envoy or LATEEN_ENVOY", args.envoy.display()))
}

/// Asks Envoy to end, and ends it when it does not.
async fn stop(envoy: &mut Child, patience: Duration) -> anyhow::Result<()> {
    if let Some(pid) = envoy.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
    if tokio::time::timeout(patience, envoy.wait()).await.is_err() {
        envoy.kill().await?;
    }
    Ok(())
}
