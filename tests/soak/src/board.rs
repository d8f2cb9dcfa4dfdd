//! Where clients stand and what they have done, for everybody to see.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// What kinds of clients there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A question, its answer, a short pause.
    PingPong,
    /// Extended batches and queries, the next ones sent before the answers come.
    Pipelined,
    /// Transactions, most of them reading.
    Transaction,
    /// COPY in, out, and in that fails.
    Copy,
    /// Queries that run for seconds or have long results.
    Long,
    /// Queries that end by a cancel.
    Cancel,
    /// Sessions that end all of a sudden, in every way.
    Leaver,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::PingPong,
        Self::Pipelined,
        Self::Transaction,
        Self::Copy,
        Self::Long,
        Self::Cancel,
        Self::Leaver,
    ];

    /// The kind of the client with this number: of twenty, six play ping-pong and
    /// four have transactions, since those are what applications do.
    pub(crate) fn of(number: usize) -> Self {
        match number % 20 {
            0 | 3 | 6 | 9 | 12 | 15 => Self::PingPong,
            1 | 11 => Self::Pipelined,
            2 | 7 | 13 | 17 => Self::Transaction,
            4 | 14 => Self::Copy,
            5 | 16 => Self::Long,
            8 | 18 => Self::Cancel,
            _ => Self::Leaver,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PingPong => "ping-pong",
            Self::Pipelined => "pipelined",
            Self::Transaction => "transaction",
            Self::Copy => "copy",
            Self::Long => "long",
            Self::Cancel => "cancel",
            Self::Leaver => "leaver",
        }
    }
}

/// A client's heartbeat: what it waits for, and since when.
#[derive(Default)]
pub(crate) struct Pulse {
    now: Mutex<Now>,
}

/// Where a client stands.
#[derive(Clone, Default)]
pub(crate) struct Now {
    /// What it waits for.
    pub(crate) what: Cow<'static, str>,
    /// `None`: it waits for nothing, but pauses by itself or has ended.
    pub(crate) since: Option<Instant>,
    /// Its end of the connection.
    pub(crate) local: Option<SocketAddr>,
}

impl Pulse {
    /// It goes on, and waits for `what` from here on.
    pub(crate) fn note(&self, what: impl Into<Cow<'static, str>>) {
        let mut now = self.now.lock();
        now.what = what.into();
        now.since = Some(Instant::now());
    }

    pub(crate) fn connected(&self, local: SocketAddr) {
        self.now.lock().local = Some(local);
    }

    /// It waits for nothing.
    pub(crate) fn idle(&self) {
        self.now.lock().since = None;
    }

    pub(crate) fn now(&self) -> Now {
        self.now.lock().clone()
    }

    /// For how long it has been waiting.
    pub(crate) fn waiting(&self) -> Option<Duration> {
        self.now.lock().since.map(|since| since.elapsed())
    }
}

/// What the clients of one kind have done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) operations: u64,
    pub(crate) sessions: u64,
    /// Sessions that ended with their pod.
    pub(crate) lost: u64,
    /// Of these, by the end of the connection inside a message, where no
    /// ErrorResponse can stand.
    pub(crate) cut: u64,
    /// Writes done again after 40001 or 55P03.
    pub(crate) retries: u64,
    pub(crate) errors: u64,
    pub(crate) longest: Duration,
}

/// A session that a client lost; the log has to say why.
pub(crate) struct Loss {
    pub(crate) kind: Kind,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) at: Instant,
    /// Who, and how it ended.
    pub(crate) text: String,
}

/// Shared by all.
pub(crate) struct Board {
    pub(crate) started: Instant,
    pub(crate) pulses: Vec<Arc<Pulse>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stop: bool,
    running: usize,
    tallies: [Tally; Kind::ALL.len()],
    losses: Vec<Loss>,
    errors: Vec<String>,
}

/// More errors than this are counted, but not kept: the first ones tell.
const KEPT_ERRORS: usize = 40;

impl Board {
    pub(crate) fn new(clients: usize) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            pulses: (0..clients).map(|_| Arc::default()).collect(),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    // ---- for clients -------------------------------------------------------

    pub(crate) fn stopping(&self) -> bool {
        self.state.lock().stop
    }

    /// Waits this long, or until everybody is to stop; tells whether they are.
    pub(crate) fn pause(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut state = self.state.lock();
        while !state.stop {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.stop
    }

    /// Changes the tally of a kind.
    pub(crate) fn count(&self, kind: Kind, change: impl FnOnce(&mut Tally)) {
        if let Some(tally) = self.state.lock().tallies.get_mut(kind as usize) {
            change(tally);
        }
    }

    /// A client's session ended with what may be its pod's end.
    pub(crate) fn lost(&self, loss: Loss) {
        self.state.lock().losses.push(loss);
    }

    /// Something that must not be; shown at once.
    pub(crate) fn error(&self, kind: Option<Kind>, text: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let line = format!("{seconds:8.1}s  {text}");
        let mut state = self.state.lock();
        if let Some(tally) = kind.and_then(|kind| state.tallies.get_mut(kind as usize)) {
            tally.errors += 1;
        }
        if state.errors.len() < KEPT_ERRORS || text.contains("stands still") {
            println!("ERROR {line}");
        }
        state.errors.push(line);
    }

    // ---- for the run -------------------------------------------------------

    /// Lets clients begin, as many as `running`.
    pub(crate) fn open(&self, running: usize) {
        let mut state = self.state.lock();
        state.stop = false;
        state.running = running;
    }

    /// Asks all to stop.
    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// A client has stopped.
    pub(crate) fn stopped(&self) {
        self.state.lock().running -= 1;
    }

    pub(crate) fn running(&self) -> usize {
        self.state.lock().running
    }

    pub(crate) fn take_losses(&self) -> Vec<Loss> {
        std::mem::take(&mut self.state.lock().losses)
    }

    pub(crate) fn tally(&self, kind: Kind) -> Tally {
        let state = self.state.lock();
        state
            .tallies
            .get(kind as usize)
            .copied()
            .unwrap_or_default()
    }

    /// How many errors there were.
    pub(crate) fn errors(&self) -> usize {
        self.state.lock().errors.len()
    }
}
