//! What the demo tells: what runs, what to try, and what the traffic does.
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lateen_runner::api::Request;
use lateen_runner::client::Client;
use serde_json::Value;

use super::edges::{self, Edges, Rates};
use super::scenario::TRIES;
use super::screen::Block;
use crate::paint::{Paint, Tone};

/// How long the mesh may take to be ready before the demo gives up waiting for it.
const READY_SECONDS: u64 = 60;
/// Port of every sidecar's statistics.
const STATISTICS: u16 = 15090;

/// Waits for the mesh, prints the tour, then shows the traffic until the mesh ends.
pub(super) fn run(mesh: &str, port: u16) -> anyhow::Result<()> {
    let started = Instant::now();
    wait(mesh)?;
    let pods = pods(mesh)?;
    print_tour(mesh, port, &pods, started.elapsed());
    let mut block = Block::new();
    if !block.is_live() {
        return Ok(());
    }
    loop {
        if show_traffic(mesh, &mut block).is_err() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn wait(mesh: &str) -> anyhow::Result<()> {
    let (code, _, errors) = Client::connect(mesh)?.collect(&Request::Wait { timeout_seconds: READY_SECONDS })?;
    if code != 0 {
        bail!("the mesh is not ready after {READY_SECONDS} s: {}", errors.trim());
    }
    Ok(())
}

/// A pod as the tour shows it.
struct Pod {
    namespace: String,
    name: String,
    ip: String,
    sidecar: bool,
}

fn pods(mesh: &str) -> anyhow::Result<Vec<Pod>> {
    let lateen = std::env::current_exe()?;
    let output = Command::new(lateen).args(["get", "--name", mesh, "pods", "-A", "-o", "json"]).output()?;
    let list: Value = serde_json::from_slice(&output.stdout).context("the list of pods cannot be read")?;
    let pod = |pod: &Value| Pod {
        namespace: pod["metadata"]["namespace"].as_str().unwrap_or_default().to_owned(),
        name: pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        ip: pod["status"]["podIP"].as_str().unwrap_or_default().to_owned(),
        sidecar: pod["spec"]["containers"].as_array().is_some_and(|c| c.iter().any(|c| c["name"] == "istio-proxy")),
    };
    Ok(list["items"].as_array().into_iter().flatten().map(pod).collect())
}

fn print_tour(mesh: &str, port: u16, pods: &[Pod], took: Duration) {
    let paint = Paint::stdout();
    let lateen = program();
    let flag = if mesh == "default" { String::new() } else { format!(" --name {mesh}") };
    let url = format!("http://127.0.0.1:{port}/");
    println!("{}", paint.paint(&format!("Ready after {:.1} s: {} pods", took.as_secs_f64(), pods.len()), Tone::Good));
    let width = pods.iter().map(|p| p.name.len()).max().unwrap_or_default();
    for pod in pods {
        let note = if pod.sidecar { "with proxy" } else { "" };
        println!("  {:<14} {:<width$}  {:<12} {}", pod.namespace, pod.name, pod.ip, paint.paint(note, Tone::Quiet));
    }
    println!("\nOpen {}\n\nFive things to try, in another terminal:", paint.paint(&url, Tone::Strong));
    for (n, item) in TRIES.iter().enumerate() {
        let then = item.then.replace("{lateen} exec", &format!("{lateen} exec{flag}"));
        let then = then.replace("{lateen}", &lateen).replace("{self}", &lateen_path()).replace("{url}", &url);
        println!("\n {}. {}", n + 1, paint.paint(item.title, Tone::Strong));
        println!("    {}", apply(&lateen, &flag, item.name));
        println!("    {then}");
    }
    println!("\nStop with Ctrl-C; nothing stays behind.\n");
}

/// The file where there is one to look into, else the copy inside the program.
fn apply(lateen: &str, flag: &str, name: &str) -> String {
    let file = format!("demo/{name}.yaml");
    if Path::new(&file).is_file() {
        format!("{lateen} apply{flag} --wait -f {file}")
    } else {
        format!("{lateen} demo show {name} | {lateen} apply{flag} --wait -f -")
    }
}

/// How to call this program from here: by name when the PATH finds it, else by the shortest path.
fn program() -> String {
    let Ok(exe) = std::env::current_exe() else { return "lateen".into() };
    let on_path = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join("lateen").canonicalize().is_ok_and(|found| found == exe))
    });
    if on_path {
        return "lateen".into();
    }
    let here = std::env::current_dir().unwrap_or_default();
    exe.strip_prefix(&here).unwrap_or(&exe).display().to_string()
}

/// Inside a pod the working folder is another, so the whole path is needed.
fn lateen_path() -> String {
    std::env::current_exe().map_or_else(|_| "lateen".into(), |exe| exe.display().to_string())
}

/// Draws the edges once a second until the eye inside ends, for instance because a pod was replaced.
fn show_traffic(mesh: &str, block: &mut Block) -> anyhow::Result<()> {
    let pods = pods(mesh)?;
    let gateway = pods.iter().find(|p| p.name.starts_with("istio-ingressgateway")).context("no gateway")?;
    let exe = std::env::current_exe()?;
    let mut command = Command::new(&exe);
    command.args(["exec", "--name", mesh, "-n", &gateway.namespace, &gateway.name, "--"]).arg(&exe).args(["demo", "watch"]);
    command.args(pods.iter().filter(|p| p.sidecar).map(|p| format!("{}:{STATISTICS}", p.ip)));
    let mut eye = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let Some(out) = eye.stdout.take() else { bail!("no output") };
    let (mut before, mut at) = (Edges::new(), Instant::now());
    for line in BufReader::new(out).lines() {
        let Ok(value) = serde_json::from_str(&line?) else { continue };
        let now = edges::from_json(&value);
        let seconds = at.elapsed().as_secs_f64();
        if !before.is_empty() {
            block.draw(&table(&before, &now, seconds));
        }
        (before, at) = (now, Instant::now());
    }
    let _ = eye.wait();
    Ok(())
}

fn table(before: &Edges, now: &Edges, seconds: f64) -> Vec<String> {
    let paint = Paint::stdout();
    let names: Vec<String> = now.keys().map(|e| format!("{} → {}", e.from, e.to)).collect();
    let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0).max(4);
    let head = format!("{:<width$}  {:>7}  {:>8}  {:>8}  {:>8}", "edge", "req/s", "success", "p50 ms", "p99 ms");
    let mut lines = vec![paint.paint(&head, Tone::Quiet)];
    for ((edge, totals), name) in now.iter().zip(&names) {
        let rates =
            before.get(edge).map_or_else(|| edges::rates(&Default::default(), totals, seconds), |b| edges::rates(b, totals, seconds));
        lines.push(row(paint, name, width, rates));
    }
    lines
}

fn row(paint: Paint, name: &str, width: usize, rates: Rates) -> String {
    let pad = " ".repeat(width.saturating_sub(name.chars().count()));
    let success = format!("{:>7.1}%", rates.success);
    let tone = match rates.success {
        s if s >= 99.9 => Tone::Good,
        s if s >= 95.0 => Tone::Warning,
        _ => Tone::Bad,
    };
    let line = format!("{name}{pad}  {:>7.1}", rates.per_second);
    if rates.per_second < 0.05 {
        return paint.paint(&format!("{line}  {:>8}  {:>8}  {:>8}", "-", "-", "-"), Tone::Quiet);
    }
    format!("{line}  {}  {:>8.1}  {:>8.1}", paint.paint(&success, tone), rates.p50, rates.p99)
}
