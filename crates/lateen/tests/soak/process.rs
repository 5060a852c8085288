//! The processes: sample services, and proxies that follow one another.
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::config::Site;

const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// `--parent-shutdown-time-s`: longer than any stream of the callers.
const SHUTDOWN: u64 = 25;
const ENDS_WITHIN: Duration = Duration::from_secs(SHUTDOWN + 20);

/// Below those that the kernel gives to clients: a port that was free stays so.
pub(crate) fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..20_000 {
        let port = 10_000 + ((std::process::id() % 1000) as u16 * 20 + NEXT.fetch_add(1, Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 10000 and 30000");
}

/// Killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lateen() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lateen"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A sample service: HTTP and all that on one port, lines on the other.
pub(crate) struct App {
    pub(crate) http: u16,
    pub(crate) tcp: u16,
    _child: Killed,
}

impl App {
    pub(crate) fn start(name: &str) -> anyhow::Result<Self> {
        let (http, tcp) = (free_port(), free_port());
        let ports = [http.to_string(), tcp.to_string()];
        let mut command = lateen();
        command.args(["app", "--address", "127.0.0.1", "--name", name, "--port", &ports[0], "--tcp-port", &ports[1]]);
        let child = Killed(command.stderr(Stdio::null()).spawn()?);
        let since = Instant::now();
        for port in [http, tcp] {
            while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                ensure!(since.elapsed() < STARTS_WITHIN, "{name} does not start");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(Self { http, tcp, _child: child })
    }
}

/// A proxy, and those that it has replaced.
pub(crate) struct Lineage {
    base_id: u32,
    epoch: u64,
    current: Killed,
    before: Vec<(Killed, Instant)>,
    messages: PathBuf,
}

impl Lineage {
    pub(crate) async fn start(site: &Site, number: u32) -> anyhow::Result<Self> {
        let base_id = std::process::id() * 10 + number;
        let messages = site.folder().join("messages");
        let current = spawn(site, base_id, 0, &messages)?;
        let mut lineage = Self { base_id, epoch: 0, current, before: Vec::new(), messages };
        lineage.serves(site.admin()).await?;
        Ok(lineage)
    }

    /// A new process, with another number of workers, takes over.
    pub(crate) async fn replace(&mut self, site: &Site) -> anyhow::Result<()> {
        self.reap()?;
        self.epoch += 1;
        let next = spawn(site, self.base_id, self.epoch, &self.messages)?;
        self.before.push((std::mem::replace(&mut self.current, next), Instant::now()));
        self.serves(site.admin()).await
    }

    async fn serves(&mut self, admin: SocketAddr) -> anyhow::Result<()> {
        let since = Instant::now();
        let wanted = format!("\"restart_epoch\": {}", self.epoch);
        loop {
            self.is_alive()?;
            if ask(admin, "GET /server_info").await.is_ok_and(|info| info.contains(&wanted) && info.contains("\"LIVE\"")) {
                return Ok(());
            }
            ensure!(since.elapsed() < STARTS_WITHIN, "epoch {} does not serve:\n{}", self.epoch, self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Old processes have ended well, or still have time for it.
    fn reap(&mut self) -> anyhow::Result<()> {
        let mut kept = Vec::new();
        for (mut child, since) in self.before.drain(..) {
            match child.0.try_wait()? {
                Some(status) => ensure!(status.success(), "a replaced process ended with {status}"),
                None if since.elapsed() > ENDS_WITHIN => bail!("a replaced process is there after {:?}", since.elapsed()),
                None => kept.push((child, since)),
            }
        }
        self.before = kept;
        Ok(())
    }

    pub(crate) fn is_alive(&mut self) -> anyhow::Result<()> {
        match self.current.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("epoch {} ended with {status}:\n{}", self.epoch, self.said()),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.current.0.id()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.messages).unwrap_or_default()
    }

    /// Ends it; nothing was wrong inside.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.current.0.id() as i32), Signal::SIGTERM)?;
        self.before.push((std::mem::replace(&mut self.current, Killed(lateen().arg("--version").spawn()?)), Instant::now()));
        while !self.before.is_empty() {
            self.reap().with_context(|| self.said())?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let said = self.said();
        ensure!(!said.contains("mistake of this program") && !said.contains("panicked"), "{said}");
        Ok(())
    }
}

fn spawn(site: &Site, base_id: u32, epoch: u64, messages: &Path) -> anyhow::Result<Killed> {
    let mut command = lateen();
    command.args(["proxy", "-c"]).arg(site.bootstrap());
    command.args(["--concurrency", &(1 + epoch % 3).to_string(), "--drain-time-s", "3", "-l", "warn"]);
    command.args(["--base-id", &base_id.to_string(), "--restart-epoch", &epoch.to_string()]);
    command.args(["--parent-shutdown-time-s", &SHUTDOWN.to_string()]);
    let file = File::options().create(true).append(true).open(messages)?;
    Ok(Killed(command.stderr(file).spawn()?))
}

/// What an admin page says.
async fn ask(admin: SocketAddr, request: &str) -> anyhow::Result<String> {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        stream.write_all(format!("{request} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await?
}
