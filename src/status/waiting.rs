//! Sessions that have been asked to move and have not yet.
//!
//! All of them are counted; those that have waited longest are shown one by one, so
//! that an answer stays small with thousands of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::forwarder::View;
use crate::session::Session;

/// Sessions that are shown one by one.
const SHOWN: usize = 100;

/// A session that is yet to move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WaitingStatus {
    /// The proxy's number of it, as in the log.
    pub conn: u64,
    /// From the startup packet, at most 128 characters.
    pub user: String,
    /// From the startup packet, at most 128 characters.
    pub database: String,
    /// The client's address.
    pub client: String,
    /// Where it is.
    pub backend: String,
    /// `waiting`, `moving` or `held`.
    pub state: String,
    /// What it waits for.
    pub waits_for: String,
    /// How long it has been asked to move.
    pub waiting_seconds: f64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// How many there are.
    pub count: usize,
    /// What they wait for, and how many do.
    pub reasons: BTreeMap<String, usize>,
    /// Those that have waited longest, the longest first.
    pub longest: Vec<WaitingStatus>,
}

/// A session's way from its order to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Held until a server takes it.
    Held,
    /// Being moved.
    Moving,
    /// On its way to the safe point, or to its turn.
    Waiting,
}

/// Since when a session waits, and how far it has come; `None`: nobody has asked it.
fn step(view: &View, held: bool) -> Option<(Instant, Step)> {
    match (view.moving, view.ordered) {
        // One that is being moved may have been asked again meanwhile.
        (Some(since), _) if held => Some((since, Step::Held)),
        (Some(since), _) => Some((since, Step::Moving)),
        (None, Some(since)) => Some((since, Step::Waiting)),
        (None, None) => None,
    }
}

fn waits_for(view: &View, step: Step) -> String {
    match (step, view.obstacle) {
        (Step::Held, _) => "a server".to_owned(),
        (Step::Moving, _) => "its transfer".to_owned(),
        (Step::Waiting, Some(obstacle)) => obstacle.to_string(),
        (Step::Waiting, None) => "its turn".to_owned(),
    }
}

/// Those of `sessions` that are yet to move.
pub(super) fn waiting(sessions: Vec<Arc<Session>>, now: Instant) -> Waiting {
    let mut reasons = BTreeMap::new();
    let mut found = Vec::new();
    for session in sessions {
        let view = session.forwarding();
        if let Some((since, step)) = step(&view, session.is_held()) {
            let waits_for = waits_for(&view, step);
            *reasons.entry(waits_for.clone()).or_default() += 1;
            found.push((since, session.name().conn, (session, step, waits_for)));
        }
    }
    let count = found.len();
    let longest = longest(found, SHOWN).into_iter();
    let shown = longest.map(|(since, conn, (session, step, waits_for))| {
        let name = session.name();
        let state = match step {
            Step::Held => "held",
            Step::Moving => "moving",
            Step::Waiting => "waiting",
        };
        WaitingStatus {
            conn,
            user: name.user.clone(),
            database: name.database.clone(),
            client: name.client.clone(),
            backend: session.backend_name().to_string(),
            state: state.to_owned(),
            waits_for,
            waiting_seconds: now.saturating_duration_since(since).as_secs_f64(),
        }
    });
    Waiting {
        count,
        reasons,
        longest: shown.collect(),
    }
}

/// The first `most` by time and number, in that order.
fn longest<T>(mut found: Vec<(Instant, u64, T)>, most: usize) -> Vec<(Instant, u64, T)> {
    let key = |&(since, conn, _): &(Instant, u64, T)| (since, conn);
    if found.len() > most {
        // A round over thousands asks for this each second or two: no full sort.
        found.select_nth_unstable_by_key(most, key);
        found.truncate(most);
    }
    found.sort_unstable_by_key(key);
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::exchange::WaitingFor;
    use crate::forwarder::{Activity, Obstacle};

    #[test]
    fn each_is_where_its_order_has_brought_it() {
        let at = Instant::now();
        let later = at + Duration::from_secs(1);
        let transaction = Some(Obstacle::Waiting(WaitingFor::OpenTransaction));
        // Ordered, moving, held, obstacle; since when and for what it waits.
        let table = [
            (None, None, false, transaction, None),
            (
                Some(at),
                None,
                false,
                transaction,
                Some((at, "open transaction")),
            ),
            (Some(at), None, false, None, Some((at, "its turn"))),
            (None, Some(at), false, None, Some((at, "its transfer"))),
            (
                Some(later),
                Some(at),
                false,
                None,
                Some((at, "its transfer")),
            ),
            (None, Some(at), true, None, Some((at, "a server"))),
        ];
        for (ordered, moving, held, obstacle, expected) in table {
            let view = View {
                activity: Activity::Idle,
                in_transaction: None,
                ordered,
                moving,
                obstacle,
                counts: crate::forwarder::Counts::default(),
            };
            let found = step(&view, held).map(|(since, step)| (since, waits_for(&view, step)));
            let expected = expected.map(|(since, words)| (since, words.to_owned()));
            assert_eq!(found, expected, "{view:?}");
        }
    }

    #[test]
    fn of_thousands_those_who_waited_longest_are_shown() {
        let begin = Instant::now();
        // The later the number, the earlier it was asked; two at each moment.
        let found: Vec<_> = (0..5000_u64)
            .map(|conn| (begin + Duration::from_secs((4999 - conn) / 2), conn, ()))
            .collect();
        let conns = |most| -> Vec<u64> {
            let longest = longest(found.clone(), most).into_iter();
            longest.map(|(_, conn, ())| conn).collect()
        };
        assert_eq!(conns(4), [4998, 4999, 4996, 4997]);
        assert_eq!(conns(SHOWN).len(), SHOWN);
        assert_eq!(conns(5000).len(), 5000);
        assert_eq!(conns(9999).len(), 5000);
    }
}
