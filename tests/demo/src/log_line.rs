//! Reads the proxy's log: the words that it promises, and their keys.

/// The event of a log line: what stands behind time, level and module, from the
/// first of the promised words on.
pub fn event(line: &str) -> Option<&str> {
    const EVENTS: [&str; 7] = [
        "transfer finished ",
        "migration round",
        "session opened ",
        "session closed ",
        "admin listening ",
        "listening ",
        "sqlpod listening ",
    ];
    EVENTS
        .iter()
        .filter_map(|word| line.find(word))
        .min()
        .and_then(|at| line.get(at..))
}

/// The value of `key` in a line of `key=value`; without its quotes.
pub fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let pattern = format!(" {key}=");
    let (_, rest) = line.split_once(&pattern)?;
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split(' ').next(),
    }
}

#[cfg(test)]
mod tests {
    use super::{event, value};

    #[test]
    fn an_event_begins_with_its_promised_words() {
        let cases = [
            (
                "[2026-01-01T00:00:00Z INFO  sqlproxy::server] admin listening address=[::1]:81",
                Some("admin listening address=[::1]:81"),
            ),
            (
                "2026-01-01T00:00:00Z INFO listening address=127.0.0.1:1",
                Some("listening address=127.0.0.1:1"),
            ),
            (
                "INFO migration round=1 done=4 of=5 waiting=1",
                Some("migration round=1 done=4 of=5 waiting=1"),
            ),
            ("INFO something else", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(event(line), expected, "{line}");
        }
    }

    #[test]
    fn a_value_ends_at_a_space_or_at_its_quote() {
        let line = r#"transfer finished conn=7 reason="open transaction" user=erin"#;
        let cases = [
            ("conn", Some("7")),
            ("reason", Some("open transaction")),
            ("user", Some("erin")),
            ("on", None),
            ("round", None),
        ];
        for (key, expected) in cases {
            assert_eq!(value(line, key), expected, "{key}");
        }
    }
}
