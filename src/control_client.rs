//! A command's own side: asks the running proxy and prints its answer.
//!
//! Exit codes: 0 done, 1 not done, 2 could not ask (design: README, "Commands").

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::config::Config;
use crate::control::protocol::{Command, Done, Reply};
use crate::logging::is_active;

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Tables and sentences, with progress on a terminal.
    Text,
    /// One JSON document.
    Json,
}

/// Asks the proxy whose configuration `config` is; prints its answer and returns the
/// exit code.
///
/// # Errors
/// It could not be asked, in one line.
pub fn ask(config: &Path, command: &Command, format: Format) -> Result<u8, String> {
    let path = Config::load(config)
        .map_err(|error| error.to_string())?
        .control_socket
        .ok_or_else(|| {
            format!(
                "{}: control_socket: expected a path, found nothing: commands need it",
                config.display()
            )
        })?;
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut stream = UnixStream::connect(&path).map_err(failed)?;
    let mut request = serde_json::to_vec(command).map_err(|error| error.to_string())?;
    request.push(b'\n');
    stream.write_all(&request).map_err(failed)?;
    let mut progress = Progress {
        shown: format == Format::Text && std::io::stderr().is_terminal(),
        width: 0,
    };
    for line in BufReader::new(&stream).lines() {
        let line = line.map_err(failed)?;
        match serde_json::from_str(&line).map_err(|error| format!("bad answer: {error}"))? {
            Reply::Progress(text) => progress.show(&text),
            Reply::Done(Done { code, text, json }) => {
                progress.clear();
                let shown = match format {
                    Format::Text => text,
                    Format::Json => format!("{}\n", printable_json(&json)),
                };
                // A reader that has gone, as `head` does, has what it wanted.
                let _ = std::io::stdout().write_all(shown.as_bytes());
                return Ok(code);
            }
        }
    }
    Err(format!("{}: closed without an answer", path.display()))
}

/// JSON whose strings hold nothing that a terminal would act on, and mean the same
/// (RFC 8259, section 7).
fn printable_json(json: &serde_json::Value) -> String {
    let mut shown = String::new();
    for c in json.to_string().chars() {
        match is_active(c) {
            // All of these are in the basic plane.
            true => shown.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => shown.push(c),
        }
    }
    shown
}

/// One line on a terminal that the next one replaces.
struct Progress {
    shown: bool,
    width: usize,
}

impl Progress {
    fn show(&mut self, text: &str) {
        if self.shown {
            let width = self.width;
            eprint!("\r{text:width$}");
            self.width = text.chars().count();
        }
    }

    fn clear(&mut self) {
        if self.shown && self.width > 0 {
            eprint!("\r{:1$}\r", "", self.width);
        }
    }
}
