//! One event a line on stderr: time, level, words, `key=value` pairs.
//!
//! The pairs come through log's `kv`. Invariant: whatever a client, a server or an
//! error puts into a value, the event stays on its line, which has its limit, and
//! the pairs can be taken apart again.  `writer` takes the lines to stderr.

mod writer;

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use env_logger::{Builder, Target, WriteStyle};
use log::kv::{self, VisitSource};
use log::{Level, LevelFilter, Record};

use crate::error::shorten;
use writer::LogWriter;

/// Of a value, so many characters are shown; a peer's are cut earlier, see
/// [`shown`](crate::error::shown).
const MAX_VALUE_CHARS: usize = 1024;
/// A line is cut here, below what journald splits (its `LineMax`, 48 KiB).
const MAX_LINE_BYTES: usize = 16 * 1024;
/// Given to the last lines when the process ends.
const FLUSH: Duration = Duration::from_secs(1);

/// The log, once it has been started.
static WRITER: OnceLock<Arc<LogWriter>> = OnceLock::new();

/// Starts the log: level info, or what `RUST_LOG` asks for; colours only on a
/// terminal.  A second call changes nothing.
///
/// # Errors
/// There is no thread for it.
pub fn init() -> io::Result<()> {
    if WRITER.get().is_some() {
        return Ok(());
    }
    let tell_dropped = |count: u64| {
        let pairs = [("count", kv::Value::from(count))];
        let dropped = Record::builder()
            .level(Level::Warn)
            .args(format_args!("log lines dropped"))
            .key_values(&pairs)
            .build();
        format_line(SystemTime::now(), Level::Warn.as_str(), &dropped)
    };
    let writer = LogWriter::start(tell_dropped, writer::write_stderr)?;
    let coloured = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style = match coloured {
        true => WriteStyle::Always,
        false => WriteStyle::Never,
    };
    let mut builder = Builder::new();
    builder
        .filter_level(LevelFilter::Info)
        .write_style(style)
        .parse_default_env()
        .target(Target::Pipe(Box::new(writer::Target(Arc::clone(&writer)))))
        .format(|formatter, record| {
            let style = formatter.default_level_style(record.level());
            let level = format!("{style}{}{style:#}", record.level());
            let line = format_line(SystemTime::now(), &level, record);
            // env_logger collects this and hands the line over at once.
            formatter.write_all(line.as_bytes())
        });
    let _ = builder.try_init();
    let _ = WRITER.set(writer);
    Ok(())
}

/// Gives the last lines a second to be written, before the process ends.
pub fn flush() {
    if let Some(writer) = WRITER.get() {
        writer.flush(Instant::now() + FLUSH);
    }
}

/// A duration as the log's `…_ms` keys show it: milliseconds with one decimal.
///
/// Used as `blocked_ms:% = Milliseconds(held)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Milliseconds(pub Duration);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.0.as_secs_f64() * 1000.0)
    }
}

/// Writes an event of level info whose pairs are only known at run time, in the
/// order given.
pub(crate) fn event(words: &str, pairs: &[(&str, kv::Value<'_>)]) {
    log::logger().log(
        &Record::builder()
            .level(log::Level::Info)
            .target(env!("CARGO_PKG_NAME"))
            .args(format_args!("{words}"))
            .key_values(&pairs)
            .build(),
    );
}

/// The whole line with its end. `level` comes as text, since it may be coloured.
fn format_line(now: SystemTime, level: &str, record: &Record<'_>) -> String {
    // A clock before 1970 must not bring the proxy down: humantime panics there.
    let time = humantime::format_rfc3339_millis(now.max(UNIX_EPOCH));
    let mut line = String::new();
    // Writing to a String fails only where a value's own Display does; then the
    // rest of the event is still worth its line.
    let _ = write!(line, "{time} {level} ");
    let mut words = String::new();
    let _ = write!(words, "{}", record.args());
    push_escaped(&mut line, &words, false);
    let _ = record.key_values().visit(&mut Pairs(&mut line));
    if line.len() > MAX_LINE_BYTES {
        let end = (0..=MAX_LINE_BYTES).rfind(|&end| line.is_char_boundary(end));
        line.truncate(end.unwrap_or_default());
        line.push('…');
    }
    line.push('\n');
    line
}

/// Appends each pair to a line.
struct Pairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let mut text = String::new();
        let _ = write!(text, "{value}");
        let text = shorten(&text, MAX_VALUE_CHARS);
        self.0.push(' ');
        self.0.push_str(key.as_str());
        self.0.push('=');
        if needs_quotes(&text) {
            self.0.push('"');
            push_escaped(self.0, &text, true);
            self.0.push('"');
        } else {
            self.0.push_str(&text);
        }
        Ok(())
    }
}

fn needs_quotes(text: &str) -> bool {
    let special = |c: char| matches!(c, '"' | '=' | '\\') || c.is_whitespace() || c.is_control();
    text.is_empty() || text.contains(special)
}

fn push_escaped(line: &mut String, text: &str, quoted: bool) {
    for c in text.chars() {
        match c {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '"' | '\\' if quoted => line.extend(['\\', c]),
            // Some readers end a line at these two as well.
            '\u{2028}' | '\u{2029}' => line.extend(c.escape_unicode()),
            _ if c.is_control() => line.extend(c.escape_unicode()),
            _ => line.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: fmt::Arguments<'_>, pairs: &dyn kv::Source) -> String {
        let record = Record::builder()
            .level(Level::Info)
            .args(words)
            .key_values(&pairs)
            .build();
        let now = UNIX_EPOCH + Duration::from_millis(1_795_408_794_123);
        format_line(now, "INFO", &record)
    }

    #[test]
    fn an_event_is_time_level_words_and_pairs() {
        let held = Milliseconds(Duration::from_micros(2140));
        let pairs: [(&str, kv::Value<'_>); 5] = [
            ("conn", 7.into()),
            ("outcome", "success".into()),
            ("draining", true.into()),
            ("reason", "has spaces".into()),
            ("blocked_ms", kv::Value::from_display(&held)),
        ];
        assert_eq!(
            line(format_args!("transfer finished"), &pairs),
            "2026-11-23T04:39:54.123Z INFO transfer finished conn=7 outcome=success \
             draining=true reason=\"has spaces\" blocked_ms=2.1\n"
        );
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
        let record = Record::builder().args(args).key_values(&pairs).build();
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(
            format_line(before, "WARN", &record),
            "1970-01-01T00:00:00.000Z WARN words bad=\"\" good=1\n"
        );
        let late = UNIX_EPOCH + Duration::from_secs(400_000_000_000);
        assert!(format_line(late, "WARN", &record).ends_with(" good=1\n"));
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

    #[test]
    fn milliseconds_have_one_decimal() {
        for (micros, shown) in [(0, "0.0"), (49, "0.0"), (2_140, "2.1"), (812_400, "812.4")] {
            let found = Milliseconds(Duration::from_micros(micros)).to_string();
            assert_eq!(found, shown);
        }
    }
}
