//! What callers saw: one answer, or the report of a load run.
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::process::Output;

/// One answer as `lateen app get --include` prints it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// 0 when there was none.
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Why there was no answer.
    pub(crate) error: String,
    /// With the start of the client: an upper bound.
    pub(crate) took: Duration,
}

impl Answer {
    pub(crate) fn read(output: &Output) -> Self {
        let (head, body) = output.out.split_once("\n\n").unwrap_or((&output.out, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split_ascii_whitespace().nth(1)).and_then(|s| s.parse().ok()).unwrap_or(0);
        let headers = lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        Self { status, headers, body: body.to_owned(), error: output.err.clone(), took: output.took }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The answer of the sample service.
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("status {}: {} {}", self.status, self.body, self.error))
    }

    /// What the sample service says about a request: `/path`, `/headers/x-a`.
    pub(crate) fn saw(&self, pointer: &str) -> anyhow::Result<String> {
        let json = self.json()?;
        let value = json.pointer(pointer).with_context(|| format!("no {pointer} in {json:#}"))?;
        Ok(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    /// `version` of the service that answered.
    pub(crate) fn version(&self) -> anyhow::Result<String> {
        self.saw("/version")
    }

    pub(crate) fn ensure_status(&self, status: u16) -> anyhow::Result<&Self> {
        ensure!(self.status == status, "status {} instead of {status}: {} {}", self.status, self.body.trim(), self.error.trim());
        Ok(self)
    }
}

/// What `lateen app load --json` prints.
#[derive(Clone, Debug)]
pub(crate) struct Report(pub(crate) Value);

impl Report {
    pub(crate) fn read(output: &Output) -> anyhow::Result<Self> {
        let value = serde_json::from_str(&output.out).with_context(|| format!("no report: {}{}", output.out, output.err))?;
        Ok(Self(value))
    }

    pub(crate) fn count(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or(0)
    }

    pub(crate) fn status(&self, status: u16) -> u64 {
        self.0["statuses"][status.to_string()].as_u64().unwrap_or(0)
    }

    /// Requests through `service` that its `version` answered.
    pub(crate) fn version(&self, service: &str, version: &str) -> u64 {
        self.0["versions"][service][version].as_u64().unwrap_or(0)
    }

    /// How often a version answered, of how many answers of the service.
    pub(crate) fn share(&self, service: &str, version: &str) -> Share {
        let all = self.0["versions"][service].as_object().map_or(0, |v| v.values().filter_map(Value::as_u64).sum());
        Share { hits: self.version(service, version), all }
    }

    /// How often a status came, of all requests.
    pub(crate) fn status_share(&self, status: u16) -> Share {
        Share { hits: self.status(status), all: self.count("scheduled") }
    }

    /// Every request was answered with 200.
    pub(crate) fn ensure_clean(&self) -> anyhow::Result<&Self> {
        let scheduled = self.count("scheduled");
        ensure!(scheduled > 0 && self.status(200) == scheduled, "not every request was answered with 200: {:#}", self.0);
        Ok(self)
    }
}

/// A share that was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) hits: u64,
    pub(crate) all: u64,
}

impl Share {
    /// Within five standard deviations of what independent draws give: a right proxy fails once in two million runs.
    pub(crate) fn ensure_near(self, expected: f64) -> anyhow::Result<()> {
        ensure!(self.all > 0, "nothing was counted");
        let (all, measured) = (self.all as f64, self.hits as f64 / self.all as f64);
        let margin = 5.0 * (expected * (1.0 - expected) / all).sqrt();
        ensure!((measured - expected).abs() <= margin, "{} of {} is not {expected} ± {margin:.3}", self.hits, self.all);
        Ok(())
    }

    pub(crate) fn ensure_none(self) -> anyhow::Result<()> {
        ensure!(self.hits == 0, "{} of {} instead of none", self.hits, self.all);
        Ok(())
    }

    pub(crate) fn ensure_all(self) -> anyhow::Result<()> {
        ensure!(self.all > 0 && self.hits == self.all, "{} of {} instead of all", self.hits, self.all);
        Ok(())
    }
}
