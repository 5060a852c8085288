//! Changes while traffic flows: nobody is dropped, and the change is there within a second.
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exercises::exercises;
use crate::mesh::{Mesh, settles};
use crate::process::{Background, eventually};
use crate::report::Report;
use crate::world::{RECOMMENDATION, routes, sample, split, to};

exercises!(
    "safety": a_hundred_route_changes_under_load,
    subsets_come_and_go_under_load,
    a_killed_control_plane_drops_nobody,
    a_rollout_drops_nobody,
    scaling_drops_nobody,
);

/// Requests a second. A debug build with both sidecars of a call on two processors sustains it.
const RATE: &str = "500";

fn start_load(mesh: &Mesh, duration: &str) -> Background {
    settles("the mesh serves", || mesh.from("customer").load(RECOMMENDATION, 50)?.ensure_clean().map(drop));
    mesh.from("customer").start_load(RECOMMENDATION, &["--rps", RATE, "--connections", "32", "--duration", duration])
}

/// Ends the load; nobody may have noticed anything.
#[track_caller]
fn nobody_noticed(load: Background) {
    let output = load.stop();
    let report = Report::read(&output).unwrap();
    println!(
        "load: {} requests, {} failed, p99 {} ms",
        report.count("scheduled"),
        report.count("scheduled") - report.status(200),
        report.0["latency_ms"]["p99"]
    );
    report.ensure_clean().unwrap();
}

fn a_hundred_route_changes_under_load(mesh: &Mesh) {
    mesh.apply(&routes(&format!("{{{}}}", to("v1"))));
    settles("v1 answers", || mesh.from("customer").load(RECOMMENDATION, 20)?.share("recommendation", "v1").ensure_all());
    let load = start_load(mesh, "300s");
    let watcher = mesh.from("customer").start_probe(&["watch", "recommendation:8080"]);
    let first = watcher.line(Duration::from_secs(10)).expect("the watcher sees an answer").1;
    assert_eq!(first, "recommendation/v1");
    let mut slowest = Duration::ZERO;
    for change in 0..100 {
        let version = if change % 2 == 0 { "v2" } else { "v1" };
        let since = Instant::now();
        mesh.apply(&routes(&format!("{{{}}}", to(version))));
        let (seen_at, seen) =
            watcher.line(Duration::from_secs(5)).unwrap_or_else(|| panic!("change {change} to {version} is not seen within 5 s"));
        assert_eq!(seen, format!("recommendation/{version}"), "change {change}");
        slowest = slowest.max(seen_at - since);
    }
    println!("100 changes at {RATE} requests/s: the slowest was seen after {slowest:?}");
    drop(watcher);
    nobody_noticed(load);
    assert!(slowest < Duration::from_secs(1), "the slowest change was seen after {slowest:?}");
}

fn subsets_come_and_go_under_load(mesh: &Mesh) {
    // Clusters appear before routes name them, and go after: in both directions.
    let load = start_load(mesh, "300s");
    for _ in 0..8 {
        mesh.apply(&split(50, 50));
        settles("the split is there", || {
            let report = mesh.from("customer").load(RECOMMENDATION, 20)?;
            check!(report.version("recommendation", "v1") > 0, "no v1")
        });
        mesh.reset();
    }
    nobody_noticed(load);
}

fn a_killed_control_plane_drops_nobody(mesh: &Mesh) {
    mesh.apply(&routes(&format!("{{{}}}", to("v1"))));
    settles("v1 answers", || mesh.from("customer").load(RECOMMENDATION, 20)?.share("recommendation", "v1").ensure_all());
    let load = start_load(mesh, "300s");
    for round in 0..2 {
        let control: Vec<_> = mesh.processes(" control --");
        assert_eq!(control.len(), 1, "one control plane: {control:?}");
        let killed = control[0].pid;
        kill(Pid::from_raw(killed), Signal::SIGKILL).expect("a signal");
        eventually("another control plane runs", Duration::from_secs(30), || {
            let now = mesh.processes(" control --");
            check!(now.len() == 1 && now[0].pid != killed, "{now:?}")
        });
        eventually("everything is ready", Duration::from_secs(30), || mesh.all_ready());
        // The new one steers.
        let version = ["v2", "v1"][round];
        mesh.apply(&routes(&format!("{{{}}}", to(version))));
        eventually("a change after the restart takes effect", Duration::from_secs(30), || {
            mesh.from("customer").load(RECOMMENDATION, 10)?.share("recommendation", version).ensure_all()
        });
    }
    nobody_noticed(load);
}

fn a_rollout_drops_nobody(mesh: &Mesh) {
    let load = start_load(mesh, "300s");
    let pods = || -> Vec<String> {
        let names = mesh.lateen(&["get", "pods", "-o", "name"]).out;
        names.lines().filter(|l| l.starts_with("pod/recommendation-")).map(str::to_owned).collect()
    };
    let before = pods();
    assert_eq!(before.len(), 2, "{before:?}");
    mesh.lateen(&["delete", "pod", before[0].trim_start_matches("pod/")]).succeeded();
    eventually("another pod is ready in its place", Duration::from_secs(60), || {
        let now = pods();
        ensure!(now.len() == 2 && !now.contains(&before[0]), "{now:?}");
        mesh.all_ready()
    });
    settles("both versions answer", || mesh.from("customer").load(RECOMMENDATION, 100)?.share("recommendation", "v2").ensure_near(0.5));
    nobody_noticed(load);
}

/// Pods come and go, and are replaced by slower ones and back, while each of them always has requests under way, on kept
/// connections and on new ones.
fn scaling_drops_nobody(mesh: &Mesh) {
    for caller in ["customer", "preference"] {
        settles("both versions answer", || mesh.from(caller).load(RECOMMENDATION, 100)?.share("recommendation", "v2").ensure_near(0.5));
    }
    let options = ["--rps", "100", "--connections", "64", "--method", "POST", "--data", "order", "--duration", "300s"];
    let kept = mesh.from("customer").start_load(RECOMMENDATION, &options);
    let fresh = mesh.from("preference").start_load(RECOMMENDATION, &[&options[..], &["--no-keepalive"]].concat());
    let slow = sample().replace("--name, recommendation, --version, v1, ", "--name, recommendation, --version, v1, --latency, 150ms, ");
    assert!(slow.contains("--latency"));
    let file = mesh.folder().join("scaled.yaml");
    // Not among what is removed after the exercise: it is the mesh itself.
    let transform = |yaml: &str, replicas: usize| {
        std::fs::write(&file, yaml).expect("a file");
        mesh.lateen(&["apply", "-f", &file.display().to_string()]).succeeded();
        eventually("the replicas are there and no others", Duration::from_secs(60), || {
            let pods = mesh.lateen(&["get", "pods"]).out;
            ensure!(pods.lines().filter(|l| l.starts_with("recommendation-v1-")).count() == replicas, "{pods}");
            mesh.all_ready()
        });
    };
    for replicas in [1, 3, 1, 2] {
        let head = "{name: recommendation-v1}\nspec:\n";
        transform(&slow.replace(head, &format!("{head}  replicas: {replicas}\n")), replicas);
    }
    transform(&sample(), 1);
    for caller in ["customer", "preference"] {
        // Why, if anybody was dropped after all.
        let metrics = mesh.from(caller).get("http://127.0.0.1:15000/stats/prometheus").body;
        metrics.lines().filter(|l| l.contains("istio_requests_total{") && l.contains("response_code=\"5")).for_each(|l| println!("{l}"));
    }
    nobody_noticed(kept);
    nobody_noticed(fresh);
}
