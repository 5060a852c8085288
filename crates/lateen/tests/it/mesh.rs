//! A mesh that a test drives: `lateen up` as a child, and the command line as its user types it.
use std::cell::RefCell;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::Value;

use crate::leftovers::{self, Process, Surroundings};
use crate::process::{self, Background, Output, eventually};
use crate::report::{Answer, Report};

const READY_WITHIN: Duration = Duration::from_secs(90);
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// `nobody` of most systems.
const NOBODY: u32 = 65534;

/// Which program is every sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataPlane {
    Lateen,
    Envoy,
}

/// Who starts the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// Whoever runs the tests.
    Own,
    /// Somebody without privileges: `nobody` when the tests run as root.
    Ordinary,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) data_plane: DataPlane,
    pub(crate) user: User,
}

/// A running mesh; it ends, and leaves nothing, when this is dropped.
pub(crate) struct Mesh {
    name: String,
    program: PathBuf,
    user: User,
    pub(crate) data_plane: DataPlane,
    outer: Child,
    /// The process namespace that all its processes are in.
    namespace: String,
    /// Where its files would be if it left any.
    temporary: tempfile::TempDir,
    /// Our own files: its log, the program's copy, YAML for it.
    folder: tempfile::TempDir,
    gateway_port: u16,
    applied: RefCell<Vec<String>>,
    knobs: RefCell<Vec<String>>,
    before: Surroundings,
}

/// Why a mesh did not come up, with what it printed.
#[derive(Debug)]
pub(crate) struct NotUp(pub(crate) String);

