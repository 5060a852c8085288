//! From the sidecars' statistics to one line for each edge of the service graph.
use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Who calls whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) from: String,
    pub(super) to: String,
}

/// Running totals of one edge.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Totals {
    pub(super) requests: f64,
    /// Answers of 5xx, and no answer at all.
    pub(super) failures: f64,
    /// Upper bound in milliseconds (as text, `+Inf` last) to the number of requests at or below it.
    pub(super) buckets: Vec<(f64, f64)>,
}

pub(super) type Edges = BTreeMap<Edge, Totals>;

/// Adds the lines of one sidecar's Prometheus page: what it measured as a caller.
pub(super) fn add_page(edges: &mut Edges, page: &str) {
    for line in page.lines() {
        let Some((name, labels, value)) = metric(line) else { continue };
        if !name.starts_with("istio_request") || label(labels, "reporter") != Some("source") {
            continue;
        }
        let workload = label(labels, "destination_workload").filter(|w| *w != "unknown" && !w.is_empty());
        let (Some(from), Some(to)) = (label(labels, "source_workload"), workload.or(label(labels, "destination_service_name"))) else {
            continue;
        };
        let totals = edges.entry(Edge { from: from.to_owned(), to: to.to_owned() }).or_default();
        match name {
            "istio_requests_total" => {
                totals.requests += value;
                let code = label(labels, "response_code").unwrap_or("0");
                if code.starts_with('5') || code == "0" {
                    totals.failures += value;
                }
            }
            "istio_request_duration_milliseconds_bucket" => {
                let bound = label(labels, "le").map_or(f64::INFINITY, |le| le.parse().unwrap_or(f64::INFINITY));
                match totals.buckets.iter_mut().find(|(b, _)| *b == bound) {
                    Some((_, count)) => *count += value,
                    None => totals.buckets.push((bound, value)),
                }
            }
            _ => {}
        }
    }
}

/// `name{labels} value`, split.
fn metric(line: &str) -> Option<(&str, &str, f64)> {
    let (name, rest) = line.split_once('{')?;
    let (labels, value) = rest.rsplit_once('}')?;
    Some((name, labels, value.trim().parse().ok()?))
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = labels;
    loop {
        let (key, after) = rest.split_once("=\"")?;
        let end = after.find('"')?;
        if key.trim_start_matches(',') == name {
            return after.get(..end);
        }
        rest = after.get(end + 1..)?;
    }
}

/// As one line for the pipe between the mesh and the terminal.
pub(super) fn to_json(edges: &Edges) -> Value {
    let edge = |(e, t): (&Edge, &Totals)| {
        let buckets: Vec<Value> = t.buckets.iter().map(|(b, n)| json!([if b.is_finite() { json!(b) } else { Value::Null }, n])).collect();
        json!({"from": e.from, "to": e.to, "requests": t.requests, "failures": t.failures, "buckets": buckets})
    };
    edges.iter().map(edge).collect()
}

pub(super) fn from_json(value: &Value) -> Edges {
    let mut edges = Edges::new();
    for edge in value.as_array().into_iter().flatten() {
        let text = |key: &str| edge[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| edge[key].as_f64().unwrap_or_default();
        let bucket = |b: &Value| (b[0].as_f64().unwrap_or(f64::INFINITY), b[1].as_f64().unwrap_or_default());
        let buckets = edge["buckets"].as_array().into_iter().flatten().map(bucket).collect();
        let totals = Totals { requests: number("requests"), failures: number("failures"), buckets };
        edges.insert(Edge { from: text("from"), to: text("to") }, totals);
    }
    edges
}

/// What happened on an edge between two looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    pub(super) per_second: f64,
    /// Percent; 100 when nothing was sent.
    pub(super) success: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
}

pub(super) fn rates(before: &Totals, now: &Totals, seconds: f64) -> Rates {
    let requests = (now.requests - before.requests).max(0.0);
    let failures = (now.failures - before.failures).max(0.0);
    let earlier = |bound: f64| before.buckets.iter().find(|(b, _)| *b == bound).map_or(0.0, |(_, n)| *n);
    let mut buckets: Vec<(f64, f64)> = now.buckets.iter().map(|(b, n)| (*b, (n - earlier(*b)).max(0.0))).collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    Rates {
        per_second: requests / seconds.max(0.001),
        success: if requests > 0.0 { 100.0 * (1.0 - failures / requests) } else { 100.0 },
        p50: quantile(&buckets, 0.50),
        p99: quantile(&buckets, 0.99),
    }
}

/// Within cumulative buckets, linear inside a bucket, as Prometheus computes it.
fn quantile(buckets: &[(f64, f64)], q: f64) -> f64 {
    let Some((_, total)) = buckets.last().filter(|(_, n)| *n > 0.0) else { return 0.0 };
    let rank = q * total;
    let (mut lower, mut below) = (0.0, 0.0);
    for (upper, count) in buckets {
        if *count >= rank {
            if !upper.is_finite() {
                return lower;
            }
            return lower + (upper - lower) * ((rank - below) / (count - below).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        }
        (lower, below) = (*upper, *count);
    }
    lower
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"
# TYPE istio_requests_total counter
istio_requests_total{reporter="source",source_workload="a",destination_workload="b-v1",response_code="200"} 90
istio_requests_total{reporter="source",source_workload="a",destination_workload="b-v1",response_code="503"} 10
istio_requests_total{reporter="destination",source_workload="x",destination_workload="a",response_code="200"} 7
istio_request_duration_milliseconds_bucket{reporter="source",source_workload="a",destination_workload="b-v1",response_code="200",le="1"} 50
istio_request_duration_milliseconds_bucket{reporter="source",source_workload="a",destination_workload="b-v1",response_code="200",le="5"} 100
istio_request_duration_milliseconds_bucket{reporter="source",source_workload="a",destination_workload="b-v1",response_code="200",le="+Inf"} 100
envoy_cluster_upstream_rq{cluster_name="x"} 5
"#;

    #[test]
    fn only_what_a_caller_measured_counts() {
        let mut edges = Edges::new();
        add_page(&mut edges, PAGE);
        assert_eq!(edges.len(), 1);
        let totals = &edges[&Edge { from: "a".into(), to: "b-v1".into() }];
        assert_eq!((totals.requests, totals.failures), (100.0, 10.0));
        assert_eq!(from_json(&to_json(&edges)), edges);
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let mut edges = Edges::new();
        add_page(&mut edges, PAGE);
        let now = edges.values().next().unwrap();
        let rates = rates(&Totals::default(), now, 2.0);
        assert_eq!((rates.per_second, rates.success, rates.p50), (50.0, 90.0, 1.0));
        assert!((rates.p99 - 4.92).abs() < 0.01);
        assert_eq!(super::rates(now, now, 1.0).success, 100.0);
    }
}
