//! Whether a command printed what its page says, wildcards and spaces considered.
use regex::Regex;

/// As the reader sees it: no spaces at the ends of lines, one where there are many, no empty lines at the ends.
fn normal(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.join("\n").trim_matches('\n').to_owned() + "\n"
}

/// `…` alone on a line is any lines; within one it is anything there.
pub(crate) fn matches(expected: &str, printed: &str) -> bool {
    let mut pattern = String::from(r"\A");
    for line in normal(expected).lines() {
        if line == "…" {
            pattern.push_str(r"(?:[^\n]*\n)*");
        } else {
            let parts: Vec<String> = line.split('…').map(regex::escape).collect();
            pattern.push_str(&parts.join(r"[^\n]*"));
            pattern.push_str(r"\n");
        }
    }
    pattern.push_str(r"\z");
    Regex::new(&pattern).expect("escaped text is a pattern").is_match(&normal(printed))
}
