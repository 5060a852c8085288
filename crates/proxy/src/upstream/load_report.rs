//! Load reports that come with responses (ORCA): `endpoint-load-metrics` as text, JSON or a message, and gRPC's
//! `endpoint-load-metrics-bin`. One that makes no sense is none, as in Envoy.
use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use lateen_balance::by_load::LoadReport;
use prost::Message;

use crate::http::headers::{ENDPOINT_LOAD_METRICS, ENDPOINT_LOAD_METRICS_BIN};

/// Longer reports are not read.
const LONGEST: usize = 16 * 1024;

/// The maps of a report, as metrics of them are named.
const MAPS: [&str; 3] = ["named_metrics", "utilization", "request_cost"];

/// gRPC leaves the padding out.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// `xds.data.orca.v3.OrcaLoadReport`.
#[derive(Clone, PartialEq, Message)]
struct Encoded {
    #[prost(double, tag = "1")]
    cpu_utilization: f64,
    #[prost(double, tag = "2")]
    mem_utilization: f64,
    #[prost(map = "string, double", tag = "4")]
    request_cost: HashMap<String, f64>,
    #[prost(map = "string, double", tag = "5")]
    utilization: HashMap<String, f64>,
    #[prost(double, tag = "6")]
    rps_fractional: f64,
    #[prost(double, tag = "7")]
    eps: f64,
    #[prost(map = "string, double", tag = "8")]
    named_metrics: HashMap<String, f64>,
    #[prost(double, tag = "9")]
    application_utilization: f64,
}

/// The report among the headers or trailers of a response.
pub(super) fn find(headers: &HeaderMap) -> Option<LoadReport> {
    if let Some(value) = headers.get(&ENDPOINT_LOAD_METRICS_BIN) {
        return encoded(value.as_bytes());
    }
    let text = headers.get(&ENDPOINT_LOAD_METRICS)?.to_str().ok().filter(|text| text.len() <= LONGEST)?;
    match text.split_once(' ')? {
        ("TEXT", report) => written(report),
        ("JSON", report) => json(report),
        ("BIN", report) => encoded(report.as_bytes()),
        _ => None,
    }
}

fn encoded(value: &[u8]) -> Option<LoadReport> {
    let bytes = BASE64.decode(value.get(..value.len().min(LONGEST + 1)).filter(|v| v.len() <= LONGEST)?).ok()?;
    let message = Encoded::decode(bytes.as_slice()).ok()?;
    let maps = [message.named_metrics, message.utilization, message.request_cost];
    let others = MAPS.iter().zip(maps).flat_map(|(map, values)| values.into_iter().map(move |(key, v)| (format!("{map}.{key}"), v)));
    Some(LoadReport {
        application_utilization: message.application_utilization,
        cpu_utilization: message.cpu_utilization,
        mem_utilization: message.mem_utilization,
        rps: message.rps_fractional,
        eps: message.eps,
        others: others.collect(),
    })
}

/// `name=value` or `name:value`, separated by commas, each name once.
fn written(text: &str) -> Option<LoadReport> {
    let mut report = LoadReport::default();
    let mut seen = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (name, value) = entry.split_once([':', '='])?;
        let (name, value) = (name.trim(), value.trim().parse().ok().filter(|v: &f64| v.is_finite())?);
        if seen.contains(&name) {
            return None;
        }
        seen.push(name);
        set(&mut report, name, value)?;
    }
    Some(report)
}

/// `None` for a metric that nobody knows.
fn set(report: &mut LoadReport, name: &str, value: f64) -> Option<()> {
    match name {
        "application_utilization" => report.application_utilization = value,
        "cpu_utilization" => report.cpu_utilization = value,
        "mem_utilization" => report.mem_utilization = value,
        "rps_fractional" => report.rps = value,
        "eps" => report.eps = value,
        _ => {
            let (map, key) = name.split_once('.')?;
            if key.is_empty() || !MAPS.contains(&map) {
                return None;
            }
            report.others.push((name.to_owned(), value));
        }
    }
    Some(())
}

