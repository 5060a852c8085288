//! The Prometheus text exposition, formed as Envoy's `/stats/prometheus` forms it.
//!
//! A proxy may have a thousand clusters of a hundred metrics: rows are read from the blocks family by family, so that
//! a scrape needs little more memory than the page itself.
use super::block::Inner;
use super::family::Form;
use super::histogram::{HistogramValue, trim};
use super::metric::{Kind, MetricDef};
use super::name::Tag;
use super::registry::{Keep, Registry};
use super::sample::{Sample, TagStyle, Value, label_key};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// Blocks of one table whose names differ only in their tags: they fill the same families.
struct Group {
    form: Form,
    /// With the labels of each.
    blocks: Vec<(Arc<Inner>, String)>,
}

/// What a family's rows come from.
enum Rows {
    /// One metric of every block of a group, with the label that was part of the metric's name.
    Blocks {
        group: usize,
        def: &'static MetricDef,
        cell: u16,
        tag: Option<Tag>,
    },
    Sample(Sample),
}

impl Rows {
    fn kind(&self) -> &'static str {
        match self {
            Self::Blocks { def, .. } => match def.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            },
            Self::Sample(sample) => match sample.value {
                Value::Counter(_) => "counter",
                Value::Gauge { .. } => "gauge",
                Value::Histogram(_) => "histogram",
                Value::Text(_) => "untyped",
            },
        }
    }
}

/// What to show.
pub(super) struct Choice<'a> {
    /// By Envoy's name.
    pub(super) keep: Keep<'a>,
    pub(super) wants: &'a dyn Fn(&Value) -> bool,
}

/// The whole page. Texts have no form here and are left out.
pub(super) fn page(registry: &Registry, choice: &Choice<'_>) -> String {
    let style = registry.tag_style();
    let groups = groups(registry.living(), style);
    let mut families: BTreeMap<String, Vec<Rows>> = BTreeMap::new();
    for (index, group) in groups.iter().enumerate() {
        let Some((first, _)) = group.blocks.first() else { continue };
        for (def, cell) in first.metrics() {
            let (family, tag) = group.form.family(def.name, style);
            families.entry(family).or_default().push(Rows::Blocks { group: index, def, cell, tag });
        }
    }
    registry.collect(&mut |sample| {
        if !matches!(sample.value, Value::Text(_)) && (choice.keep)(&sample.name) {
            families.entry(sample.family.clone()).or_default().push(Rows::Sample(sample));
        }
    });
    let mut out = String::new();
    for (family, mut rows) in families {
        rows.sort_by_key(Rows::kind);
        write_family(&mut out, &family, &rows, &groups, choice, style);
    }
    out
}

fn groups(blocks: Vec<Arc<Inner>>, style: TagStyle) -> Vec<Group> {
    let mut groups: BTreeMap<(String, bool, usize), Group> = BTreeMap::new();
    for block in blocks.into_iter().filter(|block| !block.defs.is_empty()) {
        let form = Form::new(&block.name, style);
        let labels = label_list(form.tags.iter().map(|tag| (label_key(tag, style), tag.value.as_str())));
        let key = (form.flat.clone(), form.of_rules, block.defs.as_ptr() as usize);
        let group = groups.entry(key).or_insert_with(|| Group { form, blocks: Vec::new() });
        group.blocks.push((block, labels));
    }
    groups.into_values().collect()
}

/// One family. Its type stands once above it: should two sources disagree about it, only the first is shown,
/// since a second would make the whole page invalid. So would a second line of the same labels, which names have that
/// only sanitising made equal: they are one figure here.
fn write_family(out: &mut String, family: &str, rows: &[Rows], groups: &[Group], choice: &Choice<'_>, style: TagStyle) {
    let Some(kind) = rows.first().map(Rows::kind) else { return };
    let mut lines = Vec::new();
    for rows in rows.iter().filter(|rows| rows.kind() == kind) {
        match rows {
            Rows::Sample(sample) if !(choice.wants)(&sample.value) => {}
            Rows::Sample(sample) => {
                let labels = label_list(sample.labels.iter().map(|(key, value)| (key.clone(), value.as_str())));
                lines.push((labels, sample.value.clone()));
            }
            Rows::Blocks { group, def, cell, tag } => {
                let blocks = groups.get(*group).map_or(&[][..], |group| &group.blocks);
                let own = label_list(tag.iter().map(|tag| (label_key(tag, style), tag.value.as_str())));
                lines.extend(blocks.iter().filter_map(|block| line(block, (def, *cell, &own), choice)));
            }
        }
    }
    if lines.is_empty() {
        return;
    }
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    lines.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1.add(&next.1);
        }
        same
    });
    let _ = writeln!(out, "# TYPE {family} {kind}");
    for (labels, value) in &lines {
        write_value(out, family, labels, value);
    }
}

/// What one block has to a family: labels and value, if it is to be shown.
fn line((block, labels): &(Arc<Inner>, String), (def, cell, own): (&MetricDef, u16, &str), choice: &Choice<'_>) -> Option<(String, Value)> {
    let value = block.value(def, cell);
    if !(choice.wants)(&value) || (def.hide_zero && value.is_unused()) {
        return None;
    }
    if !(choice.keep)(&format!("{}{}", block.name.dotted, def.name)) {
        return None;
    }
    let comma = if own.is_empty() || labels.is_empty() { "" } else { "," };
    Some((format!("{own}{comma}{labels}"), value))
}

fn write_value(out: &mut String, family: &str, labels: &str, value: &Value) {
    // Writing to a String cannot fail.
    match value {
        Value::Counter(value) | Value::Gauge { value, .. } => {
            let _ = writeln!(out, "{family}{{{labels}}} {value}");
        }
        Value::Histogram(histogram) => write_histogram(out, family, labels, histogram),
        Value::Text(_) => {}
    }
}

fn write_histogram(out: &mut String, family: &str, labels: &str, histogram: &HistogramValue) {
    let comma = if labels.is_empty() { "" } else { "," };
    for (le, count) in histogram.cumulative() {
        let _ = writeln!(out, "{family}_bucket{{{labels}{comma}le=\"{le}\"}} {count}");
    }
    let _ = writeln!(out, "{family}_sum{{{labels}}} {}", trim(histogram.scaled_sum()));
    let _ = writeln!(out, "{family}_count{{{labels}}} {}", histogram.count());
}

fn label_list<'a>(labels: impl Iterator<Item = (Cow<'static, str>, &'a str)>) -> String {
    let mut out = String::new();
    for (index, (key, value)) in labels.enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&key);
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
