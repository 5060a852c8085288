//! Links within the repository lead somewhere: the file is there, and so is the heading.
use std::collections::BTreeSet;
use std::path::Path;

use regex::Regex;

/// What of a page's links leads nowhere. Links to other hosts are not followed.
pub(crate) fn broken(path: &Path) -> Vec<String> {
    let text = read(path);
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("a pattern");
    let mut problems = Vec::new();
    for (number, line) in prose(&text) {
        for target in link.captures_iter(line).filter_map(|c| c.get(1)).map(|m| m.as_str()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').map_or((target, None), |(f, h)| (f, Some(h)));
            let file = if file.is_empty() { path.to_path_buf() } else { path.parent().unwrap_or(Path::new(".")).join(file) };
            if !file.exists() {
                problems.push(format!("{}:{number}: {target} is not there", path.display()));
            } else if heading.is_some_and(|h| !headings(&file).contains(h)) {
                problems.push(format!("{}:{number}: {target}: no such heading", path.display()));
            }
        }
    }
    problems
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The lines outside fenced blocks, numbered from one.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let fence = line.starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    lines.map(|(at, line)| (at + 1, line)).collect()
}

/// Headings as links name them: lower case, spaces as dashes, without punctuation.
fn headings(path: &Path) -> BTreeSet<String> {
    let text = read(path);
    let lines = prose(&text).into_iter().filter(|(_, line)| line.starts_with('#'));
    let slug = |line: &str| -> String {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    lines.map(|(_, line)| slug(line)).collect()
}
