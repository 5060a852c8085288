//! `lateen proxy`: the data plane, from an Envoy bootstrap file or from the environment of Istio's agent.
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use lateen_identity::WorkloadSecrets;
use lateen_proxy::admin::AdminOptions;
use lateen_proxy::bootstrap::{Environment, Role, agent_bootstrap, node};
use lateen_proxy::main_thread::{DrainPlan, Main, Options, Phase, Process, start, token_file};
use lateen_snapshot::bootstrap::{Bootstrap, load};
use lateen_telemetry::istio::PeerMetadata;
use lateen_telemetry::stats::TagStyle;
use tokio::sync::watch;

use super::restart::RestartArgs;
use super::workload;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen proxy -c envoy.yaml                       serve a static Envoy bootstrap
  lateen proxy -c envoy.yaml --mode validate       only say whether it would be accepted
  lateen proxy sidecar                             as injected: the environment says all (POD_NAME, INSTANCE_IP …)
  lateen proxy -c envoy.yaml --restart-epoch 0     can be replaced while it serves …
  lateen proxy -c envoy.yaml --restart-epoch 1     … by this one, without a lost request

The exit code is 0 after a graceful end (SIGTERM, SIGINT, POST /quitquitquit), and after
another process has taken over.")]
pub(crate) struct Args {
    /// Take the configuration from a control plane, as Istio's agent does
    #[arg(value_enum, conflicts_with = "config", required_unless_present_any = ["config", "hot_restart_version"])]
    role: Option<Kind>,
    /// An Envoy bootstrap, YAML or JSON
    #[arg(short, long = "config-path", visible_alias = "config", value_name = "FILE", id = "config")]
    config: Option<PathBuf>,
    /// Worker threads [default: the number of CPUs with -c, else PROXY_CONFIG's or 2]
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,
    /// Only check the configuration
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    mode: Mode,
    /// What to log: error, warn, info, debug, or module=level
    #[arg(short, long, default_value = "warn")]
    log_level: String,
    /// Seconds that open connections may take to end when told to stop [default: 5]
    #[arg(long, value_name = "SECONDS")]
    drain_time_s: Option<u64>,
    /// Whether connections end spread over a graceful drain of the listeners, or each with its next response
    #[arg(long, value_enum, default_value_t = Strategy::Gradual)]
    drain_strategy: Strategy,
    /// The DNS domain of the pod's namespace, as injection passes it
    #[arg(long, value_name = "DOMAIN", hide = true)]
    domain: Option<String>,
    #[command(flatten)]
    restart: RestartArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Sidecar,
    Router,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Strategy {
    Gradual,
    Immediate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Serve,
    Validate,
}

impl Args {
    /// For `/server_info`, under Envoy's names.
    fn shown(&self) -> serde_json::Value {
        let mut shown = self.restart.shown();
        shown["config_path"] = self.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default().into();
        shown["log_level"] = self.log_level.clone().into();
        shown
    }
}

/// Health for probes, statistics for scrapers: Istio's ports.
const HEALTH: u16 = 15_021;
const STATISTICS: u16 = 15_090;

/// How long the proxy has served by the time it gives back what its start needed: the first requests touch some of that.
const LIVE_FOR: Duration = Duration::from_millis(300);
/// A first configuration that has not come by then is not waited for.
const SETTLED_AT_LATEST: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.restart.hot_restart_version {
        println!("{}", lateen_proxy::restart::version());
        return Ok(ExitCode::SUCCESS);
    }
    let level = crate::log::start(&args.log_level);
    match (&args.config, args.role) {
        (Some(file), _) => {
            let bootstrap = load(file)?;
            if args.mode == Mode::Validate {
                println!("configuration '{}' OK", file.display());
                return Ok(ExitCode::SUCCESS);
            }
            runtime()?.block_on(serve_file(args, bootstrap, level))
        }
        (None, Some(kind)) => {
            let role = if kind == Kind::Sidecar { Role::Sidecar } else { Role::Router };
            runtime()?.block_on(serve_agent(args, role, level))
        }
        (None, None) => anyhow::bail!("name a configuration with -c, or a role: sidecar or router"),
    }
}

