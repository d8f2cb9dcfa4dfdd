//! The one thread that looks after all held sessions.
//!
//! It waits for what their sockets say and for the next moment that something is
//! due.  It never waits for a single peer: who dials does so on a thread of its own, a
//! prober for each backend and, for each session that a server is to take, a worker's.

mod returning;

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::book::Fate;
use super::{Held, Holds, RELEASED};
use crate::balancer::{BackendId, ProbeTarget};
use crate::error::Refusal;
use crate::message::TERMINATE;
use crate::metrics::ReasonLabel;
use crate::stream::Stream;
use crate::threads;
use crate::transfer::OldServerIs;

/// Between two looks at what no descriptor tells: a session that was closed, a backend
/// that a prober has reached.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Before a session whose server has gone is tried again, doubled each time.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Between two dials of a backend that is waited for: first, and at the most.
const FIRST_PROBE: Duration = Duration::from_millis(20);
const MAX_PROBE: Duration = Duration::from_secs(1);

/// One backend's prober.
struct Probe {
    next: Instant,
    interval: Duration,
    under_way: Arc<AtomicBool>,
}

/// See the module.
pub(super) struct Keeper {
    holds: Arc<Holds>,
    held: Vec<Held>,
    probes: HashMap<BackendId, Probe>,
    /// Shared with each attempt to bring back a session that listens.
    listeners: Arc<()>,
}

/// What the sockets of a session say.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    client_left: bool,
    /// And nothing that is sent to it would arrive.
    client_reset: bool,
    server_speaks: bool,
}

impl Keeper {
    pub(super) fn new(holds: Arc<Holds>) -> Self {
        Self {
            holds,
            held: Vec::new(),
            probes: HashMap::new(),
            listeners: Arc::default(),
        }
    }

    pub(super) fn run(mut self) {
        loop {
            let seen = self.wait();
            let released = self.look(&seen);
            let now = Instant::now();
            self.take_arrived();
            self.act(&released, now);
            self.probe(now);
            let none_kept = self.held.is_empty();
            let awaited = self.awaits_listeners();
            if self.holds.settle(none_kept, awaited, now) {
                return;
            }
        }
    }

    fn take_arrived(&mut self) {
        self.held.append(&mut self.holds.book.lock().arrived);
    }

    /// Waits for a word of a peer, of a command, or for the next look.
    fn wait(&self) -> Vec<Seen> {
        let servers: Vec<_> = self
            .held
            .iter()
            .map(|held| held.transfer.server())
            .collect();
        let mut fds = vec![PollFd::new(&self.holds.wake, PollFlags::IN)];
        for (held, server) in self.held.iter().zip(&servers) {
            let ends = if held.client_watched {
                PollFlags::RDHUP
            } else {
                PollFlags::empty()
            };
            fds.push(PollFd::new(held.place.session.client().socket(), ends));
            let (words, end) = (PollFlags::IN | PollFlags::RDHUP, PollFlags::RDHUP);
            let socket = server.stream.socket();
            fds.push(match held.transfer.old_server() {
                OldServerIs::There => PollFd::new(socket, words),
                OldServerIs::Unread => PollFd::new(socket, end),
                // It would be ready for ever.  Something has to stand in its place, and
                // the wake-up never ends.
                OldServerIs::Gone => PollFd::new(&self.holds.wake, PollFlags::empty()),
            });
        }
        let timeout = Timespec::try_from(LOOK_INTERVAL).ok();
        // Interrupted, or without memory: then nothing is known this time.
        let _ = poll(&mut fds, timeout.as_ref());
        let mut count = [0; 8];
        let _ = rustix::io::read(self.holds.wake.as_fd(), &mut count);
        let reset = PollFlags::HUP | PollFlags::ERR;
        let ended = PollFlags::RDHUP | reset;
        fds.get(1..)
            .unwrap_or_default()
            .chunks_exact(2)
            .map(|pair| match pair {
                [client, server] => Seen {
                    client_left: client.revents().intersects(ended),
                    client_reset: client.revents().intersects(reset),
                    server_speaks: !server.revents().is_empty(),
                },
                _ => Seen::default(),
            })
            .collect()
    }

    /// Reads what the servers have said, and what commands want.
    fn look(&mut self, seen: &[Seen]) -> HashMap<BackendId, Instant> {
        let now = Instant::now();
        for (held, seen) in self.held.iter_mut().zip(seen) {
            if seen.client_reset {
                held.place.session.client_left(false);
            } else if seen.client_left {
                match client_end(held.place.session.client()) {
                    Some(ClientEnd { terminated }) => held.place.session.client_left(terminated),
                    // A request of it is still to be answered.
                    None => held.client_watched = false,
                }
            }
            if seen.server_speaks && !held.transfer.is_server_gone() {
                held.transfer.look(held.place.session.context());
                if held.transfer.is_server_gone() {
                    held.since = now;
                    held.next_attempt = now;
                }
            }
        }
        // One session's end is its own; the server has gone when none is left.
        let mut lives: HashMap<BackendId, bool> = HashMap::new();
        for held in &self.held {
            // One that is read no further says nothing of it.
            if held.transfer.old_server() != OldServerIs::Unread {
                *lives.entry(held.place.backend).or_default() |= !held.transfer.is_server_gone();
            }
        }
        let balancer = self.holds.connector.balancer();
        let is_unread = |held: &&mut Held| held.transfer.old_server() == OldServerIs::Unread;
        for held in self.held.iter_mut().filter(is_unread) {
            let backend = held.place.backend;
            if lives.get(&backend) == Some(&false) || !balancer.is_reachable(backend) {
                held.transfer.note_server_gone();
                held.since = now;
                held.next_attempt = now;
                lives.entry(backend).or_insert(false);
            }
        }
        let mut book = self.holds.book.lock();
        for (backend, hold) in &mut book.backends {
            if lives.get(backend) == Some(&false) {
                hold.gone.get_or_insert(now);
            }
        }
        let released = book.backends.iter();
        let released = released.filter_map(|(id, hold)| Some((*id, hold.released?)));
        released.collect()
    }

