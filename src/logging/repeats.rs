//! Lines that a stranger can cause as often as he likes: the first ones of a while are
//! written, the rest are counted.

use std::time::{Duration, Instant};

use log::{Level, Record};

/// The words of events whose number others decide.
const COUNTED: [&str; 12] = [
    "connection refused",
    "connection closed before a session",
    "connection closed: its network is not allowed",
    "connection closed: too many that are not logged in",
    "connection closed: no thread for it",
    "login refused by server",
    "channel binding withheld",
    "cancel request not passed on",
    "cannot accept a connection",
    "cannot accept a command",
    "admin clients cannot be accepted",
    "command refused",
];

/// Of one kind, so many are written in one [`WHILE`].
const WRITTEN: u64 = 50;
const WHILE: Duration = Duration::from_secs(10);
/// Kinds that are told apart; a peer chooses some of the reasons.
const MAX_KINDS: usize = 64;
/// The reason of all others.
const VARIOUS: &str = "various";

/// What has been seen of each kind in its while.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    kinds: Vec<Kind>,
}

#[derive(Debug)]
struct Kind {
    words: &'static str,
    reason: String,
    level: Level,
    began: Instant,
    seen: u64,
}

/// So many events of a kind were not written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// The event's words.
    pub words: &'static str,
    /// The event's reason.
    pub reason: String,
    /// The event's level.
    pub level: Level,
    /// How many.
    pub count: u64,
}

/// The words and the reason of an event whose number others decide.
pub(super) fn kind_of(record: &Record<'_>) -> Option<(&'static str, String)> {
    let formatted;
    let words = match record.args().as_str() {
        Some(words) => words,
        None => {
            formatted = record.args().to_string();
            &formatted
        }
    };
    let words = COUNTED.into_iter().find(|counted| *counted == words)?;
    let reason = record.key_values().get("reason".into());
    let reason = reason.map(|text| alike(&text.to_string()));
    Some((words, reason.unwrap_or_default()))
}

/// A reason without what a peer may have chosen in it: numbers, and what is quoted.
fn alike(reason: &str) -> String {
    let mut alike = String::new();
    let mut quoted = false;
    for c in reason.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                alike.push_str(if quoted { "\"…" } else { "\"" });
            }
            _ if quoted => {}
            '0'..='9' if alike.ends_with('#') => {}
            '0'..='9' => alike.push('#'),
            _ => alike.push(c),
        }
    }
    alike
}

impl Repeats {
    /// Whether an event is to be written; else it is counted.
    pub(super) fn admit(
        &mut self,
        (words, reason): (&'static str, String),
        level: Level,
        now: Instant,
    ) -> bool {
        self.kinds
            .retain(|kind| !kind.is_over(now) || kind.count() > 0);
        let known = |reason: &str| {
            let is_it = |kind: &Kind| kind.words == words && kind.reason == reason;
            self.kinds.iter().position(is_it)
        };
        let mut found = known(&reason);
        let mut reason = reason;
        if found.is_none() && self.kinds.len() >= MAX_KINDS {
            reason = VARIOUS.to_owned();
            found = known(VARIOUS);
        }
        match found.and_then(|index| self.kinds.get_mut(index)) {
            Some(kind) => {
                kind.seen += 1;
                kind.seen <= WRITTEN
            }
            None => {
                self.kinds.push(Kind {
                    words,
                    reason,
                    level,
                    began: now,
                    seen: 1,
                });
                true
            }
        }
    }

    /// One that is over with events that were not written; with `all`, over or not.
    pub(super) fn take_counted(&mut self, now: Instant, all: bool) -> Option<Counted> {
        let due = |kind: &Kind| kind.count() > 0 && (all || kind.is_over(now));
        let kind = self.kinds.swap_remove(self.kinds.iter().position(due)?);
        Some(Counted {
            count: kind.count(),
            words: kind.words,
            reason: kind.reason,
            level: kind.level,
        })
    }

    /// When the next one is over that has events which were not written.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let counted = self.kinds.iter().filter(|kind| kind.count() > 0);
        counted.map(|kind| kind.began + WHILE).min()
    }
}

impl Kind {
    fn is_over(&self, now: Instant) -> bool {
        now >= self.began + WHILE
    }

    /// How many were not written.
    const fn count(&self) -> u64 {
        self.seen.saturating_sub(WRITTEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &str = "connection refused";

    fn admit(repeats: &mut Repeats, reason: &str, now: Instant) -> bool {
        repeats.admit((REFUSED, reason.to_owned()), Level::Info, now)
    }

    fn counted(reason: &str, count: u64) -> Option<Counted> {
        Some(Counted {
            words: REFUSED,
            reason: reason.to_owned(),
            level: Level::Info,
            count,
        })
    }

    #[test]
    fn the_first_of_a_while_are_written_and_the_rest_told_at_its_end() {
        let mut repeats = Repeats::default();
        let began = Instant::now();
        let written = (0..1000).filter(|_| admit(&mut repeats, "full", began));
        assert_eq!(written.count(), 50);
        assert!(admit(&mut repeats, "other", began), "a kind of its own");
        assert_eq!(repeats.next_due(), Some(began + WHILE));
        assert_eq!(repeats.take_counted(began, false), None);
        let over = began + WHILE;
        assert_eq!(repeats.take_counted(over, false), counted("full", 950));
        assert_eq!(repeats.take_counted(over, false), None);
        assert_eq!(repeats.next_due(), None);
        assert!(admit(&mut repeats, "full", over), "the next while");
    }

    #[test]
    fn the_end_of_the_process_waits_for_no_while() {
        let mut repeats = Repeats::default();
        let began = Instant::now();
        while admit(&mut repeats, "full", began) {}
        assert_eq!(repeats.take_counted(began, true), counted("full", 1));
    }

    #[test]
    fn what_a_peer_chooses_makes_no_kind_of_its_own() {
        for (reason, expected) in [
            (
                "invalid length of startup packet: 1000017",
                "invalid length of startup packet: #",
            ),
            (
                "reached per_user = 12 for user \"a \\ b\"",
                "reached per_user = # for user \"…\"",
            ),
            ("plain", "plain"),
        ] {
            assert_eq!(alike(reason), expected);
        }
    }

    #[test]
    fn as_many_reasons_as_a_peer_likes_take_no_more_room() {
        let mut repeats = Repeats::default();
        let began = Instant::now();
        let written = (0..10_000).filter(|n| admit(&mut repeats, &n.to_string(), began));
        assert_eq!(written.count(), 64 + 50);
        assert_eq!(repeats.kinds.len(), 65);
        let over = began + WHILE;
        let rest = 10_000 - 64 - 50;
        assert_eq!(repeats.take_counted(over, false), counted("various", rest));
    }
}
