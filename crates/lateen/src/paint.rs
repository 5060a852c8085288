//! Colour on a terminal, plain text everywhere else (and where `NO_COLOR` is set).
use std::io::IsTerminal;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Warning,
    Bad,
    Quiet,
    Strong,
}

/// Paints, or does not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint(bool);

impl Paint {
    pub(crate) fn stdout() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    pub(crate) fn stderr() -> Self {
        Self(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    pub(crate) fn paint(self, text: &str, tone: Tone) -> String {
        if !self.0 {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Quiet => "2",
            Tone::Strong => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Paints the severity in `file:line:column: error: …`, the first word that ends with `: `.
    pub(crate) fn first_word_after_position(self, line: &str, tone: Tone) -> String {
        for word in ["error", "warning", "info"] {
            if let Some((before, after)) = line.split_once(&format!(" {word}: ")) {
                return format!("{before} {}: {after}", self.paint(word, tone));
            }
        }
        line.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_severity_is_painted() {
        let line = "a.yaml:1:2: error: spec.x: unknown";
        assert_eq!(Paint(true).first_word_after_position(line, Tone::Bad), "a.yaml:1:2: \u{1b}[31merror\u{1b}[0m: spec.x: unknown");
        assert_eq!(Paint(false).first_word_after_position(line, Tone::Bad), line);
    }
}
