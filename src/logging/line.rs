//! How an event looks as a line: three formats, and what no value can do to it.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use log::kv::{self, VisitSource};
use log::{Level, Record};

use crate::config::LogFormat;
use crate::error::shorten;

/// Of a value, so many characters are shown; a peer's are cut earlier, see
/// [`shown`](crate::error::shown).
const MAX_VALUE_CHARS: usize = 1024;
/// A line is cut here, below what journald splits (its `LineMax`, 48 KiB).
pub(super) const MAX_LINE_BYTES: usize = 16 * 1024;

/// What stands before an event's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// The time, and the level.
    Time {
        /// Of the event.
        now: SystemTime,
        /// The level is coloured, in text.
        coloured: bool,
    },
    /// journald's priority, which has its own clock (sd-daemon(3)).
    Priority,
}

/// The whole line with its end.
pub(super) fn format_line(format: LogFormat, head: Head, record: &Record<'_>) -> String {
    let mut words = String::new();
    // Writing to a String fails only where a value's own Display does; then the
    // rest of the event is still worth its line.
    let _ = write!(words, "{}", record.args());
    let mut line = String::new();
    if head == Head::Priority {
        let _ = write!(line, "<{}>", priority(record.level()));
    }
    match format {
        LogFormat::Text => text(&mut line, head, &words, record),
        LogFormat::Logfmt => logfmt(&mut line, head, &words, record),
        LogFormat::Json => json(&mut line, head, &words, record),
    }
    line.push('\n');
    line
}

fn text(line: &mut String, head: Head, words: &str, record: &Record<'_>) {
    if let Head::Time { now, coloured } = head {
        let level = record.level();
        let style = match coloured {
            true => env_logger::fmt::style::Style::new().fg_color(Some(colour(level))),
            false => env_logger::fmt::style::Style::new(),
        };
        let _ = write!(line, "{} {style}{level}{style:#} ", Time(now));
    }
    push_escaped(line, words, false);
    let _ = record.key_values().visit(&mut Pairs(line));
    cut(line);
}

fn logfmt(line: &mut String, head: Head, words: &str, record: &Record<'_>) {
    if let Head::Time { now, .. } = head {
        let _ = write!(line, "time={} ", Time(now));
    }
    let level = record.level().as_str().to_ascii_lowercase();
    let _ = write!(line, "level={level} msg=");
    push_value(line, words);
    let _ = record.key_values().visit(&mut Pairs(line));
    cut(line);
}

fn json(line: &mut String, head: Head, words: &str, record: &Record<'_>) {
    line.push('{');
    if let Head::Time { now, .. } = head {
        let _ = write!(line, "\"time\":\"{}\",", Time(now));
    }
    let level = record.level().as_str().to_ascii_lowercase();
    let _ = write!(line, "\"level\":\"{level}\",\"msg\":");
    push_json(line, words);
    let _ = record.key_values().visit(&mut Members(line));
    line.push('}');
}

/// What is left of a line that is too long is still text.
fn cut(line: &mut String) {
    if line.len() > MAX_LINE_BYTES {
        let end = (0..=MAX_LINE_BYTES).rfind(|&end| line.is_char_boundary(end));
        line.truncate(end.unwrap_or_default());
        line.push('…');
    }
}

/// RFC 3339 with milliseconds.  A clock before 1970 must not bring the proxy down:
/// humantime panics there.
struct Time(SystemTime);

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_rfc3339_millis(self.0.max(UNIX_EPOCH)).fmt(f)
    }
}

/// syslog's severities (RFC 5424, 6.2.1).
const fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

const fn colour(level: Level) -> env_logger::fmt::style::Color {
    use env_logger::fmt::style::{AnsiColor, Color};
    Color::Ansi(match level {
        Level::Error => AnsiColor::Red,
        Level::Warn => AnsiColor::Yellow,
        Level::Info => AnsiColor::Green,
        Level::Debug => AnsiColor::Blue,
        Level::Trace => AnsiColor::Cyan,
    })
}

fn shown(value: &kv::Value<'_>) -> String {
    let mut text = String::new();
    let _ = write!(text, "{value}");
    shorten(&text, MAX_VALUE_CHARS)
}

/// Appends each pair to a line.
struct Pairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        self.0.push(' ');
        self.0.push_str(key.as_str());
        self.0.push('=');
        push_value(self.0, &shown(&value));
        Ok(())
    }
}

