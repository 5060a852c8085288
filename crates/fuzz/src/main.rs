//! `cargo xtask fuzz TARGET [--seconds N] [--seed N]`: looks for an input that panics, and keeps it in the corpus.
use std::process::ExitCode;
use std::time::Duration;

use lateen_fuzz::{TARGETS, Target, search};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: u64| {
        let at = arguments.iter().position(|a| a == name)?;
        Some(arguments.get(at + 1).and_then(|n| n.parse().ok()).unwrap_or(default))
    };
    let Some(target) = arguments.first().and_then(|name| Target::named(name)) else {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        eprintln!("usage: cargo xtask fuzz TARGET [--seconds N] [--seed N]; targets: {}", names.join(", "));
        return ExitCode::from(2);
    };
    let time = Duration::from_secs(number("--seconds", 60).unwrap_or(60));
    let found = search::run(target, number("--seed", 1).unwrap_or(1), time);
    println!("{}: {} inputs, the slowest took {:?} ({} bytes)", target.name, found.runs, found.slowest.0, found.slowest.1.len());
    let Some(input) = found.failure else { return ExitCode::SUCCESS };
    let file =
        target.folder().join(format!("panic-{:08x}", input.iter().fold(0u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(*b)))));
    let kept = std::fs::create_dir_all(target.folder()).and_then(|()| std::fs::write(&file, &input));
    eprintln!("an input panics: {} ({})", input.escape_ascii(), kept.map_or_else(|e| e.to_string(), |()| file.display().to_string()));
    ExitCode::FAILURE
}
