//! Waiting for a mesh to be ready: what is not ready yet and why, in place on a terminal, as plain lines elsewhere.
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use lateen_runner::api::Request;
use lateen_runner::client::Client;

use crate::paint::{Paint, Tone};

/// Off a terminal nothing is told of a mesh that is ready sooner than this, and the same is not repeated.
const PATIENCE: Duration = Duration::from_secs(3);
/// Lines of a terminal that the list may take.
const SHOWN: usize = 12;

/// Waits at most `timeout_seconds` and shows what for; the exit code, 0 when everything is ready. The reasons of a
/// failure are printed.
pub(crate) fn until_ready(mesh: &str, timeout_seconds: u64, quiet: bool) -> anyhow::Result<i32> {
    let mut view = View { terminal: std::io::stderr().is_terminal(), drawn: 0, told: Vec::new(), since: Instant::now() };
    let client = Client::connect(mesh)?;
    let code = client.watch(&Request::Wait { timeout_seconds }, &mut |lines| {
        if !quiet {
            let text = view.next(lines, view.since.elapsed());
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    })?;
    Ok(code)
}

struct View {
    terminal: bool,
    /// Lines that stand on the terminal and are to be replaced.
    drawn: usize,
    told: Vec<String>,
    since: Instant,
}

impl View {
    /// What to print now that `lines` are what is waited for.
    fn next(&mut self, lines: &[String], elapsed: Duration) -> String {
        if self.terminal { self.block(lines) } else { self.plain(lines, elapsed) }
    }

    fn block(&mut self, lines: &[String]) -> String {
        let paint = Paint::stderr();
        let mut text = String::new();
        if self.drawn > 0 {
            // Up to the block's first line, and away with it.
            text.push_str(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        // Without wrapping, so that each line takes one of the terminal's and can be found again.
        text.push_str("\x1b[?7l");
        for line in lines.iter().take(SHOWN) {
            text.push_str(&paint.paint(&format!("… {line}"), Tone::Quiet));
            text.push('\n');
        }
        if let Some(more) = lines.len().checked_sub(SHOWN).filter(|n| *n > 0) {
            text.push_str(&format!("… and {more} more\n"));
        }
        text.push_str("\x1b[?7h");
        self.drawn = lines.len().min(SHOWN) + usize::from(lines.len() > SHOWN);
        text
    }

    fn plain(&mut self, lines: &[String], elapsed: Duration) -> String {
        if elapsed < PATIENCE {
            return String::new();
        }
        let new: Vec<&String> = lines.iter().filter(|line| !self.told.contains(line)).collect();
        let text = new.iter().map(|line| format!("waiting: {line}\n")).collect();
        self.told = lines.to_vec();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(terminal: bool) -> View {
        View { terminal, drawn: 0, told: Vec::new(), since: Instant::now() }
    }

    fn lines(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn a_terminal_shows_what_holds_now_and_nothing_at_the_end() {
        let mut view = view(true);
        assert!(!view.next(&lines(&["a", "b"]), Duration::ZERO).contains("\x1b[2A"));
        let second = view.next(&lines(&["b"]), Duration::ZERO);
        assert!(second.starts_with("\x1b[2A\x1b[J") && second.contains("… b"), "{second:?}");
        assert!(view.next(&[], Duration::ZERO).starts_with("\x1b[1A\x1b[J"));
        assert!(!view.next(&[], Duration::ZERO).contains('A'));
        let many: Vec<String> = (0..30).map(|n| n.to_string()).collect();
        assert_eq!(view.next(&many, Duration::ZERO).matches('\n').count(), SHOWN + 1);
    }

    #[test]
    fn elsewhere_a_line_is_said_once_and_only_when_it_takes_long() {
        let mut view = view(false);
        assert_eq!(view.next(&lines(&["a", "b"]), Duration::from_secs(1)), "");
        assert_eq!(view.next(&lines(&["a", "b"]), PATIENCE), "waiting: a\nwaiting: b\n");
        assert_eq!(view.next(&lines(&["b", "c"]), PATIENCE), "waiting: c\n");
        assert_eq!(view.next(&[], PATIENCE), "");
    }
}
