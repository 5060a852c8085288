//! The Prometheus text exposition, formed as Envoy's `/stats/prometheus` forms it.
use super::histogram::trim;
use super::sample::{Sample, Value};
use std::borrow::Cow;
use std::fmt::Write as _;

/// Prints samples grouped by family, one `# TYPE` line each. Texts have no form here and are left out.
pub fn prometheus(mut samples: Vec<Sample>) -> String {
    samples.retain(|sample| !matches!(sample.value, Value::Text(_)));
    // A family must stand together and have one type; the kind breaks ties between equal names of two types.
    samples.sort_by(|a, b| a.family.cmp(&b.family).then_with(|| kind(&a.value).cmp(kind(&b.value))).then_with(|| a.labels.cmp(&b.labels)));
    let mut out = String::with_capacity(samples.len() * 96);
    let mut current: Option<(&str, &str)> = None;
    for sample in &samples {
        let this = (sample.family.as_str(), kind(&sample.value));
        match current {
            Some(seen) if seen == this => {}
            // Two types under one name would make the whole page invalid: the first stays.
            Some((family, _)) if family == this.0 => continue,
            _ => {
                let _ = writeln!(out, "# TYPE {} {}", this.0, this.1);
                current = Some(this);
            }
        }
        push(&mut out, sample);
    }
    out
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Counter(_) => "counter",
        Value::Gauge(_) => "gauge",
        Value::Histogram(_) => "histogram",
        Value::Text(_) => "untyped",
    }
}

fn push(out: &mut String, sample: &Sample) {
    let labels = label_list(&sample.labels);
    let family = &sample.family;
    match &sample.value {
        Value::Counter(value) | Value::Gauge(value) => {
            let _ = writeln!(out, "{family}{{{labels}}} {value}");
        }
        Value::Histogram(histogram) => {
            let comma = if labels.is_empty() { "" } else { "," };
            for (le, count) in histogram.cumulative() {
                let _ = writeln!(out, "{family}_bucket{{{labels}{comma}le=\"{le}\"}} {count}");
            }
            let _ = writeln!(out, "{family}_sum{{{labels}}} {}", trim(histogram.scaled_sum()));
            let _ = writeln!(out, "{family}_count{{{labels}}} {}", histogram.count());
        }
        Value::Text(_) => {}
    }
}

fn label_list(labels: &[(Cow<'static, str>, String)]) -> String {
    let mut out = String::new();
    for (index, (key, value)) in labels.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(key);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}
