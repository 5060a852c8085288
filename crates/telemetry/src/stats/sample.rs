//! One metric as a scrape sees it, before it is printed.
use super::histogram::HistogramValue;
use super::name::Tag;
use std::borrow::Cow;

/// The summed value of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Counter(u64),
    Gauge {
        value: u64,
        /// It was ever written.
        used: bool,
    },
    Histogram(HistogramValue),
    /// A text, as Envoy has for `control_plane.identifier`; left out of Prometheus output.
    Text(String),
}

impl Value {
    /// Whether nothing was ever counted or set, which `?usedonly` leaves out.
    pub fn is_unused(&self) -> bool {
        match self {
            Self::Counter(value) => *value == 0,
            Self::Gauge { used, .. } => !used,
            Self::Histogram(histogram) => histogram.count() == 0,
            Self::Text(text) => text.is_empty(),
        }
    }

    /// Takes up what another of the same kind counts.
    pub(super) fn add(&mut self, other: &Self) {
        match (self, other) {
            (Self::Counter(sum), Self::Counter(more)) => *sum = sum.saturating_add(*more),
            (Self::Gauge { value, used }, Self::Gauge { value: more, used: too }) => {
                *value = value.saturating_add(*more);
                *used |= too;
            }
            (Self::Histogram(sum), Self::Histogram(more)) if sum.buckets == more.buckets => sum.merge(more),
            _ => {}
        }
    }
}

/// One metric with both of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Envoy's name: `cluster.x.upstream_rq_total`.
    pub name: String,
    /// The name for Prometheus: `envoy_cluster_upstream_rq_total`, or for Istio's metrics `istio_requests_total`.
    pub family: String,
    /// Labels for Prometheus in printing order.
    pub labels: Vec<(Cow<'static, str>, String)>,
    pub value: Value,
}

/// How tags become labels: stock Envoy's default tags carry `envoy_` in front, Istio's bootstrap names them without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TagStyle {
    /// `envoy_cluster_name`, `envoy_response_code_class="2"`.
    #[default]
    Envoy,
    /// `cluster_name`, `response_code_class="2xx"`.
    Istio,
}

/// Splits the response code or class off a metric's name, as Envoy's tag extraction does:
/// `upstream_rq_503` is `upstream_rq` with a code, `upstream_rq_5xx` is `upstream_rq_xx` with a class.
pub(super) fn split_code(name: &str, style: TagStyle) -> (Cow<'_, str>, Option<Tag>) {
    let Some((stem, last)) = name.rsplit_once('_') else { return (Cow::Borrowed(name), None) };
    if !(stem.ends_with("_rq") && last.len() == 3 && last.as_bytes()[0].is_ascii_digit()) {
        return (Cow::Borrowed(name), None);
    }
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return (Cow::Borrowed(stem), Some(Tag { key: "response_code", value: last.to_owned() }));
    }
    match (last.strip_suffix("xx"), style) {
        (Some(digit), TagStyle::Envoy) => {
            (Cow::Owned(format!("{stem}_xx")), Some(Tag { key: "response_code_class", value: digit.to_owned() }))
        }
        (Some(_), TagStyle::Istio) => (Cow::Borrowed(stem), Some(Tag { key: "response_code_class", value: last.to_owned() })),
        (None, _) => (Cow::Borrowed(name), None),
    }
}

pub(super) fn label_key(tag: &Tag, style: TagStyle) -> Cow<'static, str> {
    match style {
        TagStyle::Envoy => Cow::Owned(format!("envoy_{}", tag.key)),
        TagStyle::Istio => Cow::Borrowed(tag.key),
    }
}
