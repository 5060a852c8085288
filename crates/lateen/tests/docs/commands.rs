//! Commands that are shown and not run still exist, with their options; `docs/cli.md` lists them all.
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use regex::Regex;

use crate::page::{Action, Block, Page};

/// What `lateen WORDS` prints, and whether it was content.
fn lateen(words: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lateen")).args(words).output().expect("the program runs");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// The commands of a page that the program does not know.
pub(crate) fn unknown(page: &Page) -> Vec<String> {
    let mut problems = Vec::new();
    for block in &page.blocks {
        match &block.action {
            Action::None if block.language == "yaml" => {
                problems.push(format!("{}: YAML without file=NAME is never read by anything", page.place(block)));
            }
            // JSON has no comments; its name stands in the text.
            Action::File(name) if block.language != "json" && !block.text.starts_with(&format!("# {name}\n")) => {
                problems.push(format!("{}: readers do not see the file's name: begin with `# {name}`", page.place(block)));
            }
            _ => {}
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
fn subcommands(help: &str) -> Vec<(String, String)> {
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

/// A row of the table for every command, each followed by its own commands.
fn rows() -> Vec<String> {
    let row = |words: &[&str], about: &str, help: &str| {
        let options: Vec<String> = options(help).iter().map(|o| format!("`--{o}`")).collect();
        format!("| `lateen {}` | {about} | {} |", words.join(" "), options.join(" ")).replace("|  |", "| |")
    };
    let mut rows = Vec::new();
    for (name, about) in subcommands(&lateen(&["--help"]).1) {
        let help = lateen(&[&name, "--help"]).1;
        rows.push(row(&[&name], &about, &help));
        for (inner, about) in subcommands(&help) {
            rows.push(row(&[&name, &inner], &about, &lateen(&[&name, &inner, "--help"]).1));
        }
    }
    rows
}

/// Where `docs/cli.md`'s table differs from what the program's help says; with `UPDATE_DOCS` in the environment it is written anew.
pub(crate) fn table(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let wanted = rows();
    assert!(wanted.len() > 10, "the help lists too few commands: {wanted:?}");
    let is_row = |line: &&str| line.starts_with("| `lateen ");
    let listed: Vec<&str> = text.lines().filter(is_row).collect();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let (before, after) = text.split_once("| --- | --- | --- |\n").expect("the head of the table");
        let after = after.lines().skip_while(is_row).map(|l| format!("{l}\n")).collect::<String>();
        let written = format!("{before}| --- | --- | --- |\n{}\n{after}", wanted.join("\n"));
        std::fs::write(path, written).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        return Vec::new();
    }
    let missing = wanted.iter().filter(|row| !listed.contains(&row.as_str())).map(|row| format!("docs/cli.md lacks this row:\n{row}"));
    let stale = listed
        .iter()
        .filter(|row| !wanted.iter().any(|w| w == *row))
        .map(|row| format!("docs/cli.md has this row, which is no longer true:\n{row}"));
    let mut problems: Vec<String> = missing.chain(stale).collect();
    if !problems.is_empty() {
        problems.push("`UPDATE_DOCS=1 cargo test -p lateen --test docs cli` writes the table anew".into());
    }
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
