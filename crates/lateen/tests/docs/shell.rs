//! Runs a page: writes its files, runs its blocks one after the other, ends what they started.
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::expect;
use crate::page::{Action, Block, Exit, Page};

/// How long a block may be repeated until it shows what the page says: changes need a moment to reach every proxy.
pub(crate) const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// No command of the documentation takes longer; `lateen up --detach` is the slowest.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// What the documentation calls the ingress port; each page has its own.
const INGRESS: &str = "127.0.0.1:8080";

/// Runs every block of a page, each repeated for so long at most; what is wrong in words.
pub(crate) fn run(page: &Page, patience: Duration) -> Result<(), String> {
    let mut shell = Shell::new(page, patience);
    for block in &page.blocks {
        let place = page.place(block);
        match &block.action {
            Action::File(name) => {
                let file = shell.folder.path().join(name);
                fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))
                    .and_then(|()| fs::write(file, &block.text))
                    .map_err(|e| format!("{place}: {e}"))?;
            }
            Action::Run { needs: Some(peer), .. } if peer_folder(peer).is_none() => {
                eprintln!("{place}: skipped, `{peer}` is not there (`cargo xtask test` installs it)");
            }
            Action::Run { exit, background, expected, .. } => {
                let done =
                    if *background { shell.start(block, expected.as_deref()) } else { shell.settle(block, exit, expected.as_deref()) };
                done.map_err(|problem| format!("{place}: {problem}\n--- the block\n{}", block.text))?;
            }
            Action::None => {}
        }
    }
    Ok(())
}

/// Where a foreign peer's programs are.
fn peer_folder(peer: &str) -> Option<std::path::PathBuf> {
    let program = match peer {
        "envoy" => std::env::var_os("LATEEN_TEST_ENVOY"),
        "grpc" => std::env::var_os("LATEEN_TEST_PYTHON"),
        other => panic!("nobody knows the peer `{other}`"),
    };
    Some(Path::new(&program?).parent()?.to_path_buf())
}

/// A page's folder, mesh and port.
struct Shell {
    folder: tempfile::TempDir,
    mesh: String,
    ingress_port: u16,
    patience: Duration,
    background: Vec<Child>,
}

/// How a command ended (`None`: it did not) and what it printed.
struct Outcome {
    code: Option<i32>,
    printed: String,
}

impl Shell {
    fn new(page: &Page, patience: Duration) -> Self {
        let name = page.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let folder = tempfile::Builder::new().prefix("docs-").tempdir().expect("a folder");
        Self { folder, mesh: format!("docs-{name}-{}", std::process::id()), ingress_port: port, patience, background: Vec::new() }
    }

    fn command(&self, text: &str, out: &File) -> Command {
        let text = text.replace(INGRESS, &format!("127.0.0.1:{}", self.ingress_port));
        let program = Path::new(env!("CARGO_BIN_EXE_lateen")).parent().expect("the program is in a folder").to_path_buf();
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let peers = ["envoy", "grpc"].into_iter().filter_map(peer_folder);
        let path = std::iter::once(program).chain(peers).chain(std::env::split_paths(&inherited));
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &text]).current_dir(self.folder.path()).process_group(0);
        command.env("PATH", std::env::join_paths(path).expect("a PATH"));
        command.env("LATEEN_MESH", &self.mesh).env("LATEEN_INGRESS_PORT", self.ingress_port.to_string());
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("a file")).stderr(out.try_clone().expect("a file"));
        command
    }

    /// Runs a block until it does what the page says.
    fn settle(&self, block: &Block, exit: &Exit, expected: Option<&str>) -> Result<(), String> {
        let began = Instant::now();
        let mut first = None;
        loop {
            let outcome = self.once(&block.text);
            let ended = match exit {
                Exit::Any => outcome.code.is_some(),
                Exit::Code(code) => outcome.code == Some(*code),
            };
            if ended && expected.is_none_or(|e| expect::matches(e, &outcome.printed)) {
                return Ok(());
            }
            let told = format!("it ended with {:?} and printed\n{}", outcome.code, outcome.printed);
            // A command that cannot be repeated says why it failed only the first time.
            let first = first.get_or_insert_with(|| told.clone());
            if began.elapsed() > self.patience || outcome.code.is_none() {
                let wanted = expected.map(|e| format!("--- the page says\n{e}")).unwrap_or_default();
                return Err(format!("expected end: {exit:?}\n--- at first {first}--- at last {told}{wanted}"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn once(&self, text: &str) -> Outcome {
        // A file, not a pipe: a mesh left in the background must not make us wait for its end.
        let file = self.folder.path().join(".printed");
        let out = File::create(&file).expect("a file");
        let mut child = self.command(text, &out).spawn().expect("bash");
        let code = wait(&mut child, COMMAND_LIMIT);
        Outcome { code, printed: String::from_utf8_lossy(&fs::read(&file).expect("what was printed")).into_owned() }
    }

    /// Starts a block that stays, and waits until it has printed what the page says.
    fn start(&mut self, block: &Block, expected: Option<&str>) -> Result<(), String> {
        let file = self.folder.path().join(format!(".background-{}", self.background.len()));
        let out = File::create(&file).expect("a file");
        let child = self.command(&block.text, &out).spawn().expect("bash");
        self.background.push(child);
        let began = Instant::now();
        loop {
            let bytes = fs::read(&file).expect("what was printed");
            let printed = String::from_utf8_lossy(&bytes).replace(&format!("127.0.0.1:{}", self.ingress_port), INGRESS);
            if expected.is_none_or(|e| expect::matches(e, &printed)) {
                return Ok(());
            }
            if began.elapsed() > COMMAND_LIMIT {
                return Err(format!("it printed\n{printed}--- the page says\n{}", expected.unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Shell {
    /// A page may end its mesh itself; one that failed in the middle has not.
    fn drop(&mut self) {
        for child in &mut self.background {
            stop(child, Signal::SIGINT);
            if wait(child, Duration::from_secs(15)).is_none() {
                stop(child, Signal::SIGKILL);
                let _ = child.wait();
            }
        }
        let down = Command::new(env!("CARGO_BIN_EXE_lateen")).args(["down", "--name", &self.mesh]).output();
        if down.is_err() {
            eprintln!("the mesh {} may still run: {down:?}", self.mesh);
        }
    }
}

/// Signals the block's whole process group: bash need not pass signals on.
fn stop(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

/// Waits, and ends what takes longer.
fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let began = Instant::now();
    loop {
        match child.try_wait().expect("a child") {
            // A shell reports a signal as 128 and its number; so do we for the shell itself.
            Some(status) => return Some(status.code().unwrap_or(128)),
            None if began.elapsed() < limit => std::thread::sleep(Duration::from_millis(20)),
            None => {
                stop(child, Signal::SIGKILL);
                let _ = child.wait();
                return None;
            }
        }
    }
}
