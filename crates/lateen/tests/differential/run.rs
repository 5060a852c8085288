//! A case from start to end: both proxies with the same configuration, the same requests, and what differed.
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::case::{Case, Step};
use crate::certificates::Certificates;
use crate::client;
use crate::compare::{Difference, counts, differences, normalise};
use crate::config::{DISCOVERY, Places, bootstrap, upstreams, write_files};
use crate::discovery::Server;
use crate::proxies::{Kind, Proxy, free_port};
use crate::upstream::Upstreams;

/// What one proxy made of one step.
struct Observed {
    /// Answer and what upstreams saw.
    value: Value,
    /// With `repeat`: how often what happened.
    counts: BTreeMap<String, u64>,
}

/// A difference and the step it is of.
pub(crate) struct Found {
    pub(crate) request: String,
    pub(crate) difference: Difference,
}

pub(crate) async fn run(case: &Case, folder: &Path, certificates: &Certificates) -> anyhow::Result<Vec<Found>> {
    let (lateen, envoy) = tokio::join!(one(Kind::Lateen, case, folder, certificates), one(Kind::Envoy, case, folder, certificates));
    let (lateen, envoy) = match (lateen, envoy) {
        (Ok(lateen), Ok(envoy)) => (lateen, envoy),
        (lateen, envoy) => {
            let reasons: Vec<String> = [lateen.err(), envoy.err()].into_iter().flatten().map(|e| format!("{e:#}")).collect();
            anyhow::bail!("{}", reasons.join("\n"));
        }
    };
    if std::env::var_os("SHOW").is_some() {
        case.requests.iter().zip(&envoy.0).for_each(|(step, seen)| eprintln!("{}: {:#} {:?}", step.name, seen.value, seen.counts));
    }
    let mut found = Vec::new();
    let mut add = |request: &str, all: Vec<Difference>| {
        found.extend(all.into_iter().map(|difference| Found { request: request.to_owned(), difference }));
    };
    for ((step, ours), theirs) in case.requests.iter().zip(&lateen.0).zip(&envoy.0) {
        add(&step.name, differences(&ours.value, &theirs.value));
        add(&step.name, counts(&ours.counts, &theirs.counts, step.tolerance));
    }
    for (index, step) in case.requests.iter().enumerate().filter(|(_, s)| s.repeat.is_none()) {
        let index = index.to_string();
        let of = |log: &[Value]| Value::Array(log.iter().filter(|l| l["step"].as_str() == Some(index.as_str())).cloned().collect());
        add(&step.name, differences(&json!({"log": of(&lateen.1)}), &json!({"log": of(&envoy.1)})));
    }
    // Formats of a case's own need not tell when and for what they were written.
    let rest = |log: &[Value]| Value::Array(log.iter().filter(|l| !l["step"].is_string()).cloned().collect());
    add("the log", differences(&json!({"log": rest(&lateen.1)}), &json!({"log": rest(&envoy.1)})));
    Ok(found)
}

type Outcome = (Vec<Observed>, Vec<Value>);

