//! A client's life: connect, make state, work, check the state, begin anew when
//! its pod has died.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres_protocol::message::frontend;

use crate::board::{Board, Kind, Loss, Pulse};
use crate::wire::{self, Result, Trouble, Wire, wrong};

/// How many operations lie between two looks at the session's state.
const STATE_EVERY: u64 = 16;

/// One client; sessions come and go.
pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) kind: Kind,
    pub(crate) proxy: SocketAddr,
    pub(crate) board: Arc<Board>,
    pub(crate) pulse: Arc<Pulse>,
    /// Operations so far; part of what it asks, so that no two answers are alike.
    pub(crate) count: u64,
    /// What its account must show; two values where a commit's end is unknown.
    pub(crate) account: (u64, u64),
    session: u64,
    local: Option<SocketAddr>,
}

impl Client {
    pub(crate) fn new(number: usize, proxy: SocketAddr, board: &Arc<Board>) -> Self {
        Self {
            number,
            kind: Kind::of(number),
            proxy,
            board: Arc::clone(board),
            pulse: board.pulses.get(number).map(Arc::clone).unwrap_or_default(),
            count: 0,
            account: (0, 0),
            session: 0,
            local: None,
        }
    }

    /// Lives until the board says stop.
    pub(crate) fn live(&mut self) {
        while !self.board.stopping() {
            if let Err(trouble) = self.session() {
                self.judge(trouble);
                self.rest(100);
            }
        }
        self.pulse.idle();
    }

    /// One connection from its begin to its end.
    fn session(&mut self) -> Result<()> {
        self.session += 1;
        self.local = None;
        let mut wire = Wire::dial(self.proxy, &self.pulse)?;
        self.local = Some(wire.local);
        if self.kind == Kind::Leaver && fastrand::u8(..) < 16 {
            return self.leave_early(wire);
        }
        wire.login(&format!("{}-{}", self.kind.name(), self.number))?;
        self.board.count(self.kind, |tally| tally.sessions += 1);
        self.make_state(&mut wire)?;
        loop {
            if self.board.stopping() {
                self.check_state(&mut wire)?;
                return wire.terminate();
            }
            if self.count % STATE_EVERY == STATE_EVERY - 1 {
                self.check_state(&mut wire)?;
            }
            match self.operate(wire)? {
                Some(stays) => wire = stays,
                None => return Ok(()),
            }
        }
    }

    fn name(&self) -> String {
        format!("{}-{}-{}", self.kind.name(), self.number, self.session)
    }

    fn make_state(&mut self, wire: &mut Wire) -> Result<()> {
        let name = self.name();
        wire.run(&format!("SET application_name = '{name}'"), 'I')?;
        wire.send(|buffer| {
            wire::parse(buffer, "keep", &format!("SELECT '{name}:' || $1"))?;
            frontend::sync(buffer);
            Ok::<_, std::io::Error>(())
        })?;
        wire.answer()?
            .must_be("1", 'I', "Parse of a named statement")
    }

    /// The session is the same, wherever it is now.
    fn check_state(&mut self, wire: &mut Wire) -> Result<()> {
        let name = self.name();
        wire.ask("SHOW application_name", &name, 'I')?;
        let told = wire.parameters.get("application_name");
        if told != Some(&name) {
            return wrong(format!("ParameterStatus said {told:?} instead of {name}"));
        }
        let value = self.text();
        wire.send(|buffer| keep(buffer, &value))?;
        let answer = wire.answer()?;
        answer.must_be("2DC", 'I', "the kept statement")?;
        answer.must_have(&[&format!("{name}:{value}")], "the kept statement")
    }

    /// What the statement `keep` answers to `value`.
    pub(crate) fn kept(&self, value: &str) -> String {
        format!("{}:{value}", self.name())
    }

    /// A text that no other question of the soak has.
    pub(crate) fn text(&mut self) -> String {
        self.count += 1;
        format!("{}-{}-{}", self.kind.name(), self.number, self.count)
    }

    /// Counts an operation that began at `began` and was answered as it must be.
    pub(crate) fn done(&self, began: Instant) {
        let took = began.elapsed();
        self.board.count(self.kind, |tally| {
            tally.operations += 1;
            tally.longest = tally.longest.max(took);
        });
    }

    /// Pauses for up to `limit` milliseconds.
    pub(crate) fn rest(&self, limit: u64) {
        self.pulse.idle();
        let time = Duration::from_millis(fastrand::u64(0..=limit));
        self.board.pause(time);
        self.pulse.note("the next operation");
    }

    /// Whether an SQL error only says that another writer was there: then the
    /// write is done again.
    pub(crate) fn is_contention(&self, error: Option<&(String, String)>) -> bool {
        let again = error.is_some_and(|(code, _)| code == "40001" || code == "55P03");
        if again {
            self.board.count(self.kind, |tally| tally.retries += 1);
        }
        again
    }

    /// A session has ended otherwise than it wanted to.
    fn judge(&self, trouble: Trouble) {
        let cut = matches!(trouble, Trouble::Cut { inside: true, .. });
        let text = format!(
            "{} client {} ({}), waiting for {}: {trouble}",
            self.kind.name(),
            self.number,
            self.local
                .map_or("not connected".to_owned(), |local| local.to_string()),
            self.pulse.now().what,
        );
        match trouble {
            // No place for a newcomer at this moment, beside strangers.
            Trouble::Fatal { code, .. } if code == "53300" => {
                return self.board.count(self.kind, |tally| tally.retries += 1);
            }
            Trouble::Fatal { code, .. } if code == "08006" || code == "57P01" => {}
            Trouble::Cut { inside: true, .. } => {}
            _ => return self.board.error(Some(self.kind), &text),
        }
        self.board.count(self.kind, |tally| {
            tally.lost += 1;
            tally.cut += u64::from(cut);
        });
        self.board.lost(Loss {
            kind: self.kind,
            local: self.local,
            at: Instant::now(),
            text,
        });
    }
}

/// Bind, Execute and Sync for the statement that every session keeps.
pub(crate) fn keep(buffer: &mut bytes::BytesMut, value: &str) -> std::result::Result<(), String> {
    wire::bind(buffer, "keep", &[value])?;
    frontend::execute("", 0, buffer).map_err(|error| error.to_string())?;
    frontend::sync(buffer);
    Ok(())
}
