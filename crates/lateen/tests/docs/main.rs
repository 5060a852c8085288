//! The documentation is true: its commands run as printed, on a live mesh, and show what the page says they show.
//!
//! How a block says what it is (the words after the language; readers do not see them):
//! - `yaml file=NAME`: written to the page's folder under that name. Every YAML block has one, and begins with `# NAME`.
//! - `sh test`: run by bash in the page's folder. Repeated for up to 20 s until it ends with code 0 (`exit=N`: with N;
//!   `exit=any`: anyhow) and prints what the `text` block right below says; so it must bear being repeated.
//! - `sh test background`: started and left running until the page ends; the `text` block below is waited for.
//! - `needs=envoy`, `needs=grpc`: only where `cargo xtask test` installed that peer.
//! - `sh` alone: not run, but its `lateen` commands and flags must exist.
//! - In a `text` block `…` stands for anything within a line, and alone on a line for any number of lines.
//!   Any number of spaces equals one.
//!
//! `127.0.0.1:8080` stands for the page's own ingress port. Each page has a mesh of its own, named by `LATEEN_MESH`.
mod commands;
mod expect;
mod links;
mod page;
mod shell;
mod stale;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::page::Page;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Two processors are few for one mesh.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials()).exit_code()
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/lateen is two below the root").to_path_buf()
}

/// The pages that people read, the root's first.
fn pages() -> Vec<PathBuf> {
    let markdown = |folder: PathBuf| {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
        files.sort();
        files
    };
    [markdown(root()), markdown(root().join("docs"))].concat()
}

fn trials() -> Vec<Trial> {
    let mut trials = vec![
        Trial::test("cli::every_command_and_option_is_listed", || all_hold(&commands::table(&root().join("docs/cli.md")))),
        Trial::test("harness::stale_pages_are_noticed", || {
            stale::all_kinds_are_noticed();
            Ok(())
        }),
        Trial::test("readme::opens_with_two_commands", || all_hold(&commands::readme(&Page::read(&root().join("README.md"))))),
    ];
    for path in pages() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let page = Page::read(&path);
        let checked = path.clone();
        trials.push(Trial::test(format!("links::{name}"), move || all_hold(&links::broken(&checked))));
        if page.blocks.is_empty() {
            continue;
        }
        let written = Page::read(&path);
        trials.push(Trial::test(format!("written::{name}"), move || all_hold(&commands::unknown(&written))));
        if page.blocks.iter().any(page::Block::is_run) {
            trials.push(Trial::test(format!("runs::{name}"), move || shell::run(&page, shell::SETTLES_WITHIN).map_err(Failed::from)));
        }
    }
    trials
}

fn all_hold(problems: &[String]) -> Result<(), Failed> {
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
}