/// The main thread's own: discovery, certificates, admin. Requests run on the workers.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()
}

async fn serve_file(args: &Args, bootstrap: Bootstrap, level: crate::log::Level) -> anyhow::Result<ExitCode> {
    let local = bootstrap.node.metadata.as_ref().map(PeerMetadata::from_struct).unwrap_or_default();
    let drain_time = Duration::from_secs(args.drain_time_s.unwrap_or(5));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options {
        bootstrap,
        concurrency: args.concurrency.unwrap_or(cpus),
        pin: false,
        upstream_mark: None,
        identity: None,
        token: None,
        local,
        tags: TagStyle::Envoy,
        drain_time,
        drain_gradually: args.drain_strategy == Strategy::Gradual,
        admin: AdminOptions { logging: Some(level), command_line: args.shown(), ..AdminOptions::default() },
        restart: args.restart.options()?,
    };
    serve(options, DrainPlan { grace: drain_time, minimum: Duration::ZERO, exit_when_idle: true }).await
}

async fn serve_agent(args: &Args, role: Role, level: crate::log::Level) -> anyhow::Result<ExitCode> {
    let environment = Environment::of_process(role)?;
    let rotation = workload::rotation(&environment)?;
    let identity: watch::Receiver<Option<Arc<WorkloadSecrets>>> = rotation.secrets();
    let bootstrap = agent_bootstrap(&environment, &workload::control_plane(&environment)?).context("no way to the control plane")?;
    let local = node(&environment).metadata.as_ref().map(PeerMetadata::from_struct).unwrap_or_default();
    let drain_time = Duration::from_secs(args.drain_time_s.unwrap_or(environment.drain_seconds));
    let any = |port| Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    let options = Options {
        bootstrap,
        concurrency: args.concurrency.or(environment.concurrency.map(|n| n as usize)).unwrap_or(2),
        pin: false,
        upstream_mark: workload::socket_mark()?,
        identity: Some(identity),
        token: Some(token_file(environment.token.clone())),
        local,
        tags: TagStyle::Istio,
        drain_time,
        drain_gradually: args.drain_strategy == Strategy::Gradual,
        admin: AdminOptions {
            logging: Some(level),
            command_line: args.shown(),
            health: any(HEALTH),
            stats: any(STATISTICS),
            agent: any(environment.status_port),
        },
        restart: args.restart.options()?,
    };
    // Istio waits out the whole time unless it is told to end on zero connections; a proxy without connections has
    // nothing to wait for, so here the switch only adds the least time.
    let minimum = if environment.exit_on_zero { environment.minimum_drain_seconds } else { 0 };
    serve(
        options,
        DrainPlan { grace: drain_time.max(Duration::from_secs(minimum)), minimum: Duration::from_secs(minimum), exit_when_idle: true },
    )
    .await
}

async fn serve(options: Options, plan: DrainPlan) -> anyhow::Result<ExitCode> {
    let process = start(options).await?;
    tokio::spawn(settle(process.main.clone()));
    let mut reopen = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined1())?;
    let told = lateen_app::terminated()?;
    tokio::pin!(told);
    loop {
        tokio::select! {
            () = &mut told => break,
            () = process.quit() => break,
            () = process.replaced() => return replaced(process).await,
            why = process.worker_died() => {
                eprintln!("lateen: a worker ended by a mistake of this program, please report it: {why}");
                return Ok(ExitCode::FAILURE);
            }
            _ = reopen.recv() => process.reopen_logs(),
        }
    }
    process.shut_down(plan).await;
    Ok(ExitCode::SUCCESS)
}

/// The end of a process whose place another one has taken: nothing is left to wait for.
async fn replaced(process: Process) -> anyhow::Result<ExitCode> {
    process.shut_down(DrainPlan { grace: Duration::ZERO, minimum: Duration::ZERO, exit_when_idle: true }).await;
    Ok(ExitCode::SUCCESS)
}

/// Gives back what only the start needed, as soon as the first configuration serves.
async fn settle(main: Arc<Main>) {
    let latest = Instant::now() + SETTLED_AT_LATEST;
    while main.phase() != Phase::Live && Instant::now() < latest {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lateen_core::memory::settle_after(LIVE_FOR);
}
