//! What the watcher sees: short lines, colour on a terminal only.

use std::io::{IsTerminal as _, Write as _};

/// Writes the story and counts what held.
pub(crate) struct Show {
    colour: bool,
    chapter: u32,
    passed: u32,
    failed: u32,
}

impl Show {
    pub(crate) fn new() -> Self {
        Self {
            colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            chapter: 0,
            passed: 0,
            failed: 0,
        }
    }

    /// A numbered heading.
    pub(crate) fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        let heading = self.paint("1", &format!("{}. {title}", self.chapter));
        self.line(&format!("\n{heading}"));
    }

    /// A line of the story.
    pub(crate) fn say(&self, text: &str) {
        self.line(&format!("   {text}"));
    }

    /// A line that the proxy logged, as it stands there.
    pub(crate) fn log(&self, text: &str) {
        let text = self.paint("36", &format!("| {text}"));
        self.line(&format!("   {text}"));
    }

    /// Shows and counts one thing that had to hold; `problem` tells why not.
    pub(crate) fn check(&mut self, claim: &str, problem: Option<&str>) {
        match problem {
            None => {
                self.passed += 1;
                let mark = self.paint("32", "ok");
                self.line(&format!("   {mark}  {claim}"));
            }
            Some(problem) => {
                self.failed += 1;
                let mark = self.paint("31", "NOT SO");
                self.line(&format!("   {mark}  {claim}\n           {problem}"));
            }
        }
    }

    /// How many of the claims held, and how many did not.
    pub(crate) fn score(&self) -> (u32, u32) {
        (self.passed, self.failed)
    }

    /// Writes one line as it is.
    pub(crate) fn line(&self, text: &str) {
        // Who stopped reading (`| head`) need not see the rest; the demo goes on
        // to its orderly end.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