async fn one(kind: Kind, case: &Case, folder: &Path, certificates: &Certificates) -> anyhow::Result<Outcome> {
    let upstreams = Upstreams::start(&upstreams(case), certificates).await?;
    let mut discovery = match &case.discovered {
        Some(_) => Some(Server::start().await?),
        None => None,
    };
    let mut ports = upstreams.ports.clone();
    ports.extend(discovery.as_ref().map(|server| (DISCOVERY.to_owned(), server.port)));
    let places = Places {
        admin: free_port(),
        listeners: case.all_listeners().keys().map(|name| ((*name).to_owned(), free_port())).collect(),
        upstreams: ports,
        folder: folder.parent().unwrap_or(folder).display().to_string(),
        pins: certificates.pins.clone(),
        log: folder.join(format!("{}.log", kind.name())).display().to_string(),
        files: case
            .files
            .keys()
            .map(|name| (name.clone(), folder.join(format!("{}-{name}.json", kind.name())).display().to_string()))
            .collect(),
    };
    write_files(case, &places)?;
    if let (Some(server), Some(given)) = (&mut discovery, &case.discovered) {
        server.have(given, &places)?;
    }
    let proxy = Proxy::start(kind, folder, &bootstrap(case, &places), places.admin).await?;
    let mut all = Vec::new();
    let mut begun = Vec::new();
    for (index, step) in case.requests.iter().enumerate() {
        // Lines without the step's number are told apart by the millisecond in which they began.
        tokio::time::sleep(Duration::from_millis(3)).await;
        if let (Some(server), Some(given)) = (&mut discovery, &step.discovered) {
            server.change(given, &places).await.with_context(|| format!("{}: {}", kind.name(), step.name))?;
        }
        begun.push(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
        all.push(match step.repeat {
            None => Observed { value: ask(step, index, &upstreams, &places, certificates).await, counts: BTreeMap::new() },
            Some(times) => Observed { value: Value::Null, counts: repeat(times, step, index, &upstreams, &places, certificates).await },
        });
    }
    let refused = discovery.as_ref().map(Server::refused).unwrap_or_default();
    let what = || format!("{} refuses {} times what is discovered: {}", kind.name(), refused.len(), refused.join("; "));
    anyhow::ensure!(refused.len() == case.refuses, "{}", what());
    proxy.stop().await?;
    let text = std::fs::read_to_string(&places.log).unwrap_or_default();
    let mut lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|_| l.into())).collect();
    for line in &mut lines {
        assign(line, &begun);
        normalise(line, &places);
    }
    Ok((all, lines))
}

/// A line of a request too broken to carry the step's number belongs to the step during which it began.
fn assign(line: &mut Value, begun: &[f64]) {
    let Some(start) = line.as_object_mut().and_then(|l| l.remove("start")) else { return };
    let start: f64 = start.as_str().and_then(|s| s.parse().ok()).or(start.as_f64()).unwrap_or(0.0);
    if !line["step"].is_string() {
        // Logged to the millisecond.
        let index = begun.partition_point(|at| *at <= start + 0.001).saturating_sub(1);
        line["step"] = index.to_string().into();
    }
}

async fn ask(step: &Step, index: usize, upstreams: &Upstreams, places: &Places, certificates: &Certificates) -> Value {
    upstreams.prepare(step);
    let answer = client::ask(step, index, places, certificates).await;
    tokio::time::sleep(Duration::from_millis(step.settle_ms)).await;
    let mut value = json!({"answer": answer, "upstream": upstreams.seen().await});
    normalise(&mut value, places);
    value
}

async fn repeat(
    times: usize,
    step: &Step,
    index: usize,
    upstreams: &Upstreams,
    places: &Places,
    certificates: &Certificates,
) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    if step.at_once {
        upstreams.prepare(step);
        let answers = join_all((0..times).map(|_| client::ask(step, index, places, certificates))).await;
        answers.iter().for_each(|answer| count_answer(&mut counts, answer));
        count_requests(&mut counts, &upstreams.seen().await);
        counts.extend(upstreams.connections().into_iter().map(|(name, made)| (format!("connections to {name}"), made)));
        return counts;
    }
    for _ in 0..times {
        let seen = ask(step, index, upstreams, places, certificates).await;
        count_answer(&mut counts, &seen["answer"]);
        count_requests(&mut counts, seen["upstream"].as_array().map_or(&[], Vec::as_slice));
    }
    counts
}

fn count_answer(counts: &mut BTreeMap<String, u64>, answer: &Value) {
    let status = answer["line"].as_str().map(str::to_owned).or_else(|| answer["status"].as_u64().map(|s| s.to_string()));
    *counts.entry(format!("answer {}", status.unwrap_or_default())).or_default() += 1;
}

fn count_requests(counts: &mut BTreeMap<String, u64>, seen: &[Value]) {
    for request in seen {
        *counts.entry(format!("upstream {}", request["upstream"])).or_default() += 1;
    }
}