/// Appends each pair to an object, as long as the line may be.
struct Members<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Members<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let mut member = String::from(",");
        push_json(&mut member, key.as_str());
        member.push(':');
        let text = shown(&value);
        // A text stays one, whatever it looks like.
        let is_text = value.to_borrowed_str().is_some();
        let number = value.to_u64().is_some() || value.to_i64().is_some();
        let decimal = key.as_str().ends_with("_ms") && text.parse::<f64>().is_ok();
        match !is_text && (number || decimal || value.to_bool().is_some()) {
            true => member.push_str(&text),
            false => push_json(&mut member, &text),
        }
        if self.0.len() + member.len() < MAX_LINE_BYTES {
            self.0.push_str(&member);
        }
        Ok(())
    }
}

fn push_value(line: &mut String, text: &str) {
    if needs_quotes(text) {
        line.push('"');
        push_escaped(line, text, true);
        line.push('"');
    } else {
        line.push_str(text);
    }
}

fn needs_quotes(text: &str) -> bool {
    let special = |c: char| matches!(c, '"' | '=' | '\\') || c.is_whitespace() || is_active(c);
    text.is_empty() || text.contains(special)
}

fn push_escaped(line: &mut String, text: &str, quoted: bool) {
    for c in text.chars() {
        match c {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '"' | '\\' if quoted => line.extend(['\\', c]),
            _ if is_active(c) => line.extend(c.escape_unicode()),
            _ => line.push(c),
        }
    }
}

/// A JSON string (RFC 8259, 7).
fn push_json(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            // All of them have four hexadecimal digits.
            _ if is_active(c) => {
                let _ = write!(line, "\\u{:04x}", u32::from(c));
            }
            _ => line.push(c),
        }
    }
    line.push('"');
}

/// What a terminal acts on instead of showing it, and what some readers end a line at.
pub(crate) const fn is_active(c: char) -> bool {
    c.is_ascii_control() || matches!(c, '\u{80}'..='\u{9f}') || is_invisible(c)
}