fn folder(prefix: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix(prefix).tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("permissions");
    folder
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

impl Mesh {
    /// Brings up `yaml`, and waits until every pod is ready.
    pub(crate) fn up(name: &str, yaml: &str, options: Options) -> Result<Self, NotUp> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (temporary, folder) = (folder("e2e-tmp-"), folder("e2e-"));
        let program = match options.user {
            User::Own => PathBuf::from(env!("CARGO_BIN_EXE_lateen")),
            // A build folder need not be readable for others.
            User::Ordinary => {
                let copy = folder.path().join("lateen-program");
                fs::copy(env!("CARGO_BIN_EXE_lateen"), &copy).expect("a copy of the program");
                copy
            }
        };
        fs::write(folder.path().join("mesh.yaml"), yaml).expect("the mesh's YAML");
        let log = fs::File::create(folder.path().join("up.log")).expect("a log");
        let before = Surroundings::look(&name);
        let gateway_port = free_port();
        let mut command = command(&program, options.user);
        command.arg("up").arg(folder.path().join("mesh.yaml"));
        command.args(["--name", &name, "--dual-stack", "--ingress-port", &gateway_port.to_string()]);
        if options.data_plane == DataPlane::Envoy {
            command.args(["--data-plane", "envoy"]).arg("--envoy").arg(std::env::var_os("LATEEN_TEST_ENVOY").expect("LATEEN_TEST_ENVOY"));
        }
        command.env("TMPDIR", temporary.path()).process_group(0).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        let outer = command.spawn().expect("lateen up");
        let mut mesh = Self {
            name,
            program,
            user: options.user,
            data_plane: options.data_plane,
            outer,
            namespace: String::new(),
            temporary,
            folder,
            gateway_port,
            applied: RefCell::default(),
            knobs: RefCell::default(),
            before,
        };
        match mesh.wait_ready() {
            Ok(()) => Ok(mesh),
            Err(why) => {
                let told = format!("{why:#}\n{}", mesh.state_for_people());
                mesh.end();
                Err(NotUp(told))
            }
        }
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            if let Ok(Some(status)) = self.outer.try_wait() {
                anyhow::bail!("`lateen up` ended with {status}");
            }
            if self.namespace.is_empty() {
                self.namespace = leftovers::inside_of(self.outer.id()).and_then(leftovers::pid_namespace).unwrap_or_default();
            }
            match self.all_ready() {
                Ok(()) => return Ok(()),
                Err(why) if since.elapsed() > READY_WITHIN => return Err(why.context(format!("not ready after {READY_WITHIN:?}"))),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Every pod is ready, and there are some.
    pub(crate) fn all_ready(&self) -> anyhow::Result<()> {
        let output = self.lateen(&["get", "pods", "-A", "-o", "json"]);
        ensure!(output.code == 0, "{}", output.err);
        let list: Value = serde_json::from_str(&output.out).context("the pods as JSON")?;
        let pods = list["items"].as_array().context("no list of pods")?;
        ensure!(pods.len() >= 3, "only {} pods", pods.len());
        for pod in pods {
            let ready = pod["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
            ensure!(ready, "{} is not ready: {}", pod["metadata"]["name"], pod["status"]);
        }
        Ok(())
    }

    /// For failure messages: what `up` printed, the pods, and the last words of each container.
    pub(crate) fn state_for_people(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("up.log")).unwrap_or_default();
        let pods = self.lateen(&["get", "pods", "-A", "-o", "name"]).out;
        let mut text = format!("--- lateen up\n{log}\n--- pods\n{}", self.lateen(&["get", "pods", "-A", "-o", "wide"]).out);
        text.push_str(&self.lateen(&["get", "vs,dr,gw,se,pa", "-A"]).out);
        let clusters = self.from("customer").get("http://127.0.0.1:15000/clusters").body;
        let telling =
            clusters.lines().filter(|l| l.contains("recommendation.default") && (l.contains("health_flags") || l.contains("rq_total")));
        text.extend(telling.map(|l| format!("{l}\n")));
        for name in pods.lines().filter_map(|l| l.strip_prefix("pod/")) {
            let namespace = if name.starts_with("istio") { "istio-system" } else { "default" };
            for container in ["istio-proxy", "discovery"] {
                let output = self.lateen(&["logs", name, "-n", namespace, "-c", container, "--tail", "12"]);
                if output.code == 0 && !output.out.is_empty() {
                    text.push_str(&format!("--- {name} {container}\n{}", output.out));
                }
            }
        }
        text
    }

    pub(crate) fn is_envoy(&self) -> bool {
        self.data_plane == DataPlane::Envoy
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A URL of the ingress gateway as the machine's browser would use it.
    pub(crate) fn gateway(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.gateway_port)
    }

    /// A command of `lateen` on this mesh.
    pub(crate) fn lateen(&self, words: &[&str]) -> Output {
        process::run(self.command(words), COMMAND_LIMIT)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = command(&self.program, self.user);
        command.env("LATEEN_MESH", &self.name);
        command.args(words);
        command
    }

    /// Applies one or more documents and remembers them for [`Mesh::reset`]; all must be taken.
    #[track_caller]
    pub(crate) fn apply(&self, yaml: &str) {
        let output = self.apply_as("test.yaml", yaml);
        assert_eq!(output.code, 0, "apply: {}{}\n{yaml}", output.out, output.err);
    }

    /// Applies a file of that name; whatever comes of it.
    pub(crate) fn apply_as(&self, file: &str, yaml: &str) -> Output {
        self.apply_bytes(file, yaml.as_bytes())
    }

    pub(crate) fn apply_bytes(&self, file: &str, yaml: &[u8]) -> Output {
        let path = self.folder.path().join(file);
        fs::File::create(&path).and_then(|mut f| f.write_all(yaml)).expect("a file");
        self.applied.borrow_mut().push(String::from_utf8_lossy(yaml).into_owned());
        self.lateen(&["apply", "-f", &path.display().to_string()])
    }

    /// Removes everything that was applied and turns back all knobs.
    pub(crate) fn reset(&self) {
        let path = self.folder.path().join("reset.yaml");
        let applied: Vec<String> = self.applied.borrow_mut().drain(..).collect();
        if !applied.is_empty() {
            fs::write(&path, applied.join("\n---\n")).expect("a file");
            // What was refused or is gone already is told, and is no matter.
            self.lateen(&["delete", "-f", &path.display().to_string()]);
        }
        for deployment in self.knobs.borrow_mut().drain(..) {
            self.from(&deployment).knob("behave");
            self.from(&deployment).knob("latency?ms=0");
        }
    }

    /// Makes an application fail with a status until the next reset.
    pub(crate) fn misbehave(&self, deployment: &str, status: u16) {
        self.knobs.borrow_mut().push(deployment.to_owned());
        self.from(deployment).knob(&format!("misbehave?code={status}"));
    }

    /// Makes an application slow until the next reset.
    pub(crate) fn slow_down(&self, deployment: &str, millis: u64) {
        self.knobs.borrow_mut().push(deployment.to_owned());
        self.from(deployment).knob(&format!("latency?ms={millis}"));
    }

    pub(crate) fn behave(&self, deployment: &str) {
        self.from(deployment).knob("behave");
    }

    /// A place within the mesh: the application container of a Deployment.
    pub(crate) fn from<'a>(&'a self, deployment: &'a str) -> Place<'a> {
        Place { mesh: self, namespace: "default", deployment: Some(deployment) }
    }

    /// The control plane's container.
    pub(crate) fn control_plane(&self) -> Place<'_> {
        Place { mesh: self, namespace: "istio-system", deployment: Some("istiod") }
    }

    /// The machine that the mesh runs on.
    pub(crate) fn outside(&self) -> Place<'_> {
        Place { mesh: self, namespace: "default", deployment: None }
    }

    /// Processes of the mesh whose command line contains the words.
    pub(crate) fn processes(&self, words: &str) -> Vec<Process> {
        leftovers::processes_in(&self.namespace).into_iter().filter(|p| p.command.contains(words)).collect()
    }

    /// A pod's address of either family.
    #[track_caller]
    pub(crate) fn pod_address(&self, deployment: &str, six: bool) -> String {
        let list: Value = serde_json::from_str(&self.lateen(&["get", "pods", "-o", "json"]).succeeded()).expect("JSON");
        let pods = list["items"].as_array().expect("a list");
        let pod = pods.iter().find(|p| p["metadata"]["name"].as_str().is_some_and(|n| n.starts_with(&format!("{deployment}-"))));
        let addresses = pod.and_then(|p| p["status"]["podIPs"].as_array()).expect("addresses of the pod");
        let found = addresses.iter().filter_map(|a| a["ip"].as_str()).find(|ip| ip.contains(':') == six);
        found.unwrap_or_else(|| panic!("{deployment} has no such address: {addresses:?}")).to_owned()
    }

    /// Asks it to end as Ctrl-C does; returns the exit code.
    fn end(&mut self) -> Option<i32> {
        let _ = kill(Pid::from_raw(self.outer.id() as i32), Signal::SIGINT);
        process::wait(&mut self.outer, Duration::from_secs(30))
    }

    /// Ends it and checks that nothing is left.
    #[track_caller]
    pub(crate) fn down(mut self) {
        let code = self.end();
        assert_eq!(
            code,
            Some(0),
            "`lateen up` after Ctrl-C:\n{}",
            fs::read_to_string(self.folder.path().join("up.log")).unwrap_or_default()
        );
        leftovers::nothing_left(&self.before, &self.namespace, self.temporary.path(), &self.name);
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if matches!(self.outer.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

fn command(program: &Path, user: User) -> Command {
    let mut command = Command::new(program);
    if user == User::Ordinary && Uid::current().is_root() {
        command.uid(NOBODY).gid(NOBODY).current_dir("/").env("HOME", "/");
    }
    command
}

/// Where a client stands.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    mesh: &'a Mesh,
    namespace: &'a str,
    /// Outside the mesh without one.
    deployment: Option<&'a str>,
}

impl Place<'_> {
    fn command(&self, program: &str, words: &[&str]) -> Command {
        match self.deployment {
            Some(deployment) => {
                let target = format!("deploy/{deployment}");
                let before = ["exec", "-n", self.namespace, &target, "--", program];
                self.mesh.command(&[&before[..], words].concat())
            }
            None if program == "lateen" => self.mesh.command(words),
            None => {
                let mut command = Command::new(program);
                command.args(words);
                command
            }
        }
    }

    /// Runs a program there.
    pub(crate) fn run(&self, program: &str, words: &[&str]) -> Output {
        process::run(self.command(program, words), COMMAND_LIMIT)
    }

    /// Runs a program there, beside the test.
    pub(crate) fn start(&self, program: &str, words: &[&str]) -> Background {
        Background::start(self.command(program, words))
    }

    /// Runs one of our own clients there, see [`crate::probe`].
    pub(crate) fn probe(&self, words: &[&str]) -> Output {
        self.run(&probe_program(), &[&["__probe"], words].concat())
    }

    pub(crate) fn start_probe(&self, words: &[&str]) -> Background {
        self.start(&probe_program(), &[&["__probe"], words].concat())
    }

    /// One GET.
    pub(crate) fn get(&self, url: &str) -> Answer {
        self.ask(url, &[])
    }

    /// One request with further options of `lateen app get`.
    pub(crate) fn ask(&self, url: &str, options: &[&str]) -> Answer {
        Answer::read(&self.run("lateen", &[&["app", "get", "--include", "--timeout", "10s", url], options].concat()))
    }

    /// Requests at a rate that a debug build sustains.
    pub(crate) fn load(&self, url: &str, requests: u32) -> anyhow::Result<Report> {
        self.load_with(url, requests, &[])
    }

    pub(crate) fn load_with(&self, url: &str, requests: u32, options: &[&str]) -> anyhow::Result<Report> {
        let count = requests.to_string();
        let rate: &[&str] = if options.contains(&"--rps") { &[] } else { &["--rps", "250"] };
        let words = ["app", "load", "--json", "--url", url, "--requests", &count];
        Report::read(&self.run("lateen", &[&words[..], rate, options].concat()))
    }

    /// Load beside the test; its report comes at the end.
    pub(crate) fn start_load(&self, url: &str, options: &[&str]) -> Background {
        self.start("lateen", &[&["app", "load", "--json", "--url", url], options].concat())
    }

    /// Turns a knob of the application here.
    #[track_caller]
    fn knob(&self, knob: &str) {
        let answer = self.get(&format!("http://127.0.0.1:8080/admin/{knob}"));
        assert_eq!(answer.status, 200, "{knob}: {answer:?}");
    }

    /// What the application here has received since the last reset of its counters.
    pub(crate) fn stats(&self) -> anyhow::Result<Value> {
        self.get("http://127.0.0.1:8080/stats").json()
    }

    #[track_caller]
    pub(crate) fn reset_stats(&self) {
        assert_eq!(self.get("http://127.0.0.1:8080/stats/reset").status, 200);
    }
}

/// This program: the same file is seen within pods.
fn probe_program() -> String {
    std::env::current_exe().expect("own path").display().to_string()
}

/// Tries on the mesh until it holds, for as long as a change may take to arrive at every sidecar and be measured.
#[track_caller]
pub(crate) fn settles(what: &str, holds: impl FnMut() -> anyhow::Result<()>) {
    eventually(what, Duration::from_secs(15), holds);
}
