//! A block of lines that is redrawn in place on a terminal, and not drawn at all elsewhere.
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static DRAWN: AtomicBool = AtomicBool::new(false);

/// The lines drawn last time, so that the next ones take their place.
pub(super) struct Block {
    lines: usize,
    live: bool,
}

impl Block {
    pub(super) fn new() -> Self {
        Self { lines: 0, live: std::io::stdout().is_terminal() }
    }

    /// Whether anybody sees what is drawn.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    pub(super) fn draw(&mut self, lines: &[String]) {
        if !self.live {
            return;
        }
        let mut out = std::io::stdout().lock();
        let mut text = String::new();
        if self.lines > 0 {
            text.push_str(&format!("\x1b[{}A", self.lines));
        }
        for line in lines {
            text.push_str("\x1b[2K");
            text.push_str(line);
            text.push('\n');
        }
        // Fewer lines than before: the rest of the old block goes.
        text.push_str("\x1b[J");
        self.lines = lines.len();
        DRAWN.store(true, Relaxed);
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// Leaves the shell's prompt on a line of its own.
pub(super) fn leave() {
    if DRAWN.load(Relaxed) {
        println!();
    }
}
