//! What people follow while a mesh runs: `get -w`, `logs -f` and `--tail`, waiting, columns, and exit codes of `exec`.
use std::io::Write;
use std::sync::{Arc, Mutex};

use lateen_runner::api::{Output, Request};
use lateen_runner::client::{self, Client};
use lateen_runner::config::SourceText;

use super::scenarios::{Running, until};

const TICKER: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: ticker}\nspec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: x, command: [lateen, app, tick]}]}\n";

const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews, '*.shop'], gateways: [bookstore, mesh], http: [{route: [{destination: {host: reviews}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: bookstore}
spec: {selector: {istio: ingressgateway}, servers: [{hosts: ['*'], port: {number: 80, name: http, protocol: HTTP}}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: weather}
spec: {hosts: [weather.example.com], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
";

/// Output that grows while its client runs.
#[derive(Clone, Default)]
struct Growing(Arc<Mutex<Vec<u8>>>);

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic elsewhere").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Growing {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic elsewhere")).into_owned()
    }
}

/// Asks on a thread of its own; what comes, as it comes. The thread ends with the mesh.
fn follow(mesh: &Running, request: Request) -> Growing {
    let (client, seen) = (Client::connect(&mesh.name).expect("the mesh is up"), Growing::default());
    let mut out = seen.clone();
    std::thread::spawn(move || client.stream(&request, &mut out, &mut std::io::stderr()));
    seen
}

fn get(kinds: &str, names: &[&str], watch: bool) -> Request {
    let names = names.iter().map(|n| (*n).to_owned()).collect();
    Request::Get { kinds: kinds.into(), names, namespace: Some("default".into()), output: Output::Table, watch }
}

fn logs(pod: &str, follow: bool, tail: Option<usize>) -> Request {
    Request::Logs { pod: pod.into(), namespace: "default".into(), container: None, follow, tail, previous: false }
}

pub(crate) fn watching() {
    let mesh = Running::start("watching");
    let apply = |text: &str| {
        mesh.ask(&Request::Apply { sources: vec![SourceText { file: "f.yaml".into(), text: text.into() }], namespace: "default".into() })
    };
    columns(&mesh, &apply(RULES).2);
    exit_codes(&mesh);
    let pods = follow(&mesh, get("pods", &["ticker"], true));
    apply(TICKER);
    until("the new pod shows as ready", || {
        pods.text().lines().any(|l| l.starts_with("ticker") && l.contains("1/1") && l.contains("Running"))
    });
    let seen = pods.text();
    assert!(seen.starts_with("NAME") && seen.matches("NAME").count() == 1, "one header, then rows:\n{seen}");

    // The end of what was, then what comes, nothing twice and nothing missing.
    until("there is something to read", || mesh.ask(&logs("ticker", false, None)).1.lines().count() > 20);
    let last = mesh.ask(&logs("ticker", false, Some(3))).1;
    assert_eq!(last.lines().count(), 3, "{last}");
    assert_eq!(mesh.ask(&logs("ticker", false, Some(0))).1, "");
    let ticks = follow(&mesh, logs("pod/ticker", true, Some(2)));
    until("new lines come", || ticks.text().lines().count() > 20);
    let numbers: Vec<u32> = ticks.text().lines().filter_map(|l| l.strip_prefix("tick ")?.parse().ok()).collect();
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "{numbers:?}");

    mesh.ask(&Request::Delete { kind: "pod".into(), names: vec!["ticker".into()], namespace: "default".into() });
    until("its end shows", || pods.text().lines().any(|l| l.starts_with("ticker") && l.contains("Terminating")));

    // Waiting tells what for, and why.
    apply(&TICKER.replace("ticker", "broken").replace("tick]", "tick], readinessProbe: {tcpSocket: {port: 1}}"));
    let mut told = Vec::new();
    let client = Client::connect(&mesh.name).expect("the mesh is up");
    let code = client.watch(&Request::Wait { timeout_seconds: 3 }, &mut |lines| told.extend_from_slice(lines)).expect("an answer");
    assert_eq!(code, 1);
    assert!(told.iter().any(|l| l.starts_with("pod default/broken is") && l.contains("c has started and is not ready yet")), "{told:?}");
    client::down(&mesh.name).expect("down");
}

fn columns(mesh: &Running, complaints: &str) {
    assert!(!complaints.contains("error"), "{complaints}");
    let row = |kind: &str| {
        let table = mesh.ask(&get(kind, &[], false)).1;
        let mut lines =
            table.lines().map(|l| l.split("   ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect::<Vec<_>>());
        let (header, row) = (lines.next().expect("a header"), lines.next().expect("a row"));
        assert_eq!(header.last().map(String::as_str), Some("AGE"), "{table}");
        assert!(row.last().is_some_and(|age| age.ends_with('s')), "{table}");
        let all: Vec<String> = header.into_iter().zip(row).filter(|(h, _)| h != "AGE").map(|(h, c)| format!("{h}={c}")).collect();
        all.join(" ")
    };
    assert_eq!(row("vs"), r#"NAME=reviews GATEWAYS=["bookstore","mesh"] HOSTS=["reviews","*.shop"]"#);
    assert_eq!(row("dr"), "NAME=reviews HOST=reviews");
    assert_eq!(row("gateways.networking.istio.io"), "NAME=bookstore");
    assert_eq!(row("se"), r#"NAME=weather HOSTS=["weather.example.com"] LOCATION=MESH_EXTERNAL RESOLUTION=DNS"#);
    assert_eq!(row("pa"), "NAME=default MODE=STRICT");
}

fn exit_codes(mesh: &Running) {
    assert_eq!(mesh.exec(&["app", "exit", "0"]).0, 0);
    assert_eq!(mesh.exec(&["app", "exit", "42"]).0, 42);
    assert_eq!(mesh.exec(&["app", "die"]).0, 137, "128 and the signal's number, as in a shell");
    let ask = |pod: &str, command: &str| {
        let request =
            Request::Exec { pod: pod.into(), namespace: "default".into(), container: None, command: vec![command.into()], term: None };
        Client::connect(&mesh.name).expect("the mesh is up").exec(&request).expect("an exit code")
    };
    assert_eq!(ask("deploy/client", "no-such-program"), 127);
    assert_eq!(ask("deploy/client", "/etc"), 126);
    assert_eq!(ask("deploy/nobody", "true"), 1);
}
