//! Load generators and command-line clients.
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::Outcome;
use crate::lab::{Lab, Way};

/// The command, if it is installed.
fn found(name: &str) -> Option<Command> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).any(|folder| folder.join(name).is_file()).then(|| Command::new(name))
}

/// The number behind `label` in a client's output.
fn number(text: &str, label: &str) -> anyhow::Result<usize> {
    let rest = text.split(label).nth(1).with_context(|| format!("no `{label}` in:\n{text}"))?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("`{label}` is followed by no number in:\n{text}"))
}

pub(crate) fn curl(lab: &Lab, way: Way) -> anyhow::Result<Outcome> {
    if found("curl").is_none() {
        return Ok(Outcome::Skipped("curl is not installed"));
    }
    let many = lab.requests();
    let first = curls(lab, way, "--http1.1", many, "200 1.1")?;
    // Over TLS the version is what ALPN settles. In the clear, curl 7.88 breaks the second request on a connection by itself.
    let second = match way {
        Way::Mutual => curls(lab, way, "--http2", many, "200 2")?,
        Way::Plain | Way::Pair => (0..10).map(|_| curls(lab, way, "--http2-prior-knowledge", 1, "200 2")).sum::<anyhow::Result<usize>>()?,
    };
    Ok(Outcome::Done(format!("{first} over HTTP/1.1, {second} over HTTP/2")))
}

/// So many requests with bodies; how many were answered as they should.
fn curls(lab: &Lab, way: Way, version: &str, many: usize, expected: &str) -> anyhow::Result<usize> {
    let mut curl = Command::new("curl");
    // Many at once: one after the other a million would take hours. The progress would go where the answers go.
    curl.args(["--parallel", "--parallel-max", "16", "--no-progress-meter"]);
    curl.args([version, "--silent", "--show-error", "--fail", "--output", "/dev/null", "--write-out", "%{http_code} %{http_version}\\n"]);
    curl.arg("--cacert").arg(lab.file("ca.pem")).arg("--cert").arg(lab.file("client.pem")).arg("--key").arg(lab.file("client.key"));
    curl.args(["--data-binary", &"x".repeat(3000)]).arg(format!("{}/echo?n=[1-{many}]", lab.url(way)));
    let (out, ended_well) = lab.client(&mut curl)?;
    let right = out.lines().filter(|l| *l == expected).count();
    ensure!(ended_well && right == many, "{right} of {many} answers with {version} are `{expected}`:\n{}", tail(&out));
    Ok(right)
}

pub(crate) fn wrk(lab: &Lab, way: Way) -> anyhow::Result<Outcome> {
    if way == Way::Mutual {
        return Ok(Outcome::Skipped("wrk shows no certificate"));
    }
    // It goes by time, not by number: so often as there are answers to come.
    let seconds = if lab.requests() > 100_000 { "10s" } else { "2s" };
    let mut total = 0;
    while total < lab.requests() {
        let Some(mut wrk) = found("wrk") else { return Ok(Outcome::Skipped("wrk is not installed")) };
        wrk.args(["--threads", "1", "--connections", "16", "--timeout", "10s", "--duration", seconds]).arg(lab.url(way));
        let (out, ended_well) = lab.client(&mut wrk)?;
        ensure!(ended_well && !out.contains("Non-2xx") && !out.contains("Socket errors"), "{out}");
        let line = out.lines().find(|l| l.contains("requests in")).unwrap_or_default();
        let answers = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        ensure!(answers > 0, "{out}");
        total += answers;
    }
    Ok(Outcome::Done(format!("{total} requests")))
}

pub(crate) fn h2load(lab: &Lab, way: Way) -> anyhow::Result<Outcome> {
    if way == Way::Mutual {
        return Ok(Outcome::Skipped("h2load shows no certificate"));
    }
    let mut done = Vec::new();
    for version in ["--h1", "--no-tls-proto=h2c"] {
        let Some(mut load) = found("h2load") else { return Ok(Outcome::Skipped("h2load is not installed")) };
        let many = lab.requests();
        load.args([version, "--clients", "8", "--max-concurrent-streams", "16", "--requests", &many.to_string()]).arg(lab.url(way));
        let (out, ended_well) = lab.client(&mut load)?;
        let failed = number(&out, "succeeded,")? + number(&out, "failed,")? + number(&out, "errored,")?;
        let right = number(&out, "status codes:")?;
        ensure!(ended_well && failed == 0 && right == many, "{right} of {many} answers are 2xx, {failed} failed:\n{out}");
        done.push(format!("{many} with {version}"));
    }
    Ok(Outcome::Done(done.join(", ")))
}

pub(crate) fn nghttp(lab: &Lab, way: Way) -> anyhow::Result<Outcome> {
    // More at once it does not ask for on a connection.
    let many = lab.requests().min(500);
    let rounds = lab.requests().div_ceil(many);
    for _ in 0..rounds {
        if found("nghttp").is_none() {
            return Ok(Outcome::Skipped("nghttp is not installed"));
        }
        nghttps(lab, way, many)?;
    }
    Ok(Outcome::Done(format!("{} streams", rounds * many)))
}

/// A connection with so many streams.
fn nghttps(lab: &Lab, way: Way, many: usize) -> anyhow::Result<()> {
    let mut nghttp = Command::new("nghttp");
    nghttp.args(["--stat", "--no-verify-peer", "--null-out", "--multiply", &many.to_string()]);
    nghttp.arg("--cert").arg(lab.file("client.pem")).arg("--key").arg(lab.file("client.key")).arg(format!("{}/x", lab.url(way)));
    let (out, ended_well) = lab.client(&mut nghttp)?;
    // A line of its table: id, times, status, size, path.
    let right = out.lines().filter(|l| l.ends_with("/x") && l.split_whitespace().any(|word| word == "200")).count();
    ensure!(ended_well && right == many, "{right} of {many} answers are 200:\n{}", tail(&out));
    Ok(())
}

/// The end of what a client said.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
