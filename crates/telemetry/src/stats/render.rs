//! Envoy's `/stats`: the query parameters it takes, the text and the JSON it answers.
use super::buckets;
use super::registry::Registry;
use super::sample::{Sample, Value};
use regex::Regex;
use serde_json::{Value as Json, json};

/// The form of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
    Prometheus,
}

/// `?type=`: which kinds to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TypeFilter {
    #[default]
    All,
    Counters,
    Gauges,
    Histograms,
    TextReadouts,
}

/// The parameters of a `/stats` request.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub format: Format,
    /// Only names in which this is found.
    pub filter: Option<Regex>,
    /// Leave out what has never been counted.
    pub used_only: bool,
    pub types: TypeFilter,
    /// Only names in which the filter is not found.
    pub inverted: bool,
    pub buckets: BucketMode,
}

/// `?histogram_buckets=`: how histograms are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BucketMode {
    /// As quantiles.
    #[default]
    Summary,
    /// Each bucket with all below it.
    Cumulative,
    /// Each bucket by itself.
    Disjoint,
    /// The buckets that hold something, and quantiles.
    Detailed,
}

/// A parameter that cannot be honoured; the text is what the admin port answers with status 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuery {
    #[error("Invalid re2 regex: {0}")]
    Filter(String),
    #[error("usage: /stats?format=(text|json|prometheus), not `{0}`")]
    Format(String),
    #[error("usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary), not `{0}`")]
    Buckets(String),
    #[error("invalid &type={0}, expected one of All, Counters, Gauges, Histograms, TextReadouts")]
    Type(String),
}

/// The largest compiled filter. A filter is typed by hand; anything larger is an accident or an attack.
const FILTER_LIMIT: usize = 1 << 20;

impl Query {
    /// Reads `format=json&filter=upstream&usedonly`; unknown parameters are ignored, as Envoy does.
    ///
    /// # Errors
    /// [`InvalidQuery`] when a known parameter has a value it cannot have.
    pub fn parse(query: &str) -> Result<Self, InvalidQuery> {
        let mut out = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(value);
            match key {
                "usedonly" => out.used_only = true,
                "invert_filter" => out.inverted = true,
                "histogram_buckets" => {
                    out.buckets = match value.as_str() {
                        "" | "summary" => BucketMode::Summary,
                        "cumulative" => BucketMode::Cumulative,
                        "disjoint" => BucketMode::Disjoint,
                        "detailed" => BucketMode::Detailed,
                        _ => return Err(InvalidQuery::Buckets(value)),
                    }
                }
                "filter" if value.is_empty() => out.filter = None,
                "filter" => {
                    let regex = regex::RegexBuilder::new(&value).size_limit(FILTER_LIMIT).build();
                    out.filter = Some(regex.map_err(|cause| InvalidQuery::Filter(cause.to_string()))?);
                }
                "format" => {
                    out.format = match value.as_str() {
                        "" | "text" => Format::Text,
                        "json" => Format::Json,
                        "prometheus" => Format::Prometheus,
                        _ => return Err(InvalidQuery::Format(value)),
                    }
                }
                "type" => {
                    out.types = match value.as_str() {
                        "" | "All" => TypeFilter::All,
                        "Counters" => TypeFilter::Counters,
                        "Gauges" => TypeFilter::Gauges,
                        "Histograms" => TypeFilter::Histograms,
                        "TextReadouts" => TypeFilter::TextReadouts,
                        _ => return Err(InvalidQuery::Type(value)),
                    }
                }
                _ => {}
            }
        }
        Ok(out)
    }

    /// The content type of the answer.
    pub fn content_type(&self) -> &'static str {
        match self.format {
            Format::Text => "text/plain; charset=UTF-8",
            Format::Json => "application/json",
            Format::Prometheus => "text/plain; version=0.0.4; charset=UTF-8",
        }
    }

    /// The metrics asked for, sorted as Envoy sorts: texts, then counters and gauges together, then histograms, each by name.
    pub fn samples(&self, registry: &Registry) -> Vec<Sample> {
        let mut samples = registry.scrape(self.used_only, &|name| self.accepts(name));
        samples.retain(|sample| self.wants(&sample.value));
        samples.sort_by(|a, b| rank(&a.value).cmp(&rank(&b.value)).then_with(|| a.name.cmp(&b.name)));
        samples
    }

    /// The answer's body.
    pub fn render(&self, registry: &Registry) -> String {
        match self.format {
            Format::Text => text(&self.samples(registry), self.buckets),
            Format::Json => json_text(&self.samples(registry), self.buckets),
            Format::Prometheus => {
                registry.prometheus(&|name| self.accepts(name), &|value| self.wants(value) && !(self.used_only && value.is_unused()))
            }
        }
    }

    fn accepts(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.is_match(name) != self.inverted)
    }

    fn wants(&self, value: &Value) -> bool {
        match self.types {
            TypeFilter::All => true,
            TypeFilter::Counters => matches!(value, Value::Counter(_)),
            TypeFilter::Gauges => matches!(value, Value::Gauge { .. }),
            TypeFilter::Histograms => matches!(value, Value::Histogram(_)),
            TypeFilter::TextReadouts => matches!(value, Value::Text(_)),
        }
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Text(_) => 0,
        Value::Counter(_) | Value::Gauge { .. } => 1,
        Value::Histogram(_) => 2,
    }
}

fn text(samples: &[Sample], buckets: BucketMode) -> String {
    let mut out = String::with_capacity(samples.len() * 64);
    for Sample { name, value, .. } in samples {
        out.push_str(name);
        out.push_str(": ");
        match value {
            Value::Counter(value) | Value::Gauge { value, .. } => out.push_str(&value.to_string()),
            Value::Text(text) => out.push_str(&format!("{text:?}")),
            Value::Histogram(histogram) => buckets::push_text(&mut out, histogram, buckets),
        }
        out.push('\n');
    }
    out
}

/// Envoy's JSON: plain metrics one by one, histograms gathered in one last entry that names the quantiles once.
fn json_text(samples: &[Sample], mode: BucketMode) -> String {
    let mut stats: Vec<Json> = Vec::with_capacity(samples.len() + 1);
    let mut computed: Vec<Json> = Vec::new();
    for Sample { name, value, .. } in samples {
        match value {
            Value::Counter(value) | Value::Gauge { value, .. } => stats.push(json!({"name": name, "value": value})),
            Value::Text(text) => stats.push(json!({"name": name, "value": text})),
            Value::Histogram(histogram) => computed.push(buckets::json(name, histogram, mode)),
        }
    }
    if !computed.is_empty() {
        stats.push(json!({"histograms": buckets::gathered(computed, mode)}));
    }
    json!({"stats": stats}).to_string()
}

/// Undoes `%41` and `+`; what does not decode stays as it is.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex =
            bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok()).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (byte, hex) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}
