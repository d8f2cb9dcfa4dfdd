//! Reads the proxy's log: the words that it promises, and their keys.

/// The event of a log line: what stands behind time, level and module, from the
/// first of the promised words on.
pub(crate) fn event(line: &str) -> Option<&str> {
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
pub(crate) fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let pattern = format!(" {key}=");
    let (_, rest) = line.split_once(&pattern)?;
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split(' ').next(),
    }
}