/// What reorders or hides the text around it (Unicode, "Bidirectional Algorithm").
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::time::Duration;

    use super::*;
    use crate::logging::Milliseconds;

    fn formatted(format: LogFormat, words: fmt::Arguments<'_>, pairs: &dyn kv::Source) -> String {
        let record = Record::builder()
            .level(Level::Info)
            .args(words)
            .key_values(&pairs)
            .build();
        let head = Head::Time {
            now: UNIX_EPOCH + Duration::from_millis(1_795_408_794_123),
            coloured: false,
        };
        format_line(format, head, &record)
    }

    fn line(words: fmt::Arguments<'_>, pairs: &dyn kv::Source) -> String {
        formatted(LogFormat::Text, words, pairs)
    }

    fn event_pairs(held: &Milliseconds) -> [(&str, kv::Value<'_>); 5] {
        [
            ("conn", 7.into()),
            ("outcome", "success".into()),
            ("draining", true.into()),
            ("reason", "has \"spaces\"".into()),
            ("blocked_ms", kv::Value::from_display(held)),
        ]
    }

    #[test]
    fn an_event_is_time_level_words_and_pairs() {
        let held = Milliseconds(Duration::from_micros(2140));
        assert_eq!(
            line(format_args!("transfer finished"), &event_pairs(&held)),
            "2026-11-23T04:39:54.123Z INFO transfer finished conn=7 outcome=success \
             draining=true reason=\"has \\\"spaces\\\"\" blocked_ms=2.1\n"
        );
    }

    #[test]
    fn an_event_is_one_object_or_pairs_only() {
        let held = Milliseconds(Duration::from_micros(2140));
        let pairs = event_pairs(&held);
        assert_eq!(
            formatted(LogFormat::Json, format_args!("transfer finished"), &pairs),
            "{\"time\":\"2026-11-23T04:39:54.123Z\",\"level\":\"info\",\"msg\":\"transfer \
             finished\",\"conn\":7,\"outcome\":\"success\",\"draining\":true,\
             \"reason\":\"has \\\"spaces\\\"\",\"blocked_ms\":2.1}\n"
        );
        assert_eq!(
            formatted(LogFormat::Logfmt, format_args!("transfer finished"), &pairs),
            "time=2026-11-23T04:39:54.123Z level=info msg=\"transfer finished\" conn=7 \
             outcome=success draining=true reason=\"has \\\"spaces\\\"\" blocked_ms=2.1\n"
        );
    }

    #[test]
    fn journald_gets_a_priority_and_keeps_the_time_itself() {
        let formats = [
            (LogFormat::Text, "<4>words k=1\n"),
            (LogFormat::Logfmt, "<4>level=warn msg=words k=1\n"),
            (
                LogFormat::Json,
                "<4>{\"level\":\"warn\",\"msg\":\"words\",\"k\":1}\n",
            ),
        ];
        for (format, expected) in formats {
            let pairs = [("k", 1)];
            let args = format_args!("words");
            let record = Record::builder()
                .level(Level::Warn)
                .args(args)
                .key_values(&pairs)
                .build();
            assert_eq!(format_line(format, Head::Priority, &record), expected);
        }
        let levels = [Level::Error, Level::Warn, Level::Info, Level::Debug];
        assert_eq!(levels.map(priority), [3, 4, 6, 7]);
    }

    #[test]
    fn an_object_stays_one_whatever_a_value_is() {
        let long = "\u{202e}".repeat(1024);
        let texts = [
            "12345",
            "true",
            "1.5",
            "a\"b\\c\n\t\u{1b}\u{0}",
            "\u{2028}\u{feff}ä😀",
            "",
            &long,
        ];
        for text in texts {
            let found = formatted(LogFormat::Json, format_args!("words"), &[("key", text)]);
            let object: serde_json::Value = serde_json::from_str(&found).unwrap_or_default();
            assert_eq!(object.get("key"), Some(&text.into()), "{found}");
            assert!(!found.trim_end().contains(is_active), "{found}");
        }
        let pairs: Vec<_> = (0..40).map(|_| ("key", long.as_str())).collect();
        let found = formatted(LogFormat::Json, format_args!("words"), &pairs.as_slice());
        assert!(found.len() <= MAX_LINE_BYTES + 4);
        let object: Result<serde_json::Value, _> = serde_json::from_str(&found);
        assert!(object.is_ok(), "{found}");
    }

    #[test]
    fn a_value_stays_one_word_of_one_line() {
        let table = [
            ("plain", "plain"),
            ("127.0.0.1:26257", "127.0.0.1:26257"),
            ("[::1]:5432", "[::1]:5432"),
            ("größe", "größe"),
            ("", r#""""#),
            ("two words", r#""two words""#),
            ("a=b", r#""a=b""#),
            (r#"say "no""#, r#""say \"no\"""#),
            (r"back\slash", r#""back\\slash""#),
            ("x\nINFO forged", r#""x\nINFO forged""#),
            ("tab\there", r#""tab\there""#),
            ("cr\r", r#""cr\r""#),
            ("\u{1b}[31mred", r#""\u{1b}[31mred""#),
            ("nul\0", r#""nul\u{0}""#),
            ("\u{2028}", r#""\u{2028}""#),
            ("\u{85}", r#""\u{85}""#),
            ("\u{202e}txet", r#""\u{202e}txet""#),
            ("a\u{200b}b", r#""a\u{200b}b""#),
        ];
        for (value, shown) in table {
            let found = line(format_args!("words"), &[("key", value)]);
            assert_eq!(
                found,
                format!("2026-11-23T04:39:54.123Z INFO words key={shown}\n")
            );
        }
    }

    #[test]
    fn the_words_stay_on_their_line_and_keep_their_quotes() {
        let found = line(format_args!("a \"b\"\n\u{1b}c\\d"), &[("k", 1)]);
        assert_eq!(
            found,
            "2026-11-23T04:39:54.123Z INFO a \"b\"\\n\\u{1b}c\\d k=1\n"
        );
    }

    #[test]
    fn a_failing_value_and_a_wrong_clock_panic_nobody() {
        struct Failing;
        impl fmt::Display for Failing {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                Err(fmt::Error)
            }
        }
        let pairs = [
            ("bad", kv::Value::from_display(&Failing)),
            ("good", 1.into()),
        ];
        let args = format_args!("words");
        let record = Record::builder()
            .level(Level::Warn)
            .args(args)
            .key_values(&pairs)
            .build();
        let at = |now| Head::Time {
            now,
            coloured: false,
        };
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(
            format_line(LogFormat::Text, at(before), &record),
            "1970-01-01T00:00:00.000Z WARN words bad=\"\" good=1\n"
        );
        let late = UNIX_EPOCH + Duration::from_secs(400_000_000_000);
        let found = format_line(LogFormat::Text, at(late), &record);
        assert!(found.ends_with(" good=1\n"));
    }

    #[test]
    fn what_is_long_is_cut_and_its_length_told() {
        let long = "ä".repeat(10_000);
        let found = line(format_args!("words"), &[("key", long.as_str())]);
        assert!(found.len() < 3000, "{found}");
        assert!(found.ends_with("ä…(20000 bytes)\"\n") || found.ends_with("ä…(20000 bytes)\n"));
        // Escaped, each of them is eight times as long.
        let pairs: Vec<_> = (0..40).map(|_| ("key", "\u{2028}".repeat(1024))).collect();
        let pairs: Vec<(&str, kv::Value<'_>)> = pairs
            .iter()
            .map(|(key, value)| (*key, value.as_str().into()))
            .collect();
        let found = line(format_args!("words"), &pairs.as_slice());
        assert!(found.len() <= MAX_LINE_BYTES + 4, "{}", found.len());
        assert!(found.ends_with("…\n"));
    }
}
