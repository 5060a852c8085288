//! Commands that are shown and not run still exist, with their options; `docs/cli.md` lists them all.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use regex::Regex;

use crate::page::{Block, Page};

/// What `lateen WORDS` prints, and whether it was content.
fn lateen(words: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lateen")).args(words).output().expect("the program runs");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// The commands of a page that the program does not know.
pub(crate) fn unknown(page: &Page) -> Vec<String> {
    let mut problems = Vec::new();
    for block in &page.blocks {
        if block.language == "yaml" && matches!(block.action, crate::page::Action::None) {
            problems.push(format!("{}: YAML without file=NAME is never read by anything", page.place(block)));
        }
        if block.language != "sh" {
            continue;
        }
        for words in calls(block) {
            // Help, asked for after the other words, is given only when all of them are known.
            let end = words.iter().position(|w| w == "--").unwrap_or(words.len());
            let asked: Vec<&str> = words[..end].iter().map(String::as_str).chain(["--help"]).collect();
            if let (false, told) = lateen(&asked) {
                problems.push(format!("{}: lateen {}: {told}", page.place(block), words.join(" ")));
            }
        }
    }
    problems
}

/// The words after `lateen` of every call in a block: at the start of a line or behind a pipe, `&&` or `$(`.
fn calls(block: &Block) -> Vec<Vec<String>> {
    let joined = block.text.replace("\\\n", " ").replace("cargo run --release -- ", "lateen ");
    let split = Regex::new(r"\||&&|;|\$\(|\)|>|<| & | # ").expect("a pattern");
    let mut found = Vec::new();
    for line in joined.lines().filter(|l| !l.starts_with('#')) {
        let comment_free = line.split("  # ").next().unwrap_or(line);
        for part in split.split(comment_free) {
            let words = words(part.trim());
            let rest = words.iter().skip_while(|w| w.contains('=') && !w.starts_with('-')).cloned().collect::<Vec<_>>();
            if rest.first().is_some_and(|w| w == "lateen") {
                found.push(rest[1..].to_vec());
            }
        }
    }
    found
}

/// Splits at spaces outside quotes.
fn words(text: &str) -> Vec<String> {
    let word = Regex::new(r#"(?:'[^']*'|"[^"]*"|\S)+"#).expect("a pattern");
    word.find_iter(text).map(|m| m.as_str().replace(['\'', '"'], "")).collect()
}

/// The commands that a help text lists, with what it says about them.
fn subcommands(help: &str) -> BTreeMap<String, String> {
    let list = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let entry = list.filter_map(|l| l.trim().split_once("  ").map(|(name, about)| (name.to_owned(), about.trim().to_owned())));
    entry.filter(|(name, _)| name != "help").collect()
}

/// The long options that a help text describes.
fn options(help: &str) -> BTreeSet<String> {
    let option = Regex::new(r"(?m)^ +(?:-\w, )?--([a-z0-9-]+)").expect("a pattern");
    let described = help.split("\nExamples:").next().unwrap_or(help);
    let names = option.captures_iter(described).filter_map(|c| c.get(1)).map(|m| m.as_str().to_owned());
    names.filter(|n| n != "help" && n != "version").collect()
}

/// Every command with its own, as `app load`; help and the commands that have commands only to show included.
fn everything() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut all = BTreeMap::new();
    for (name, about) in subcommands(&lateen(&["--help"]).1) {
        let help = lateen(&[&name, "--help"]).1;
        for (inner, about) in subcommands(&help) {
            let help = lateen(&[&name, &inner, "--help"]).1;
            all.insert(format!("{name} {inner}"), (about, options(&help)));
        }
        all.insert(name, (about, options(&help)));
    }
    all
}

/// Where `docs/cli.md`'s table differs from what the program's help says.
pub(crate) fn table(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let row = Regex::new(r"(?m)^\| `lateen ([a-z ]+)` \| (.*?) \| (.*?) ?\|$").expect("a pattern");
    let option = Regex::new(r"`--([a-z0-9-]+)`").expect("a pattern");
    let mut listed = BTreeMap::new();
    for found in row.captures_iter(&text) {
        let names = option.captures_iter(&found[3]).map(|c| c[1].to_owned()).collect::<BTreeSet<_>>();
        listed.insert(found[1].to_owned(), (found[2].to_owned(), names));
    }
    let real = everything();
    assert!(real.len() > 10, "the help lists too few commands: {real:?}");
    let mut problems = Vec::new();
    for (name, (about, options)) in &real {
        if listed.get(name) != Some(&(about.clone(), options.clone())) {
            let options: Vec<String> = options.iter().map(|o| format!("`--{o}`")).collect();
            problems
                .push(format!("docs/cli.md lacks this row, or has another for it:\n| `lateen {name}` | {about} | {} |", options.join(" ")));
        }
    }
    problems
        .extend(listed.keys().filter(|n| !real.contains_key(*n)).map(|n| format!("docs/cli.md lists `lateen {n}`, which is not there")));
    problems
}

/// The README's promise: three sentences, then exactly two commands, one line each.
pub(crate) fn readme(page: &Page) -> Vec<String> {
    let Some(first) = page.blocks.first() else { return vec!["README.md shows no command".into()] };
    let commands: Vec<&str> = first.text.lines().filter_map(|l| l.split('#').next()).map(str::trim).filter(|l| !l.is_empty()).collect();
    let mut problems = Vec::new();
    if commands != ["cargo run --release -- demo", "cargo xtask test"] {
        problems.push(format!("{}: the first block is not the two set-up commands: {commands:?}", page.place(first)));
    }
    let text = std::fs::read_to_string(&page.path).unwrap_or_default();
    let opening = text.split("```").next().unwrap_or_default().lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>().join(" ");
    let sentences = opening.split_inclusive(". ").filter(|s| !s.trim().is_empty()).count();
    if sentences != 3 {
        problems.push(format!("README.md opens with {sentences} sentences, not three"));
    }
    problems
}
