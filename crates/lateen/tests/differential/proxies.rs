//! The two proxies: started with a configuration, and ended.
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const STARTS_WITHIN: Duration = Duration::from_secs(30);
const ENDS_WITHIN: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Lateen,
    Envoy,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lateen => "lateen",
            Self::Envoy => "envoy",
        }
    }
}

/// Where Envoy is, as `cargo xtask test` says it.
pub(crate) fn envoy() -> Option<PathBuf> {
    std::env::var_os("LATEEN_TEST_ENVOY").map(PathBuf::from)
}

/// A port that nobody has. Envoy must be told its ports, so they are below those that the kernel gives to clients.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 12_000 + (std::process::id() % 1000) as u16 * 17;
    for _ in 0..20_000 {
        let port = 12_000 + (start - 12_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 12000 and 32000");
}

/// A running proxy; killed when dropped.
pub(crate) struct Proxy {
    kind: Kind,
    child: Child,
    messages: PathBuf,
}

impl Proxy {
    /// Starts it and waits until it says that it is ready.
    pub(crate) async fn start(kind: Kind, folder: &Path, bootstrap: &Value, admin: u16) -> anyhow::Result<Self> {
        let file = folder.join(format!("{}.json", kind.name()));
        std::fs::write(&file, serde_json::to_vec_pretty(bootstrap)?)?;
        let messages = folder.join(format!("{}.messages", kind.name()));
        let mut command = match kind {
            Kind::Lateen => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_lateen"));
                command.args(["proxy", "--drain-time-s", "0"]);
                command
            }
            Kind::Envoy => {
                let mut command = Command::new(envoy().context("LATEEN_TEST_ENVOY is not set")?);
                command.args(["--disable-hot-restart", "--drain-time-s", "1", "-l", "warn"]);
                command
            }
        };
        command.arg("-c").arg(&file).args(["--concurrency", "1"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&messages)?);
        let child = command.spawn().with_context(|| format!("{} does not start", kind.name()))?;
        let mut proxy = Self { kind, child, messages };
        let since = Instant::now();
        while !ready(admin).await {
            if let Some(status) = proxy.child.try_wait()? {
                bail!("{} does not take the configuration ({status}):\n{}", kind.name(), proxy.said());
            }
            if since.elapsed() > STARTS_WITHIN {
                bail!("{} is not ready after {STARTS_WITHIN:?}:\n{}", kind.name(), proxy.said());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(proxy)
    }

    /// What it wrote on its standard error.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.messages).unwrap_or_default()
    }

    /// Asks it to end, which also writes its logs out.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("{} ended with {status}:\n{}", self.kind.name(), self.said());
                }
                return Ok(());
            }
            if since.elapsed() > ENDS_WITHIN {
                bail!("{} does not end:\n{}", self.kind.name(), self.said());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ready(admin: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", admin)).await.ok()?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        answer.starts_with(b"HTTP/1.1 200").then_some(())
    };
    tokio::time::timeout(Duration::from_secs(1), ask).await.ok().flatten().is_some()
}
