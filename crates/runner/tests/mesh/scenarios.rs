//! The scenarios, run one after the other; each mesh has its own name.
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use lateen_runner::api::{Output, Request};
use lateen_runner::client::{self, Client};
use lateen_runner::config::{SourceText, UpConfig};
use lateen_runner::namespaces::birth;
use lateen_runner::up;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, Uid};

use super::watch;

const YAML: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {greeting: hello, file.txt: from the map}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-pods}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: x, command: [lateen, app, serve, '8080'], ports: [{name: http, containerPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: client
        image: x
        command: [lateen, app, serve, '9']
        ports: [{containerPort: 9}]
        env:
        - {name: MY_IP, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
        - {name: GREETING, valueFrom: {configMapKeyRef: {name: conf, key: greeting}}}
        volumeMounts: [{name: conf, mountPath: /run/conf}]
      volumes: [{name: conf, configMap: {name: conf}}]
";

/// The mode in which this program is `lateen up`: name of the mesh, port to publish.
pub(crate) fn up(words: &[String]) -> ExitCode {
    let config = UpConfig {
        name: words[0].clone(),
        control_plane: false,
        dual_stack: words[0].starts_with("plain"),
        publish: vec!["0:web:80".parse().expect("a published port")],
        sources: vec![SourceText { file: "test.yaml".into(), text: YAML.into() }],
        ..UpConfig::default()
    };
    match up::start(config) {
        Ok(outer) => {
            println!("{}", outer.published[0].host_port);
            ExitCode::from(outer.serve().expect("the line holds") as u8)
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

pub(crate) struct Running {
    pub(crate) name: String,
    outer: Child,
    port: u16,
}

impl Drop for Running {
    /// A failed scenario leaves nothing running either.
    fn drop(&mut self) {
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

impl Running {
    pub(crate) fn start(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let mut outer =
            Command::new("/proc/self/exe").args(["__up", &name]).stdout(Stdio::piped()).process_group(0).spawn().expect("lateen up");
        let mut line = String::new();
        BufReader::new(outer.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("the published port");
        let running = Self { name, outer, port: line.trim().parse().expect("a port number") };
        let (code, out, err) = running.ask(&Request::Wait { timeout_seconds: 20 });
        assert_eq!(code, 0, "{out}{err}\n{}", running.ask(&Request::Ps).1);
        running
    }

    pub(crate) fn ask(&self, request: &Request) -> (i32, String, String) {
        Client::connect(&self.name).expect("the mesh is up").collect(request).expect("an answer")
    }

    /// Output of a command in the client's pod.
    pub(crate) fn exec(&self, words: &[&str]) -> (i32, String) {
        let target = [&["__exec", &self.name][..], words].concat();
        let output = Command::new("/proc/self/exe").args(target).output().expect("exec");
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn call(&self, target: &str, times: usize) -> Vec<String> {
        let (code, out) = self.exec(&["app", "call", target, &times.to_string()]);
        assert_eq!(code, 0, "{out}");
        out.lines().map(str::to_owned).collect()
    }

    fn end(mut self) -> std::process::ExitStatus {
        self.outer.wait().expect("its end")
    }

    pub(crate) fn pods(&self) -> Vec<String> {
        let request =
            Request::Get { kinds: "po".into(), names: vec![], namespace: Some("default".into()), output: Output::Name, watch: false };
        self.ask(&request).1.lines().map(|l| l.trim_start_matches("pod/").to_owned()).collect()
    }
}

/// The mode in which this program is `lateen exec deploy/client -- lateen …`.
fn exec_mode(words: &[String]) -> ExitCode {
    let command = [&["lateen".to_owned()][..], &words[1..]].concat();
    let request = Request::Exec { pod: "deploy/client".into(), namespace: "default".into(), container: None, command, term: None };
    let code = Client::connect(&words[0]).expect("the mesh").exec(&request).expect("an exit code");
    ExitCode::from(code as u8)
}

pub(crate) fn all() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|w| w == "__exec") {
        return exec_mode(&words[1..]);
    }
    let scenarios: [(&str, fn()); 6] = [
        ("capture", capture),
        ("plain mesh", plain_mesh),
        ("egress", egress),
        ("changes", changes),
        ("watching", watch::watching),
        ("killed outside", killed),
    ];
    let wanted = words.iter().find(|w| !w.starts_with('-'));
    for (name, scenario) in scenarios {
        if wanted.is_none_or(|w| name.contains(w.as_str())) {
            let since = Instant::now();
            scenario();
            println!("{name} ... ok ({:.1} s, uid {})", since.elapsed().as_secs_f64(), Uid::current());
        }
    }
    if Uid::current().is_root() {
        return as_ordinary_user(&words);
    }
    ExitCode::SUCCESS
}

/// The same again as `nobody`, whose one id is all that its namespace has. The program is copied to where nobody may read it.
fn as_ordinary_user(words: &[String]) -> ExitCode {
    let folder = tempfile::Builder::new().prefix("lateen-test").tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("permissions");
    let program = folder.path().join("mesh");
    std::fs::copy("/proc/self/exe", &program).expect("a copy of the test program");
    let status = Command::new(&program).args(words).current_dir("/").gid(65534).uid(65534).status().expect("the test program as nobody");
    ExitCode::from(u8::from(!status.success()))
}

fn capture() {
    let arguments = ["lateen".to_owned(), "__lab".to_owned()];
    let pid = birth::start_inside(&arguments, &[]).expect("namespaces");
    assert_eq!(waitpid(pid, None).expect("its end"), WaitStatus::Exited(pid, 0), "the lab failed");
}

/// In namespaces that stand for a host of its own, so that an address outside the mesh exists without leaving this machine.
fn egress() {
    let arguments = ["lateen".to_owned(), "__egress".to_owned()];
    let pid = birth::start_inside(&arguments, &[]).expect("namespaces");
    assert_eq!(waitpid(pid, None).expect("its end"), WaitStatus::Exited(pid, 0), "the egress scenario failed");
}

pub(crate) fn egress_inside() {
    birth::settle_inside().expect("own namespaces");
    let mut links = lateen_runner::netlink::link::Links::open().expect("rtnetlink");
    links.up("lo").expect("lo");
    links.add_address("lo", [192, 0, 2, 1].into(), 32).expect("an address outside");
    for address in ["192.0.2.1:7777", "127.0.0.1:7778"] {
        let listener = std::net::TcpListener::bind(address).expect("a listener");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = std::io::Write::write_all(&mut &stream, b"outside");
            }
        });
    }
    let mesh = Running::start("egress");
    assert_eq!(mesh.call("192.0.2.1:7777", 3), ["outside"; 3]);
    // Nobody listens there; and the host's loopback is out of bounds, whatever address names it.
    assert_ne!(mesh.call("192.0.2.1:7779", 1), ["outside"]);
    assert_ne!(mesh.call("127.0.0.1:7778", 1), ["outside"]);
    drop(mesh);
}

fn plain_mesh() {
    let mesh = Running::start("plain");
    let pods = mesh.pods();
    assert_eq!(pods.len(), 3, "{pods:?}");
    // Every form of the name leads to the service; its cluster address balances.
    for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
        let answers = mesh.call(&format!("{name}:80"), 1);
        assert!(answers[0].starts_with("web-"), "{name}: {answers:?}");
    }
    let answers = mesh.call("web:80", 100);
    let names: std::collections::BTreeMap<&str, usize> = answers.iter().fold(Default::default(), |mut m, a| {
        *m.entry(a.split(' ').next().unwrap_or_default()).or_default() += 1;
        m
    });
    // 100 fair draws leave 20..80 with a chance below one in a hundred million.
    assert!(names.len() == 2 && names.values().all(|n| (20..=80).contains(n)), "{names:?}");
    let (_, my_ip) = mesh.exec(&["app", "env", "MY_IP"]);
    assert!(
        answers.iter().all(|a| my_ip.trim().split(',').any(|ip| a.ends_with(ip))),
        "the server sees the caller's own address: {answers:?}"
    );
    // Headless: one pod by its own name, and directly.
    let one = pods.iter().find(|p| p.starts_with("web-")).expect("a web pod");
    assert!(mesh.call(&format!("{one}.web-pods:8080"), 1)[0].starts_with(one.as_str()));
    assert_eq!(mesh.call("nobody:80", 1), ["failed: ConnectionRefused"]);
    assert!(mesh.call("nothing:80", 1)[0].starts_with("unresolved"));
    assert_eq!(mesh.exec(&["app", "env", "GREETING"]).1, "hello\n");
    assert_eq!(mesh.exec(&["app", "file", "/run/conf/file.txt"]).1, "from the map");
    assert_eq!(mesh.exec(&["app", "exit", "42"]).0, 42);
    let mut from_host = std::net::TcpStream::connect(("127.0.0.1", mesh.port)).expect("the published port");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut from_host, &mut text).expect("an answer");
    assert!(text.starts_with("web-"), "{text}");
    let logs = mesh.ask(&Request::Logs {
        pod: one.clone(),
        namespace: "default".into(),
        container: None,
        follow: false,
        tail: None,
        previous: false,
    });
    assert_eq!(logs.1, "serving on 8080\n");
    client::down(&mesh.name).expect("down");
    assert!(mesh.end().success());
}

fn changes() {
    let mesh = Running::start("changes");
    let apply = |text: &str| {
        mesh.ask(&Request::Apply { sources: vec![SourceText { file: "f.yaml".into(), text: text.into() }], namespace: "default".into() })
    };
    let vs = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}\n";
    assert_eq!(apply(vs).1, "virtualservice.networking.istio.io/web created\n");
    assert_eq!(apply(vs).1, "virtualservice.networking.istio.io/web unchanged\n");
    assert_eq!(apply(&vs.replace("[web]", "[web, web2]")).1, "virtualservice.networking.istio.io/web configured\n");
    let (code, out, err) = apply(&format!("{vs}---\n{}", vs.replace("name: web", "name: bad").replace("route:", "rout:")));
    assert_eq!(code, 1);
    assert!(out.contains("/web configured") && !out.contains("bad"), "{out}");
    assert!(err.contains("f.yaml:9:") && err.contains("route"), "{err}");
    let delete = Request::Delete { kind: "vs".into(), names: vec!["web".into(), "gone".into()], namespace: "default".into() };
    let (code, out, err) = mesh.ask(&delete);
    assert_eq!((code, out.as_str()), (1, "virtualservice.networking.istio.io \"web\" deleted\n"));
    assert_eq!(err, "Error from server (NotFound): virtualservices.networking.istio.io \"gone\" not found\n");
    // A crash shows, backs off, and leaves its last words.
    let crash =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: crash}\nspec: {containers: [{name: c, image: x, command: [lateen, app, crash]}]}\n";
    apply(crash);
    let get = |output| {
        mesh.ask(&Request::Get {
            kinds: "pod".into(),
            names: vec!["crash".into()],
            namespace: Some("default".into()),
            output,
            watch: false,
        })
        .1
    };
    until("the crash loop shows", || get(Output::Table).contains("CrashLoopBackOff"));
    let previous =
        Request::Logs { pod: "crash".into(), namespace: "default".into(), container: None, follow: false, tail: None, previous: true };
    assert!(mesh.ask(&previous).1.starts_with("run of "));
    // A rollout: all pods are replaced, and callers notice nothing.
    let before = mesh.pods();
    let web = YAML.split("---").find(|d| d.contains("name: web}\nspec:\n  replicas")).expect("the deployment");
    apply(&web.replace("replicas: 2", "replicas: 3").replace("labels: {app: web}", "labels: {app: web, version: v2}"));
    let calls = mesh.call("web:80", 400);
    assert!(calls.iter().all(|c| c.starts_with("web-")), "{:?}", calls.iter().find(|c| !c.starts_with("web-")));
    until("three new pods serve", || {
        let now = mesh.pods();
        now.iter().filter(|p| p.starts_with("web-")).count() == 3 && now.iter().all(|p| !p.starts_with("web-") || !before.contains(p))
    });
    // A deleted pod of a Deployment is replaced.
    let victim = mesh.pods().into_iter().find(|p| p.starts_with("web-")).expect("a pod");
    mesh.ask(&Request::Delete { kind: "pod".into(), names: vec![victim.clone()], namespace: "default".into() });
    until("another takes its place", || {
        let now = mesh.pods();
        !now.contains(&victim) && now.iter().filter(|p| p.starts_with("web-")).count() == 3
    });
    // Ctrl-C.
    kill(Pid::from_raw(mesh.outer.id() as i32), Signal::SIGINT).expect("a signal");
    let name = mesh.name.clone();
    assert!(mesh.end().success());
    assert!(Client::connect(&name).is_err(), "the name is free again");
}

fn killed() {
    let mesh = Running::start("killed");
    let processes = || {
        let own = std::fs::read_link("/proc/self/exe").expect("own path");
        let all = std::fs::read_dir("/proc").expect("/proc").flatten();
        all.filter(|e| e.file_name().to_str().is_some_and(|n| n.parse::<u32>().is_ok()))
            .filter(|e| std::fs::read_link(e.path().join("exe")).is_ok_and(|p| p == own))
            .count()
    };
    assert!(processes() >= 6, "this one, outside, inside, three pods");
    kill(Pid::from_raw(mesh.outer.id() as i32), Signal::SIGKILL).expect("a signal");
    let name = mesh.name.clone();
    assert!(!mesh.end().success());
    until("no process is left", || processes() == 1);
    until("the name is free", || Client::connect(&name).is_err());
}

pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(20), "still not: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
