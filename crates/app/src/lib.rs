//! The built-in sample service: what demos and tests run where others would need container images.
//!
//! One port answers HTTP/1.1, HTTP/2, gRPC and WebSocket, another plain TCP. The service calls others in a
//! chain, shows what reached it, and can be told to be slow or to fail. [`load`] is the other side: a client
//! that sends at a fixed rate and reports latencies and which versions answered.
mod answer;
mod call;
mod get;
mod grpc;
mod http;
pub mod load;
mod options;
mod server;
mod state;
mod tcp;
mod websocket;

pub use get::{GetOptions, get};
pub use options::{Format, Latency, ServeOptions};
pub use server::Server;

use clap::{Args, Subcommand};
use std::future::Future;

/// `lateen app`: without a subcommand it serves.
#[derive(Debug, Args)]
// `--version` is the service's, so the program's own flag of that name must not be added here.
#[command(args_conflicts_with_subcommands = true, disable_version_flag = true)]
pub struct AppArgs {
    #[command(subcommand)]
    pub command: Option<AppCommand>,
    #[command(flatten)]
    pub serve: ServeOptions,
}

/// What the sample service can do besides serving.
#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// Send requests at a fixed rate and report latencies, statuses and which versions answered
    Load(load::LoadOptions),
    /// Send one or more requests and print the answers
    Get(GetOptions),
}

/// Runs `lateen app …` to its end: until SIGTERM or Ctrl-C when serving.
///
/// # Errors
/// When a port is taken, a URL is wrong, or (for `get` and `load`) nothing could be sent.
pub fn run(args: AppArgs) -> anyhow::Result<()> {
    match args.command {
        None => block_on(async move { Server::bind(args.serve).await?.run(terminated()?).await }),
        Some(AppCommand::Load(options)) => block_on(load::run_and_print(options)),
        Some(AppCommand::Get(options)) => block_on(get(options)),
    }
}

/// One thread and few helpers for name lookups: a sample service must stay small.
fn block_on(future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, future);
    // A name lookup that hangs must not keep the process from ending.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    outcome
}

/// Resolves at SIGTERM or SIGINT.
///
/// # Errors
/// When the signals cannot be listened to.
pub fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
