//! The proxy's log as the contract words it: an event, then `key=value`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

/// One line of the log, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// `INFO`, `ERROR`, ...; empty for a line that is not from the logger.
    pub(crate) level: String,
    /// The words before the first `key=value`.
    pub(crate) event: String,
    pub(crate) fields: BTreeMap<String, String>,
    pub(crate) raw: String,
}

impl Line {
    pub(crate) fn parse(raw: &str) -> Self {
        let mut parts = raw.splitn(3, ' ');
        let (_time, level) = (parts.next(), parts.next().unwrap_or_default());
        let from_logger = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level);
        let (level, mut rest) = match from_logger {
            true => (level, parts.next().unwrap_or_default()),
            false => ("", raw),
        };
        let mut event = Vec::new();
        let mut fields = BTreeMap::new();
        loop {
            rest = rest.trim_start();
            if rest.is_empty() {
                break;
            }
            let word_end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            match key_length(&rest[..word_end]) {
                Some(length) => {
                    let (value, after) = value(&rest[length + 1..]);
                    fields.insert(rest[..length].to_owned(), value);
                    rest = after;
                }
                None => {
                    if fields.is_empty() {
                        event.push(&rest[..word_end]);
                    }
                    rest = &rest[word_end..];
                }
            }
        }
        Self {
            level: level.to_owned(),
            event: event.join(" "),
            fields,
            raw: raw.to_owned(),
        }
    }

    pub(crate) fn is(&self, event: &str) -> bool {
        self.event == event
    }

    /// The value of `key`.
    ///
    /// # Panics
    /// If the line lacks it.
    pub(crate) fn get(&self, key: &str) -> &str {
        match self.fields.get(key) {
            Some(value) => value,
            None => panic!("no {key}= in: {}", self.raw),
        }
    }

    pub(crate) fn number(&self, key: &str) -> u64 {
        let value = self.get(key);
        match value.parse() {
            Ok(number) => number,
            Err(error) => panic!("{key}={value} is no number ({error}) in: {}", self.raw),
        }
    }

    /// Any further figure, such as `blocked_ms=2.1`.
    pub(crate) fn decimal(&self, key: &str) -> f64 {
        self.get(key).parse().expect("a decimal number")
    }
}

/// The length of the key if `word` starts with `key=`.
fn key_length(word: &str) -> Option<usize> {
    let length = word.find('=')?;
    let key = &word[..length];
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_key.then_some(length)
}

/// Takes one value, quoted or bare, off the front of `text`.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    panic!("unfinished quote in: {text}");
}

/// A process's output, read on a thread of its own and kept.
#[derive(Clone, Default)]
pub(crate) struct Log {
    shared: Arc<(Mutex<Content>, Condvar)>,
}

#[derive(Default)]
struct Content {
    lines: Vec<Line>,
    ended: bool,
}

impl Log {
    /// Reads `output` to its end.
    pub(crate) fn read(output: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        let shared = Arc::clone(&log.shared);
        std::thread::spawn(move || {
            let (content, changed) = &*shared;
            let mut output = BufReader::new(output);
            let mut raw = Vec::new();
            while matches!(output.read_until(b'\n', &mut raw), Ok(1..)) {
                let line = Line::parse(String::from_utf8_lossy(&raw).trim_end());
                content.lock().unwrap().lines.push(line);
                changed.notify_all();
                raw.clear();
            }
            content.lock().unwrap().ended = true;
            changed.notify_all();
        });
        log
    }

    /// How many lines there are: a place from which to look on.
    pub(crate) fn position(&self) -> usize {
        self.shared.0.lock().unwrap().lines.len()
    }

    /// All lines from `position` on.
    pub(crate) fn since(&self, position: usize) -> Vec<Line> {
        self.shared.0.lock().unwrap().lines[position..].to_vec()
    }

    /// Waits for a line at or after `position`; `None` at the deadline, or when
    /// the output has ended without one.
    pub(crate) fn wait(
        &self,
        position: usize,
        deadline: Instant,
        wanted: impl Fn(&Line) -> bool,
    ) -> Option<Line> {
        let (content, changed) = &*self.shared;
        let mut content = content.lock().unwrap();
        let mut seen = position;
        loop {
            if let Some(line) = content.lines[seen..].iter().find(|line| wanted(line)) {
                return Some(line.clone());
            }
            seen = content.lines.len();
            let left = deadline.checked_duration_since(Instant::now())?;
            if content.ended {
                return None;
            }
            content = changed.wait_timeout(content, left).unwrap().0;
        }
    }

    /// Waits for the end of the output; false at the deadline.
    pub(crate) fn wait_end(&self, deadline: Instant) -> bool {
        let (content, changed) = &*self.shared;
        let mut content = content.lock().unwrap();
        while !content.ended {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            content = changed.wait_timeout(content, left).unwrap().0;
        }
        true
    }

    pub(crate) fn text(&self) -> String {
        let lines = self.since(0);
        let raw: Vec<_> = lines.iter().map(|line| line.raw.as_str()).collect();
        raw.join("\n")
    }
}

#[test]
fn takes_a_line_apart() {
    let line = Line::parse(
        "2026-01-01T00:00:00.123Z WARN transfer finished conn=7 \
         outcome=recoverable reason=\"it said \\\"no\\\"\" blocked_ms=2.1",
    );
    assert_eq!(line.level, "WARN");
    assert!(line.is("transfer finished"));
    assert_eq!(line.number("conn"), 7);
    assert_eq!(line.get("reason"), "it said \"no\"");
    assert!((line.decimal("blocked_ms") - 2.1).abs() < f64::EPSILON);
}