/// The message in protobuf's JSON, with names of either spelling.
fn json(text: &str) -> Option<LoadReport> {
    let serde_json::Value::Object(fields) = serde_json::from_str(text).ok()? else { return None };
    let mut report = LoadReport::default();
    for (name, value) in fields {
        let name = match name.as_str() {
            "applicationUtilization" => "application_utilization",
            "cpuUtilization" => "cpu_utilization",
            "memUtilization" => "mem_utilization",
            "rpsFractional" => "rps_fractional",
            "namedMetrics" => "named_metrics",
            "requestCost" => "request_cost",
            other => other,
        };
        match value {
            serde_json::Value::Object(map) if MAPS.contains(&name) => {
                for (key, value) in map {
                    report.others.push((format!("{name}.{key}"), value.as_f64()?));
                }
            }
            // A whole number that newer reports leave out.
            _ if name == "rps" => {}
            value => set(&mut report, name, value.as_f64()?)?,
        }
    }
    Some(report)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn found(name: &'static str, value: &str) -> Option<LoadReport> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        find(&headers)
    }

    fn sorted(report: Option<LoadReport>) -> LoadReport {
        let mut report = report.unwrap();
        report.others.sort_by(|a, b| a.0.cmp(&b.0));
        report
    }

    #[test]
    fn all_forms_say_the_same() {
        let expected = LoadReport {
            application_utilization: 0.75,
            cpu_utilization: 0.5,
            mem_utilization: 0.25,
            rps: 1000.0,
            eps: 2.0,
            others: vec![("named_metrics.queue".into(), 3.0), ("utilization.disk".into(), 0.125)],
        };
        let message = Encoded {
            cpu_utilization: 0.5,
            mem_utilization: 0.25,
            rps_fractional: 1000.0,
            eps: 2.0,
            application_utilization: 0.75,
            named_metrics: HashMap::from([("queue".into(), 3.0)]),
            utilization: HashMap::from([("disk".into(), 0.125)]),
            ..Encoded::default()
        };
        let padded = base64::engine::general_purpose::STANDARD.encode(message.encode_to_vec());
        let bare = padded.trim_end_matches('=');
        let text = |sep: char| {
            format!(
                "TEXT application_utilization{sep}0.75, cpu_utilization{sep}0.5,mem_utilization{sep}0.25,rps_fractional{sep}1000,eps{sep}2,\
                 named_metrics.queue{sep}3,utilization.disk{sep}0.125"
            )
        };
        let json = r#"JSON {"application_utilization": 0.75, "cpuUtilization": 0.5, "memUtilization": 0.25, "rps_fractional": 1000, "eps": 2,
            "named_metrics": {"queue": 3}, "utilization": {"disk": 0.125}}"#;
        let json = json.replace('\n', "");
        for value in [text('='), text(':'), json, format!("BIN {padded}"), format!("BIN {bare}")] {
            assert_eq!(sorted(found("endpoint-load-metrics", &value)), expected, "{value}");
        }
        assert_eq!(sorted(found("endpoint-load-metrics-bin", bare)), expected);
    }

    #[test]
    fn what_makes_no_sense_is_no_report() {
        for value in [
            "cpu_utilization=1",
            "TEXT cpu_utilization=x",
            "TEXT a=1",
            "TEXT eps=1,eps=2",
            "TEXT eps=inf",
            "TEXT named_metrics.=1",
            "JSON []",
            "BIN ?",
            "XML x",
        ] {
            assert_eq!(found("endpoint-load-metrics", value), None, "{value}");
        }
        let long = format!("TEXT {}eps=1", ",".repeat(LONGEST));
        assert_eq!(found("endpoint-load-metrics", &long), None);
    }

    #[test]
    fn any_value_is_read_without_harm() {
        let mut rng = SmallRng::seed_from_u64(7);
        let alphabet = b"TEXTJSONBIN {}[]\":,=.0123456789-+eE_cpu_utilizationamedmrics/AAAA";
        for form in ["TEXT ", "JSON {", "BIN ", ""].iter().cycle().take(20_000) {
            let length = rng.random_range(0..60);
            let tail: Vec<u8> = (0..length).map(|_| alphabet[rng.random_range(0..alphabet.len())]).collect();
            let tail = String::from_utf8(tail).unwrap();
            let _ = found("endpoint-load-metrics", &format!("{form}{tail}"));
            let _ = found("endpoint-load-metrics-bin", &tail);
        }
    }
}
