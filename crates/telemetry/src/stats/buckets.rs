//! Histograms on `/stats`: as quantiles or as buckets, in Envoy's forms.
//!
//! Envoy shows each figure twice, since the last flush and since the start. Nothing here forgets at intervals: that half is
//! `nan` or `null` of quantiles, and 0 of counts.
use super::histogram::{HistogramValue, QUANTILES, trim};
use super::render::BucketMode;
use serde_json::{Value as Json, json};
use std::fmt::Write as _;

/// Writing to a String cannot fail, so the results of `write!` are dropped.
pub(super) fn push_text(out: &mut String, histogram: &HistogramValue, mode: BucketMode) {
    if histogram.count() == 0 {
        return out.push_str("No recorded values");
    }
    match mode {
        BucketMode::Summary => push_quantiles(out, histogram),
        BucketMode::Cumulative | BucketMode::Disjoint => {
            let counts = bounds(histogram, mode).map(|(bound, count)| format!("B{}(0,{count})", short(bound)));
            out.push_str(&counts.collect::<Vec<_>>().join(" "));
        }
        BucketMode::Detailed => {
            let filled = histogram.filled().map(|(low, width, count)| format!(" {},{}:{count}", trim(low), trim(width)));
            let _ = write!(out, "\n  totals={}\n  intervals=\n  summary=", filled.collect::<String>().trim_start());
            push_quantiles(out, histogram);
        }
    }
}

/// `P0(nan,1) P25(nan,2) …`
fn push_quantiles(out: &mut String, histogram: &HistogramValue) {
    for (index, (label, percent)) in QUANTILES.iter().enumerate() {
        let value = histogram.quantile(*percent).unwrap_or_default();
        let space = if index == 0 { "" } else { " " };
        let _ = write!(out, "{space}{label}(nan,{})", trim(value));
    }
}

/// One histogram of the JSON form.
pub(super) fn json(name: &str, histogram: &HistogramValue, mode: BucketMode) -> Json {
    let quantiles = || -> Vec<Json> {
        QUANTILES.iter().map(|(_, percent)| json!({"cumulative": histogram.quantile(*percent), "interval": null})).collect()
    };
    match mode {
        BucketMode::Summary => json!({"name": name, "values": quantiles()}),
        BucketMode::Cumulative | BucketMode::Disjoint => {
            let buckets: Vec<Json> =
                bounds(histogram, mode).map(|(bound, count)| json!({"upper_bound": bound, "interval": 0, "cumulative": count})).collect();
            json!({"name": name, "buckets": buckets})
        }
        BucketMode::Detailed => {
            let totals: Vec<Json> =
                histogram.filled().map(|(low, width, count)| json!({"lower_bound": low, "width": width, "count": count})).collect();
            json!({"name": name, "totals": totals, "intervals": [], "percentiles": quantiles()})
        }
    }
}

/// All histograms: quantiles are named once for all of them.
pub(super) fn gathered(histograms: Vec<Json>, mode: BucketMode) -> Json {
    let supported = || -> Vec<f64> { QUANTILES.iter().map(|(_, percent)| *percent).collect() };
    match mode {
        BucketMode::Summary => json!({"supported_quantiles": supported(), "computed_quantiles": histograms}),
        BucketMode::Cumulative | BucketMode::Disjoint => Json::Array(histograms),
        BucketMode::Detailed => json!({"supported_percentiles": supported(), "details": histograms}),
    }
}

/// Envoy's bounds with their counts.
fn bounds(histogram: &HistogramValue, mode: BucketMode) -> impl Iterator<Item = (f64, u64)> {
    let mut below = 0;
    let exposed = histogram.cumulative().into_iter();
    exposed.filter_map(|(label, count)| Some((label.parse::<f64>().ok().filter(|b| b.is_finite())?, count))).map(move |(bound, count)| {
        let own = count - below;
        below = count;
        (bound, if mode == BucketMode::Disjoint { own } else { count })
    })
}

/// As C prints a number with `%g`: six digits, from a million on with an exponent.
fn short(number: f64) -> String {
    if number < 1e6 {
        return trim(number);
    }
    let exponent = number.log10().floor();
    format!("{}e+{exponent:02}", trim(number / 10f64.powf(exponent)))
}

#[cfg(test)]
mod tests {
    use super::super::histogram::ENVOY_MS;
    use super::*;

    fn some() -> HistogramValue {
        let mut histogram = HistogramValue::empty(&ENVOY_MS);
        for value in [400, 700, 800, 2_000_000_000] {
            histogram.counts[ENVOY_MS.index(value)] += 1;
        }
        histogram
    }

    #[test]
    fn buckets_are_shown_as_envoy_shows_them() {
        let text = |mode| {
            let mut out = String::new();
            push_text(&mut out, &some(), mode);
            out
        };
        let cumulative = text(BucketMode::Cumulative);
        assert!(cumulative.starts_with("B0.5(0,1) B1(0,3) B5(0,3) "), "{cumulative}");
        assert!(cumulative.ends_with(" B600000(0,3) B1.8e+06(0,3) B3.6e+06(0,4)"), "{cumulative}");
        let disjoint = text(BucketMode::Disjoint);
        assert!(disjoint.starts_with("B0.5(0,1) B1(0,2) B5(0,0) ") && disjoint.ends_with(" B3.6e+06(0,1)"), "{disjoint}");
        let detailed = text(BucketMode::Detailed);
        assert!(detailed.starts_with("\n  totals=0,0.5:1 0.5,0.5:2 1800000,1800000:1\n  intervals=\n  summary=P0(nan,"), "{detailed}");
        let mut empty = String::new();
        push_text(&mut empty, &HistogramValue::empty(&ENVOY_MS), BucketMode::Detailed);
        assert_eq!(empty, "No recorded values");
        let shown = json("h", &some(), BucketMode::Disjoint);
        assert_eq!(shown["buckets"][1], json!({"upper_bound": 1.0, "interval": 0, "cumulative": 2}));
    }
}
