//! An open-loop load generator: requests leave on schedule, whether or not earlier ones have come back.
//!
//! Latency counts from the moment a request was due, so a server that stalls cannot hide its stall.
mod histogram;
mod report;
mod send;

pub use histogram::Histogram;
pub use report::{LatencyMillis, Report};

use crate::options::parse_duration;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Uri};
use send::{Fault, Lane, Plan};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Options of `lateen app load`.
#[derive(Clone, Debug, Args)]
pub struct LoadOptions {
    /// What to ask for: http://host:port/path
    #[arg(long, short = 'u', value_parser = http_url)]
    pub url: Uri,
    /// Requests a second
    #[arg(long, short = 'r', default_value_t = 10.0, value_parser = parse_rate)]
    pub rps: f64,
    /// For how long; without it until Ctrl-C
    #[arg(long, short = 'd', value_parser = parse_duration, value_name = "TIME")]
    pub duration: Option<Duration>,
    /// Stop after this many requests
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub requests: Option<u64>,
    /// Connections; over HTTP/1.1 also the number of requests that can be under way
    #[arg(long, short = 'c', default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
    /// Speak HTTP/2 without TLS, with up to 100 requests under way on each connection
    #[arg(long)]
    pub http2: bool,
    /// A new connection for every request
    #[arg(long, conflicts_with = "http2")]
    pub no_keepalive: bool,
    /// A request header, `Name: value`; repeatable
    #[arg(short = 'H', long = "header", value_parser = header, value_name = "HEADER")]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Method
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: Method,
    /// Body
    #[arg(long, default_value = "")]
    pub data: String,
    /// Count a request as failed after this long
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

impl LoadOptions {
    /// The defaults for a URL: 10 requests a second until stopped.
    pub fn new(url: Uri) -> Self {
        Self {
            url,
            rps: 10.0,
            duration: None,
            requests: None,
            connections: 16,
            http2: false,
            no_keepalive: false,
            headers: Vec::new(),
            method: Method::GET,
            data: String::new(),
            timeout: Duration::from_secs(10),
            json: false,
        }
    }
}

/// Requests that are due and have not left. Beyond this the generator itself is too slow, and says so.
const MAX_DUE: usize = 100_000;
/// Requests under way on one HTTP/2 connection.
const STREAMS: usize = 100;

/// What the schedule hands to the lanes.
struct Due {
    queue: RefCell<VecDeque<Instant>>,
    ready: Notify,
    finished: std::cell::Cell<bool>,
}

/// Sends until the duration or count is over or `stop` resolves; `report` fills while it runs, for live display.
/// Must run inside a `LocalSet`.
pub async fn run(options: &LoadOptions, report: Rc<RefCell<Report>>, stop: impl Future<Output = ()>) {
    let due = Rc::new(Due { queue: RefCell::default(), ready: Notify::new(), finished: std::cell::Cell::new(false) });
    let plan = Rc::new(Plan::new(options));
    let started = Instant::now();
    let mut lanes = tokio::task::JoinSet::new();
    for connection in Lane::connections(options) {
        let count = if options.http2 { STREAMS } else { 1 };
        for _ in 0..count {
            let lane = Lane { plan: plan.clone(), connection: connection.clone() };
            lanes.spawn_local(work(lane, due.clone(), report.clone(), options.timeout));
        }
    }
    tokio::select! {
        () = schedule(options, &due, &report, started) => {}
        () = stop => {}
    }
    due.finished.set(true);
    due.ready.notify_waiters();
    // What is under way may come back; what is due and late still leaves, up to the timeout.
    let patience = options.timeout + Duration::from_secs(1);
    let _ = tokio::time::timeout(patience, async { while lanes.join_next().await.is_some() {} }).await;
    lanes.abort_all();
    let mut report = report.borrow_mut();
    report.unsent += due.queue.borrow().len() as u64;
    report.unfinished();
    report.seconds = started.elapsed().as_secs_f64();
}

/// Puts requests into the queue at their times.
async fn schedule(options: &LoadOptions, due: &Due, report: &RefCell<Report>, started: Instant) {
    let end = options.duration.map(|duration| started + duration);
    let mut sent: u64 = 0;
    loop {
        if options.requests.is_some_and(|requests| sent >= requests) {
            return;
        }
        let at = started + Duration::from_secs_f64(sent as f64 / options.rps);
        if end.is_some_and(|end| at >= end) {
            if let Some(end) = end {
                tokio::time::sleep_until(end).await;
            }
            return;
        }
        if at > Instant::now() {
            tokio::time::sleep_until(at).await;
        }
        sent += 1;
        report.borrow_mut().scheduled += 1;
        let mut queue = due.queue.borrow_mut();
        if queue.len() >= MAX_DUE {
            report.borrow_mut().unsent += 1;
        } else {
            queue.push_back(at);
            due.ready.notify_one();
        }
    }
}

/// One lane: takes what is due, sends it, waits for the answer.
async fn work(mut lane: Lane, due: Rc<Due>, report: Rc<RefCell<Report>>, timeout: Duration) {
    loop {
        let next = due.queue.borrow_mut().pop_front();
        let Some(at) = next else {
            if due.finished.get() {
                return;
            }
            due.ready.notified().await;
            continue;
        };
        let outcome = tokio::time::timeout(timeout, lane.send()).await;
        let took = at.elapsed();
        match outcome {
            Ok(Ok(answer)) => report.borrow_mut().answered(answer.status, &answer.chain, took),
            Ok(Err(fault)) => report.borrow_mut().failed(fault.name()),
            Err(_) => {
                lane.give_up().await;
                report.borrow_mut().failed(Fault::Timeout.name());
            }
        }
    }
}

/// Runs and prints the report, once at the end.
///
/// # Errors
/// When signals cannot be listened to, or nothing was answered.
pub async fn run_and_print(options: LoadOptions) -> anyhow::Result<()> {
    let report = Rc::new(RefCell::new(Report::default()));
    run(&options, report.clone(), crate::terminated()?).await;
    let report = report.borrow();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report.to_json())?);
    } else {
        print!("{report}");
    }
    if report.answered == 0 && report.scheduled > 0 {
        anyhow::bail!("nothing answered at {}", options.url);
    }
    Ok(())
}

pub(crate) fn http_url(text: &str) -> Result<Uri, String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = full.parse().map_err(|e| format!("`{text}` is not a URL: {e}"))?;
    match uri.scheme_str() {
        Some("http") => Ok(uri),
        _ => Err(format!("`{text}`: only http:// is spoken here")),
    }
}

pub(crate) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("`{text}` is not of the form `Name: value`"))?;
    let name = name.trim().parse().map_err(|_| format!("`{name}` is not a header name"))?;
    let value = value.trim().parse().map_err(|_| format!("`{value}` is not a header value"))?;
    Ok((name, value))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err(format!("`{text}` is not a rate between 0 and 1000000")),
    }
}