    fn act(&mut self, released: &HashMap<BackendId, Instant>, now: Instant) {
        let listeners_first = self.awaits_listeners();
        for held in std::mem::take(&mut self.held) {
            if let Some(held) = self.settle(held, released, now)
                && let Some(held) = self.bring_back(held, listeners_first, now)
            {
                self.held.push(held);
            }
        }
    }

    /// Lets a session go that need not be held any longer; returns it where it stays held.
    fn settle(
        &self,
        mut held: Held,
        released: &HashMap<BackendId, Instant>,
        now: Instant,
    ) -> Option<Held> {
        if let Some(closing) = held.transfer.closing() {
            held.transfer.abandon(closing);
            held.place.finish(Fate::Ended);
            return None;
        }
        let over = now >= held.until;
        let released = released.get(&held.place.backend);
        let let_go = over || released.is_some_and(|at| *at >= held.place.held);
        if let_go && !held.transfer.is_server_gone() {
            // Its end may have come since the last look, and nobody wants to go on there.
            held.transfer.look(held.place.session.context());
        }
        if let_go && !held.transfer.is_server_gone() {
            let text = match over {
                true => {
                    let mut book = self.holds.book.lock();
                    book.in_vain.insert(held.place.backend);
                    "hold is over, its server is still there"
                }
                false => RELEASED,
            };
            held.transfer.resume(ReasonLabel::Released, text);
            held.place.finish(Fate::Resumed);
            return None;
        }
        if over {
            let Held {
                transfer,
                place,
                patience,
                refused,
                ..
            } = held;
            if let Some(reason) = refused {
                let conn = place.session.name().conn;
                log::warn!(conn, reason; "no server took a held session");
            }
            let session = Arc::clone(&place.session);
            transfer.lose(Refusal::HoldOver(patience).into(), |lost| {
                session.lose(lost)
            });
            place.finish(Fate::Lost);
            return None;
        }
        Some(held)
    }

    /// Dials the backends that are waited for, those of one that has gone sooner than
    /// `health_interval` would.
    fn probe(&mut self, now: Instant) {
        let waited_for = self.held.iter().any(|held| {
            held.transfer.old_server() != OldServerIs::There
                || !self.holds.is_commanded(held.place.backend)
        });
        if !waited_for {
            self.probes
                .retain(|_, probe| probe.under_way.load(Ordering::SeqCst));
            return;
        }
        for target in self.holds.connector.balancer().active() {
            let probe = self.probes.entry(target.id).or_insert_with(|| Probe {
                next: now,
                interval: FIRST_PROBE,
                under_way: Arc::default(),
            });
            if now < probe.next || probe.under_way.swap(true, Ordering::SeqCst) {
                continue;
            }
            probe.next = now + probe.interval;
            probe.interval = (probe.interval * 2).min(MAX_PROBE);
            let under_way = Arc::clone(&probe.under_way);
            let holds = Arc::clone(&self.holds);
            let spawned = spawn_probe(holds, target, under_way);
            if let Err(error) = spawned {
                probe.under_way.store(false, Ordering::SeqCst);
                log::debug!(reason:% = error; "no thread to look at a backend");
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It panicked, or has nothing left to do: the next session gets another one.
        if thread::panicking() {
            self.holds.book.lock().keeper_runs = false;
        }
    }
}

/// How a client has left.
struct ClientEnd {
    /// With a Terminate.
    terminated: bool,
}

/// `None`: it has sent its last request and waits for the answer.
fn client_end(client: &Stream) -> Option<ClientEnd> {
    let mut last = [0; TERMINATE.len() + 1];
    match client.socket().peek_now(&mut last) {
        Ok(0) | Err(_) => Some(ClientEnd { terminated: false }),
        // What it has encrypted is a Terminate and TLS's own end: no client closes one
        // direction alone there.
        Ok(_) if client.is_encrypted() => Some(ClientEnd { terminated: true }),
        Ok(count) if last.get(..count) == Some(&TERMINATE) => Some(ClientEnd { terminated: true }),
        Ok(_) => None,
    }
}

fn spawn_probe(
    holds: Arc<Holds>,
    target: ProbeTarget,
    under_way: Arc<AtomicBool>,
) -> std::io::Result<()> {
    threads::spawn(format!("probe-{}", target.name), move || {
        holds.connector.probe(&target);
        under_way.store(false, Ordering::SeqCst);
        holds.wake();
    })
    .map(drop)
}
