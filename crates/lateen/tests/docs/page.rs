//! A page's fenced blocks, and what the words beside their language ask for.
use std::path::{Path, PathBuf};

/// What follows a tested block decides when it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Any,
}

#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Written to the page's folder.
    File(String),
    /// Run, with what it must print.
    Run { exit: Exit, background: bool, needs: Option<String>, expected: Option<String> },
    /// Shown only.
    None,
}

#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) text: String,
    /// Of the opening fence, from one.
    pub(crate) line: usize,
    pub(crate) action: Action,
}

impl Block {
    pub(crate) fn is_run(&self) -> bool {
        matches!(self.action, Action::Run { .. })
    }
}

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) path: PathBuf,
    pub(crate) blocks: Vec<Block>,
}

impl Page {
    pub(crate) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { path: path.to_path_buf(), blocks: blocks(path, &text) }
    }

    /// `docs/page.md:7`, as editors jump to it.
    pub(crate) fn place(&self, block: &Block) -> String {
        let path = self.path.strip_prefix(crate::root()).unwrap_or(&self.path).display();
        format!("{path}:{}", block.line)
    }
}

fn blocks(path: &Path, text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut lines = text.lines().enumerate();
    // Whether nothing but empty lines came since the last block ended.
    let mut adjacent = false;
    while let Some((at, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            adjacent &= line.trim().is_empty();
            continue;
        };
        let body: Vec<&str> = lines.by_ref().map(|(_, l)| l).take_while(|l| !l.starts_with("```")).collect();
        let text = body.join("\n") + "\n";
        let place = format!("{}:{}", path.display(), at + 1);
        let mut words = info.split_whitespace();
        let language = words.next().unwrap_or_default().to_owned();
        if let (true, "text", Some(Block { action: Action::Run { expected, .. }, .. })) = (adjacent, language.as_str(), found.last_mut()) {
            *expected = Some(text);
            adjacent = false;
            continue;
        }
        let action = action(&place, &language, words);
        found.push(Block { language, text, line: at + 1, action });
        adjacent = true;
    }
    found
}

fn action<'a>(place: &str, language: &str, words: impl Iterator<Item = &'a str>) -> Action {
    let (mut tested, mut file, mut exit, mut background, mut needs) = (false, None, Exit::Code(0), false, None);
    for word in words {
        match (word, word.split_once('=')) {
            ("test", _) => tested = true,
            ("background", _) => background = true,
            (_, Some(("file", name))) => file = Some(name.to_owned()),
            (_, Some(("needs", peer))) => needs = Some(peer.to_owned()),
            (_, Some(("exit", "any"))) => exit = Exit::Any,
            (_, Some(("exit", code))) => exit = Exit::Code(code.parse().unwrap_or_else(|_| panic!("{place}: exit={code} is no number"))),
            _ => panic!("{place}: nobody knows what `{word}` asks for; see the head of tests/docs/main.rs"),
        }
    }
    match (language, tested, file) {
        (_, false, Some(file)) => Action::File(file),
        ("sh", true, None) => Action::Run { exit, background, needs, expected: None },
        (_, false, None) => Action::None,
        _ => panic!("{place}: only `sh` blocks are run, and a file is not run"),
    }
}
