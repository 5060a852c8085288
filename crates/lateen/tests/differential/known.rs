//! The differences that are meant, with their reasons: `known.yaml`. One that is none any more must leave the list.
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use serde::Deserialize;

use crate::compare::Difference;

/// Patterns hold `*` for anything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    case: String,
    #[serde(default = "any")]
    request: String,
    field: String,
    why: String,
    #[serde(skip)]
    met: AtomicBool,
}

fn any() -> String {
    "*".to_owned()
}

pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Known>> {
    let value = lateen_snapshot::bootstrap::yaml::read(&std::fs::read_to_string(path)?)?;
    let all: Vec<Known> = serde_json::from_value(value).with_context(|| path.display().to_string())?;
    anyhow::ensure!(all.iter().all(|k| !k.why.is_empty()), "{}: every difference needs its reason", path.display());
    Ok(all)
}

impl Known {
    pub(crate) fn covers(&self, case: &str, request: &str, difference: &Difference) -> bool {
        let covers = matches(&self.case, case) && matches(&self.request, request) && matches(&self.field, &difference.field);
        if covers {
            self.met.store(true, Ordering::Relaxed);
        }
        covers
    }

    /// Said when nothing differed any more.
    pub(crate) fn stale(&self) -> Option<String> {
        let told = || format!("case {}, request {}, field {} ({})", self.case, self.request, self.field, self.why);
        (!self.met.load(Ordering::Relaxed)).then(told)
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| matches(rest, &text[at..]))
}
