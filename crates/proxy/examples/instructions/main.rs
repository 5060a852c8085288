//! Drives real workers over loopback with a number of requests, one at a time, so that valgrind can count what the workers'
//! threads execute: `cargo xtask instructions` runs it and divides. Usage: `instructions SCENARIO REQUESTS`
//!
//! The workers are the first threads that this process starts: a counter that separates threads finds them by number.
mod config;
mod http1;
mod http2;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lateen_proxy::worker::NodeText;
use lateen_proxy::{LogFiles, Overload, WorkerConfig, WorkerHandle};
use lateen_snapshot::compile::Compiler;
use lateen_telemetry::Registry;
use lateen_telemetry::istio::{Config as IstioConfig, IstioMetrics, PeerMetadata};
use lateen_telemetry::stats::TagStyle;

/// Whatever hangs for longer has failed.
const WAIT: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let scenario = arguments.next().context("name a scenario")?;
    let requests = arguments.next().context("say how many requests")?.parse()?;
    match scenario.as_str() {
        "http1" => one_hop(requests, false),
        "routing" => one_hop(requests, true),
        "h2c" => {
            let ready = Workers::spawn(1)?;
            let backend = listen()?;
            let proxy = ready.serve(0, &config::h2c(backend.local_addr()?.port()))?;
            http2::answer(backend);
            http2::call(proxy, requests)
        }
        "tls" | "handshake" => {
            let ready = Workers::spawn(2)?;
            let (backend, mesh) = (listen()?, config::Mesh::new()?);
            let server = ready.serve(1, &mesh.server(backend.local_addr()?.port()))?;
            let client = ready.serve(0, &mesh.client(server.port(), scenario == "handshake"))?;
            http1::answer(backend);
            http1::call(client, requests, 1)
        }
        other => bail!("no scenario {other}: http1, h2c, routing, tls or handshake"),
    }
}

fn one_hop(requests: usize, many_hosts: bool) -> anyhow::Result<()> {
    let ready = Workers::spawn(1)?;
    let backend = listen()?;
    let hosts = if many_hosts { config::HOSTS } else { 1 };
    let proxy = ready.serve(0, &config::http1(backend.local_addr()?.port(), hosts))?;
    http1::answer(backend);
    http1::call(proxy, requests, hosts)
}

fn listen() -> anyhow::Result<TcpListener> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
}

/// Worker threads, started before any other thread.
struct Workers(Vec<WorkerHandle>);

impl Workers {
    fn spawn(count: usize) -> anyhow::Result<Self> {
        let (registry, shards) = Registry::new(count, TagStyle::Istio);
        let (_, istio) = IstioMetrics::new(IstioConfig::new(PeerMetadata::default()), count);
        let logs = Arc::new(LogFiles::default());
        let each = shards.into_iter().zip(istio).enumerate().map(|(index, (shard, istio))| {
            WorkerHandle::spawn(WorkerConfig {
                index,
                pin: None,
                shard,
                registry: Arc::clone(&registry),
                istio,
                logs: Arc::clone(&logs),
                upstream_mark: None,
                node: Arc::new(NodeText::default()),
                overload: Overload::new(Default::default()),
                epoch: Instant::now(),
                wishes: Default::default(),
                peers: Default::default(),
                drain: Default::default(),
            })
        });
        Ok(Self(each.collect::<Result<_, _>>()?))
    }

    /// Gives a worker its configuration; returns where it listens.
    fn serve(&self, worker: usize, yaml: &str) -> anyhow::Result<SocketAddr> {
        let worker = self.0.get(worker).context("no such worker")?;
        let bootstrap = lateen_snapshot::bootstrap::parse(yaml, "instructions.yaml")?;
        let mut compiler = Compiler::new();
        if let Err(refused) = compiler.add_static(bootstrap.resources, Instant::now()) {
            bail!("{refused:?}");
        }
        worker.publish(compiler.snapshot());
        let deadline = Instant::now() + WAIT;
        loop {
            if let Some((_, address)) = worker.bound().first() {
                return Ok(*address);
            }
            if Instant::now() > deadline {
                bail!("no listener: {:?}", worker.problems());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
