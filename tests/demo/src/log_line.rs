//! Reads the proxy's log as its contract has it: time, level, an event's words, then
//! `key=value`.  The one reader of the demo, the soak and the tests.

use std::collections::BTreeMap;

/// One line, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `INFO`, `ERROR`, ...; empty for a line that is not from the logger.
    pub level: String,
    /// The words before the first `key=value`.
    pub event: String,
    /// The values by their keys, without their quotes.
    pub fields: BTreeMap<String, String>,
    /// All of it, as it came.
    pub raw: String,
}

impl Line {
    /// Takes any text apart: what is no log line has an event without a level.
    #[must_use]
    pub fn parse(raw: &str) -> Self {
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
            let (word, behind) = rest.split_at(word_end);
            match split_key(word) {
                Some(key) => {
                    let (value, after) = value(rest.get(key.len() + 1..).unwrap_or_default());
                    fields.insert(key.to_owned(), value);
                    rest = after;
                }
                None => {
                    if fields.is_empty() {
                        event.push(word);
                    }
                    rest = behind;
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

    /// Whether these are its event's words.
    #[must_use]
    pub fn is(&self, event: &str) -> bool {
        self.event == event
    }

    /// The value of `key`, where it has one.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.fields.get(key).map(String::as_str)
    }

    /// Without time and level.
    #[must_use]
    pub fn shown(&self) -> &str {
        match self.level.is_empty() {
            true => &self.raw,
            false => self.raw.splitn(3, ' ').nth(2).unwrap_or_default(),
        }
    }

    /// The value of `key`.
    ///
    /// # Panics
    /// If the line lacks it.
    #[must_use]
    pub fn get(&self, key: &str) -> &str {
        match self.value(key) {
            Some(value) => value,
            None => panic!("no {key}= in: {}", self.raw),
        }
    }

    /// A whole number.
    ///
    /// # Panics
    /// If the line lacks it, or has something else.
    #[must_use]
    pub fn number(&self, key: &str) -> u64 {
        self.parsed(key)
    }

    /// Any figure, such as `blocked_ms=2.1`.
    ///
    /// # Panics
    /// As [`Self::number`].
    #[must_use]
    pub fn decimal(&self, key: &str) -> f64 {
        self.parsed(key)
    }

    fn parsed<T: std::str::FromStr>(&self, key: &str) -> T {
        let value = self.get(key);
        match value.parse() {
            Ok(parsed) => parsed,
            Err(_) => panic!("{key}={value} is no number in: {}", self.raw),
        }
    }
}

/// The key of a word that begins with `key=`.
fn split_key(word: &str) -> Option<&str> {
    let (key, _) = word.split_once('=')?;
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_key.then_some(key)
}

/// Takes one value, quoted or bare, off the front of `text`.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn takes_a_line_apart() {
        let line = Line::parse(
            "2026-01-01T00:00:00.123Z WARN transfer finished conn=7 \
             outcome=recoverable reason=\"it said \\\"no\\\" x=1\" blocked_ms=2.1",
        );
        assert_eq!(line.level, "WARN");
        assert!(line.is("transfer finished"));
        assert!(!line.is("transfer"));
        assert_eq!(line.number("conn"), 7);
        assert_eq!(line.get("reason"), "it said \"no\" x=1");
        assert_eq!(line.value("x"), None);
        assert!((line.decimal("blocked_ms") - 2.1).abs() < f64::EPSILON);
        assert!(line.shown().starts_with("transfer finished conn=7 "));
    }

    #[test]
    fn what_is_no_log_line_is_an_event_without_a_level() {
        let line = Line::parse("sqlpod listening name=pod-a address=127.0.0.1:1");
        assert_eq!((&*line.level, &*line.event), ("", "sqlpod listening"));
        assert_eq!(line.get("address"), "127.0.0.1:1");
        assert_eq!(Line::parse("").event, "");
    }
}
