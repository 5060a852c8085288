//! Tables as kubectl prints them, and YAML as it prints that.
use std::fmt::Write;
use std::time::Duration;

use serde_json::Value as Json;

/// Columns padded to the widest cell plus three blanks; the last one is not padded.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let columns = header.len();
    let mut widths: Vec<usize> = header.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        for (i, (cell, width)) in cells.zip(&widths).enumerate() {
            if i + 1 == columns {
                text.push_str(cell);
            } else {
                let _ = write!(text, "{cell:<pad$}", pad = width + 3);
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// An age as kubectl writes it: `42s`, `3m10s`, `25m`, `7h5m`, `2d`.
pub fn age(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..120 => format!("{s}s"),
        120..600 if !s.is_multiple_of(60) => format!("{}m{}s", s / 60, s % 60),
        120..10800 => format!("{}m", s / 60),
        10800..28800 if !(s / 60).is_multiple_of(60) => format!("{}h{}m", s / 3600, s / 60 % 60),
        10800..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86400),
    }
}

/// JSON as block YAML.
pub fn yaml(value: &Json) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Json, indent: usize, out: &mut String) {
    match value {
        Json::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let _ = write!(out, "{:indent$}{}:", "", scalar_text(key));
                after_key(value, indent, out);
            }
        }
        Json::Array(list) if !list.is_empty() => {
            for item in list {
                let _ = write!(out, "{:indent$}-", "");
                item_block(item, indent, out);
            }
        }
        other => {
            let _ = writeln!(out, "{:indent$}{}", "", scalar(other));
        }
    }
}

fn after_key(value: &Json, indent: usize, out: &mut String) {
    match value {
        Json::Object(map) if !map.is_empty() => {
            out.push('\n');
            block(value, indent + 2, out);
        }
        Json::Array(list) if !list.is_empty() => {
            out.push('\n');
            block(value, indent, out);
        }
        Json::String(text) if literal(text) => {
            out.push_str(if text.ends_with('\n') { " |\n" } else { " |-\n" });
            for line in text.trim_end_matches('\n').split('\n') {
                let pad = if line.is_empty() { 0 } else { indent + 2 };
                let _ = writeln!(out, "{:pad$}{line}", "");
            }
        }
        other => {
            let _ = writeln!(out, " {}", scalar(other));
        }
    }
}

fn item_block(item: &Json, indent: usize, out: &mut String) {
    let nested = matches!(item, Json::Object(m) if !m.is_empty()) || matches!(item, Json::Array(l) if !l.is_empty());
    if nested {
        let mut inner = String::new();
        block(item, indent + 2, &mut inner);
        // The first line goes behind the dash.
        out.push(' ');
        out.push_str(&inner[indent + 2..]);
    } else {
        let _ = writeln!(out, " {}", scalar(item));
    }
}

/// Whether a text reads well, and reads back the same, as a literal block.
fn literal(text: &str) -> bool {
    let body = text.trim_end_matches('\n');
    body.contains('\n')
        && text.len() - body.len() <= 1
        && !body.starts_with([' ', '\n'])
        && !body.contains(|c: char| c.is_control() && c != '\n')
}

fn scalar(value: &Json) -> String {
    match value {
        Json::String(text) => scalar_text(text),
        Json::Array(_) => "[]".into(),
        Json::Object(_) => "{}".into(),
        other => other.to_string(),
    }
}

/// Plain where YAML reads it as the same text, in JSON's quotes otherwise.
fn scalar_text(text: &str) -> String {
    let plain_start =
        text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_' | '.') || !c.is_ascii() && !c.is_control());
    let plain_rest =
        !text.contains(|c: char| c.is_control()) && !text.contains(": ") && !text.contains(" #") && !text.ends_with([' ', ':']);
    let word =
        matches!(text.to_ascii_lowercase().as_str(), "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n" | ".inf" | ".nan");
    let number = text.parse::<f64>().is_ok();
    if plain_start && plain_rest && !word && !number { text.to_owned() } else { Json::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_ages_read_as_in_kubectl() {
        let rows = vec![vec!["reviews-v1".into(), "1/1".into(), "3s".into()], vec!["a".into(), "0/1".into(), String::new()]];
        assert_eq!(render(&["NAME", "READY", "AGE"], &rows), "NAME         READY   AGE\nreviews-v1   1/1     3s\na            0/1\n");
        let ages: Vec<_> = [5, 119, 150, 180, 1500, 11_100, 90_000, 400_000].map(|s| age(Duration::from_secs(s))).into();
        assert_eq!(ages, ["5s", "119s", "2m30s", "3m", "25m", "3h5m", "25h", "4d"]);
    }

    #[test]
    fn yaml_reads_back_as_the_same_value() {
        let value = serde_json::json!({
            "a": {"b": [1, "x", {"c": "true", "d": []}, [["deep"]]], "e": {}},
            "text": "one\ntwo: 2\n", "quoted": "- no", "number": "1.5", "colon": "a: b", "url": "http://x", "empty": "", "star": "*",
            "null": null,
        });
        let text = yaml(&value);
        let documents = lateen_model::yaml::read(text.as_bytes(), &lateen_model::yaml::Limits::default()).unwrap();
        assert_eq!(documents[0].as_ref().unwrap().root.to_json(), value, "{text}");
    }
}
