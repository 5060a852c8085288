//! What the service remembers: knobs that can be turned while it runs, and what it has received.
use crate::options::{Latency, ServeOptions};
use http::{HeaderMap, StatusCode};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Requests kept in full for `/stats`.
const RECENT: usize = 64;
/// Distinct paths counted by name; the rest count as `(other)`.
const PATHS: usize = 256;

/// One received request.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Received {
    pub(crate) protocol: &'static str,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// The state of one service; everything runs on one thread.
pub(crate) struct State {
    pub(crate) options: ServeOptions,
    pub(crate) pod: String,
    count: Cell<u64>,
    errors: Cell<u64>,
    misbehave: Cell<Option<StatusCode>>,
    latency: Cell<Latency>,
    draining: Cell<bool>,
    dice: RefCell<SmallRng>,
    paths: RefCell<BTreeMap<String, u64>>,
    protocols: RefCell<BTreeMap<&'static str, u64>>,
    recent: RefCell<VecDeque<Received>>,
}

impl State {
    pub(crate) fn new(options: ServeOptions) -> Self {
        Self {
            pod: pod_name(),
            count: Cell::new(0),
            errors: Cell::new(0),
            misbehave: Cell::new(None),
            latency: Cell::new(options.latency),
            draining: Cell::new(false),
            dice: RefCell::new(SmallRng::from_os_rng()),
            paths: RefCell::default(),
            protocols: RefCell::default(),
            recent: RefCell::default(),
            options,
        }
    }

    /// Counts a request that is to be answered; returns its number.
    pub(crate) fn received(&self, received: Received) -> u64 {
        self.count.set(self.count.get() + 1);
        *self.protocols.borrow_mut().entry(received.protocol).or_default() += 1;
        let mut paths = self.paths.borrow_mut();
        let known = paths.contains_key(&received.path) || paths.len() < PATHS;
        *paths.entry(if known { received.path.clone() } else { "(other)".to_owned() }).or_default() += 1;
        let mut recent = self.recent.borrow_mut();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(received);
        self.count.get()
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.get()
    }

    pub(crate) fn set_misbehave(&self, code: Option<StatusCode>) {
        self.misbehave.set(code);
    }

    pub(crate) fn misbehaves(&self) -> Option<StatusCode> {
        self.misbehave.get()
    }

    pub(crate) fn set_latency(&self, latency: Duration) {
        self.latency.set(Latency { low: latency, high: latency });
    }

    pub(crate) fn set_draining(&self) {
        self.draining.set(true);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Waits as long as the service is told to.
    pub(crate) async fn wait(&self) {
        let wait = self.latency.get().sample(&mut *self.dice.borrow_mut());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether this request is one of those that are to fail, and with what.
    pub(crate) fn failure(&self) -> Option<StatusCode> {
        let unlucky = self.options.error_rate > 0.0 && self.dice.borrow_mut().random_bool(self.options.error_rate);
        let failure = self.misbehave.get().or(unlucky.then_some(self.options.error_code));
        if failure.is_some() {
            self.errors.set(self.errors.get() + 1);
        }
        failure
    }

    /// The answer of `/stats`.
    pub(crate) fn stats(&self) -> serde_json::Value {
        serde_json::json!({
            "service": self.options.name,
            "version": self.options.version,
            "pod": self.pod,
            "requests": self.count.get(),
            "failed": self.errors.get(),
            "protocols": *self.protocols.borrow(),
            "paths": *self.paths.borrow(),
            "recent": *self.recent.borrow(),
        })
    }

    /// Forgets what was received, so that a test can count from here.
    pub(crate) fn reset(&self) {
        self.count.set(0);
        self.errors.set(0);
        self.paths.borrow_mut().clear();
        self.protocols.borrow_mut().clear();
        self.recent.borrow_mut().clear();
    }
}

/// Headers as a map of texts; repeated ones joined by commas.
pub(crate) fn header_texts(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut out: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        out.entry(name.as_str().to_owned()).and_modify(|all| *all = format!("{all},{value}")).or_insert_with(|| value.into_owned());
    }
    out
}

fn pod_name() -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
    set("POD_NAME").or_else(|| set("HOSTNAME")).or_else(kernel).unwrap_or_else(|| "unknown".to_owned())
}
