//! Empties the backends that sessions are to leave, until they are empty.
//!
//! Whoever makes a backend one to leave starts a round for its sessions; what that round
//! leaves behind is this module's: it is asked again, with pauses that grow, and told
//! once a minute; where the configuration wants an end (`end_after`), it is ended.  One
//! thread for all backends, while there are some to empty.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::balancer::{BackendId, Draining};
use crate::forwarder::Stillness;
use crate::logging::Milliseconds;
use crate::proxy_state::{DrainNews, ProxyState};
use crate::round::{Aim, Round};
use crate::session::Session;
use crate::stage::Stage;
use crate::threads;

/// Between two looks at the backends.
const INTERVAL: Duration = Duration::from_millis(100);
/// Before those that a round has left behind are asked again, doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// Between two words on who holds a drain up.
const TELL_INTERVAL: Duration = Duration::from_secs(60);
/// Sessions that one such word names.
const MAX_TOLD: usize = 10;

/// One backend that is being emptied.
struct Drain {
    name: Arc<str>,
    trigger: &'static str,
    began: Instant,
    round: Option<Arc<Round>>,
    next_round: Instant,
    retry: Duration,
    told: Instant,
    /// For how long each session that is left has stood where it is, where that counts.
    left: HashMap<u64, Stillness>,
}

/// Sees to it that what is to be emptied gets empty; to be called when a backend has
/// become one to leave.  `trigger` names the rounds of those that were not one before;
/// `later`: their first round has been started.
///
/// # Errors
/// There is no thread for it.
pub(crate) fn start(state: &Arc<ProxyState>, trigger: &'static str, later: bool) -> io::Result<()> {
    let begun = (trigger, later);
    // Over the start, or two that come at once would start one each.
    let mut draining = state.draining.lock();
    if let Some(news) = &*draining
        && news.send(begun).is_ok()
    {
        return Ok(());
    }
    let (news, received) = crossbeam_channel::unbounded();
    let _ = news.send(begun);
    let of = Arc::downgrade(state);
    threads::spawn("drain".to_owned(), move || run(&of, &received))?;
    *draining = Some(news);
    Ok(())
}

fn run(of: &Weak<ProxyState>, news: &Receiver<DrainNews>) {
    let mut drains: HashMap<BackendId, Drain> = HashMap::new();
    let mut begun = ("", false);
    loop {
        let Some(state) = of.upgrade() else {
            return;
        };
        if state.stages.has_reached(Stage::Ending) {
            return;
        }
        begun = news.try_iter().last().unwrap_or(begun);
        look(&state, &mut drains, begun);
        if drains.is_empty() {
            // Under the lock, or news that come now would be heard by nobody.
            let mut draining = state.draining.lock();
            if news.is_empty() {
                *draining = None;
                return;
            }
        }
        drop(state);
        thread::sleep(INTERVAL);
    }
}

fn look(state: &ProxyState, drains: &mut HashMap<BackendId, Drain>, (trigger, later): DrainNews) {
    let now = Instant::now();
    let balancer = state.connector.balancer();
    let draining = balancer.draining();
    let mut done: Vec<_> = balancer.take_emptied();
    drains.retain(|id, drain| {
        let goes_on = draining.iter().any(|other| other.id == *id);
        // One that has left the file goes with its last session.
        if !goes_on && balancer.find(&drain.name).is_none() {
            done.push(Draining {
                id: *id,
                name: Arc::clone(&drain.name),
            });
        }
        let told = done.iter().any(|other| other.id == *id);
        if told {
            log_drained(&drain.name, drain.began.elapsed());
            done.retain(|other| other.id != *id);
        }
        goes_on
    });
    for Draining { name, .. } in done {
        log_drained(&name, Duration::ZERO);
    }
    for Draining { id, name } in draining {
        let drain = drains.entry(id).or_insert_with(|| Drain {
            name,
            trigger,
            began: now,
            round: None,
            next_round: if later { now + FIRST_RETRY } else { now },
            retry: FIRST_RETRY,
            told: now,
            left: HashMap::new(),
        });
        let mut left = state.sessions.snapshot();
        left.retain(|session| session.backend() == id);
        drain.go_on(state, &left, now);
    }
}

fn log_drained(backend: &str, elapsed: Duration) {
    log::info!(
        backend,
        sessions = 0,
        elapsed_ms:% = Milliseconds(elapsed);
        "backend drained"
    );
}

impl Drain {
    fn go_on(&mut self, state: &ProxyState, left: &[Arc<Session>], now: Instant) {
        let migration = state.config.read().migration.clone();
        if !migration.end_after.is_zero() && self.end_who_sits(left, migration.end_after, now) {
            return;
        }
        if now >= self.told + TELL_INTERVAL {
            self.told = now;
            self.tell(left);
        }
        let is_over = |round: &Arc<Round>| round.view().waiting == 0;
        if now < self.next_round || !self.round.as_ref().is_none_or(is_over) {
            return;
        }
        // Those whose turn comes by another's order are left to that.
        let asked: Vec<_> = left
            .iter()
            .filter(|session| !session.is_asked())
            .cloned()
            .collect();
        if asked.is_empty() {
            return;
        }
        let aim = Aim::EmptyDraining;
        let wait = migration.wait;
        self.round = state.rounds.start(self.trigger, aim, asked, wait);
        self.next_round = now + self.retry;
        self.retry = (self.retry * 2).min(MAX_RETRY);
    }

    /// Notes where everybody stands, and ends those who sit there when `end_after` is
    /// over.  Tells whether it is.
    fn end_who_sits(&mut self, left: &[Arc<Session>], end_after: Duration, now: Instant) -> bool {
        let is_over = now.saturating_duration_since(self.began) >= end_after;
        let mut before = std::mem::take(&mut self.left);
        for session in left {
            let standing = session.standing();
            let conn = session.name().conn;
            let known = before.remove(&conn);
            let mut stillness = known.unwrap_or(Stillness::new(standing, now));
            let stands = stillness.look(standing, now);
            self.left.insert(conn, stillness);
            if is_over {
                session.end_of_drain(standing, stands, end_after);
            }
        }
        is_over
    }

    fn tell(&self, left: &[Arc<Session>]) {
        let backend = &*self.name;
        let elapsed_ms = Milliseconds(self.began.elapsed());
        log::warn!(backend, sessions = left.len(), elapsed_ms:%; "backend not drained yet");
        for session in left.iter().take(MAX_TOLD) {
            let view = session.view();
            let reason = view.cannot_move_because().unwrap_or_default();
            let name = &view.name;
            log::warn!(
                backend,
                conn = name.conn,
                client = name.client,
                user = name.user,
                reason;
                "session holds a drain up"
            );
        }
    }
}
