//! A mesh of plain processes, and capture between two pods, for real: in namespaces, as whoever runs the tests, and for root also as an ordinary user.
mod app;
mod lab;
mod scenarios;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    lateen_runner::up::become_inside_if_told();
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("app") => app::run(&words[1..]),
        Some("__lab") => lab::inside(),
        Some("__egress") => scenarios::egress_inside(),
        Some("__up") => return scenarios::up(&words[1..]),
        Some("--list") => println!("mesh: test"),
        _ => return scenarios::all(),
    }
    ExitCode::SUCCESS
}
