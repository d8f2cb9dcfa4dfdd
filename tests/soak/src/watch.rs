//! Reads the proxy's log along: counts rounds, transfers and their reasons, and
//! holds every loss against the outages of the pods.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use demo::log_line::Line;

use crate::board::{Board, Loss};
use crate::pods::Outages;

/// How long the log may take to tell of what a client has seen.
const LOG_DELAY: Duration = Duration::from_secs(10);
/// Lines kept for the case that something stands still.
const KEPT_LINES: usize = 5000;

/// How transfers ended.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Transfers {
    pub(crate) success: u64,
    pub(crate) recoverable: u64,
    pub(crate) fatal: u64,
}

/// What the log has told.
pub(crate) struct Watch {
    /// Refused logins are theirs; what clients of our own meet, these tell themselves.
    strangers: bool,
    board: Arc<Board>,
    outages: Arc<Outages>,
    pub(crate) rounds: u64,
    pub(crate) transfers: Transfers,
    pub(crate) longest_block_ms: f64,
    /// Outcome and reason, numbers taken out.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// Why sessions were closed.
    pub(crate) ends: BTreeMap<String, u64>,
    pub(crate) warnings: BTreeMap<String, u64>,
    /// By the client's address: sessions that ended for the server's sake.
    ended: HashMap<String, Instant>,
    /// Seen by clients, not yet found in the log.
    losses: Vec<Loss>,
    recent: VecDeque<String>,
    /// A copy of everything.
    log: Option<BufWriter<File>>,
}

impl Watch {
    pub(crate) fn new(
        board: &Arc<Board>,
        outages: &Arc<Outages>,
        log: Option<File>,
        strangers: bool,
    ) -> Self {
        Self {
            strangers,
            board: Arc::clone(board),
            outages: Arc::clone(outages),
            rounds: 0,
            transfers: Transfers::default(),
            longest_block_ms: 0.0,
            reasons: BTreeMap::new(),
            ends: BTreeMap::new(),
            warnings: BTreeMap::new(),
            ended: HashMap::new(),
            losses: Vec::new(),
            recent: VecDeque::new(),
            log: log.map(BufWriter::new),
        }
    }

    /// Takes one line.
    pub(crate) fn line(&mut self, line: &str) {
        // A full disk spoils the copy, not the run.
        let _ = self.log.as_mut().map(|log| writeln!(log, "{line}"));
        if self.recent.len() == KEPT_LINES {
            self.recent.pop_front();
        }
        self.recent.push_back(line.to_owned());
        if line.contains("panicked") || line.contains(" ERROR ") {
            self.board.error(None, &format!("the proxy logs: {line}"));
        }
        if let Some((_, warning)) = line.split_once(" WARN ") {
            *self.warnings.entry(without_numbers(warning)).or_default() += 1;
        }
        let line = Line::parse(line);
        match line.event.as_str() {
            "transfer finished" => self.transfer(&line),
            "migration round finished" => self.round(&line),
            "session closed" => self.closed(&line),
            "connection refused" | "login refused by server" => self.refused(&line, true),
            "connection closed before a session" => self.refused(&line, false),
            _ => {}
        }
    }

    fn transfer(&mut self, line: &Line) {
        let outcome = line.value("outcome").unwrap_or_default();
        match outcome {
            "success" => self.transfers.success += 1,
            "recoverable" => self.transfers.recoverable += 1,
            "fatal" => {
                self.transfers.fatal += 1;
                let from = line.value("from").unwrap_or_default();
                if !self.outages.explain(from, Instant::now()) {
                    let text = format!("fatal, but {from} was not killed: {}", line.raw);
                    self.board.error(None, &text);
                }
            }
            _ => self
                .board
                .error(None, &format!("an unknown outcome: {}", line.raw)),
        }
        if let Some(reason) = line.value("reason") {
            let reason = format!("{outcome}: {}", without_numbers(reason));
            *self.reasons.entry(reason).or_default() += 1;
        }
        let blocked = line.value("blocked_ms").and_then(|text| text.parse().ok());
        self.longest_block_ms = self.longest_block_ms.max(blocked.unwrap_or(0.0));
    }

    fn round(&mut self, line: &Line) {
        self.rounds += 1;
        let number = |key| line.value(key)?.parse::<u64>().ok();
        let outcomes = ["success", "recoverable", "fatal"].map(number);
        let sum = outcomes.iter().copied().sum::<Option<u64>>();
        if sum.is_none() || sum != number("sessions") {
            self.board
                .error(None, &format!("a round that does not add up: {}", line.raw));
        }
    }

    fn closed(&mut self, line: &Line) {
        let reason = line.value("reason").unwrap_or_default();
        *self.ends.entry(without_numbers(reason)).or_default() += 1;
        if !reason.starts_with("server") {
            return;
        }
        let pod = line.value("backend").unwrap_or_default();
        if !self.outages.explain(pod, Instant::now()) {
            let text = format!("a session was lost, but {pod} was not killed: {}", line.raw);
            self.board.error(None, &text);
        }
        self.note_end(line);
    }

    /// A login that came to nothing: explained by any pod's end, since it may
    /// have been tried on several.
    fn refused(&mut self, line: &Line, told: bool) {
        let reason = line.value("reason").unwrap_or_default();
        *self
            .ends
            .entry(format!("at login: {}", without_numbers(reason)))
            .or_default() += 1;
        if told && !self.strangers && !self.outages.explain_any(Instant::now()) {
            self.board
                .error(None, &format!("a login failed: {}", line.raw));
        }
        self.note_end(line);
    }

    fn note_end(&mut self, line: &Line) {
        if let Some(client) = line.value("client") {
            self.ended.insert(client.to_owned(), Instant::now());
        }
    }

    /// Holds what clients have lost against what the log says.
    pub(crate) fn check_losses(&mut self) {
        self.losses.extend(self.board.take_losses());
        let ended = &mut self.ended;
        let (late, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.losses)
            .into_iter()
            .filter(|loss| {
                let local = loss.local.map(|local| local.to_string());
                local.is_none_or(|local| ended.remove(&local).is_none())
            })
            .partition(|loss| loss.at.elapsed() > LOG_DELAY);
        self.losses = waiting;
        for loss in late {
            let text = format!("the log does not tell of this end: {}", loss.text);
            self.board.error(Some(loss.kind), &text);
        }
        // Those whose clients left at the same moment.
        self.ended.retain(|_, at| at.elapsed() < LOG_DELAY * 6);
    }

    /// Losses that the log has still to explain.
    pub(crate) fn open_losses(&self) -> usize {
        self.losses.len()
    }

    /// The session of the client at `local`, by the log.
    pub(crate) fn conn_of(&self, local: &str) -> Option<String> {
        let client = format!(" client={local} ");
        let mut lines = self.recent.iter().rev();
        let line = lines.find(|line| line.contains(&client))?;
        Line::parse(line).value("conn").map(str::to_owned)
    }

    /// The last lines that speak of that session.
    pub(crate) fn lines_of(&self, conn: &str) -> Vec<&str> {
        let key = format!(" conn={conn} ");
        let lines = self.recent.iter().rev().filter(|line| line.contains(&key));
        lines.take(6).map(String::as_str).collect()
    }
}

/// A text in which figures do not tell two lines of a kind apart.
fn without_numbers(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if !character.is_ascii_digit() {
            plain.push(character);
        } else if !plain.ends_with('#') {
            plain.push('#');
        }
    }
    plain.replace("#.#", "#").replace("pod-#", "POD")
}
