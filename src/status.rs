//! The proxy's state as data: backends, rounds, sessions.
//!
//! Its size is bounded by the file's backends and not by the sessions, but for the list
//! of all of them.  One form for the admin's `/status`, for `sqlproxy status --json` and for
//! `sqlproxy sessions --json`; its keys are a contract (README, "Status").

#[cfg(test)]
mod tests;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::config::BackendState;
use crate::forwarder::{Activity, Obstacle};
use crate::metrics::{BackendReading, Reading, ReasonLabel};
use crate::proxy_state::ProxyState;
use crate::recent_transfers::RecentTransfer;
use crate::round::RoundView;
use crate::session::{Session, SessionView};
use waiting::{Waiting, WaitingStatus, waiting};

/// Everything but the sessions one by one.  Moments are in RFC 3339, as in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Of this binary.
    pub version: String,
    /// When this was so.
    pub now: String,
    /// In the order of the file; those that have left it and still have sessions last.
    pub backends: Vec<BackendStatus>,
    /// All sessions.
    pub sessions: usize,
    /// `max_connections`.
    pub sessions_max: usize,
    /// The last ones, the newest first.
    pub rounds: Vec<RoundStatus>,
    /// Sessions that have been asked to move and have not yet.
    pub waiting: usize,
    /// What they wait for, and how many of them do.
    pub waiting_for: BTreeMap<String, usize>,
    /// The hundred that have waited longest, the longest first.
    pub waiting_sessions: Vec<WaitingStatus>,
    /// The last fifty, the newest first.
    pub transfers: Vec<TransferStatus>,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Its address as in the file.
    pub address: String,
    /// `active`, `draining`, or `removed` where the file has it no more.
    pub state: String,
    /// Whether it answered when it was looked at last.
    pub up: bool,
    /// Sessions on it.
    pub sessions: usize,
    /// Of these, held until a server comes back.
    pub held: usize,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RoundStatus {
    /// Its number.
    pub round: u64,
    /// What started it.
    pub trigger: String,
    /// Those it is about.
    pub sessions: usize,
    /// Moved.
    pub success: usize,
    /// Kept where they were.
    pub recoverable: usize,
    /// Lost.
    pub fatal: usize,
    /// Without an outcome yet.
    pub waiting: usize,
    /// Of these, held until a server takes them.
    pub held: usize,
    /// When it began.
    pub started: String,
    /// From then to its last outcome, or to now.
    pub elapsed_seconds: f64,
}

/// A transfer that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TransferStatus {
    /// When it ended.
    pub finished: String,
    /// The session's number, as in the log.
    pub conn: u64,
    /// From the startup packet, at most 128 characters.
    pub user: String,
    /// The client's address.
    pub client: String,
    /// Of which round.
    pub round: u64,
    /// `success`, `recoverable` or `fatal`.
    pub outcome: String,
    /// The backend that the session left, or stayed on.
    pub from: String,
    /// The backend that it moved to.
    pub to: Option<String>,
    /// Why it did not succeed.
    pub reason: Option<String>,
    /// From the order to the safe point, or to the giving up.
    pub waited_seconds: f64,
    /// How long the client was held.
    pub held_seconds: f64,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SessionStatus {
    /// The proxy's number of it, as in the log.
    pub conn: u64,
    /// From the startup packet, at most 128 characters.
    pub user: String,
    /// From the startup packet, at most 128 characters.
    pub database: String,
    /// `application_name`, at most 128 characters.
    pub application: String,
    /// The client's address.
    pub client: String,
    /// Whether the client has TLS.
    pub client_tls: bool,
    /// Whether its server has.
    pub server_tls: bool,
    /// Where it is.
    pub backend: String,
    /// `idle`, `active`, `transaction`, `waiting`, `moving` or `held`.
    pub state: String,
    /// Whether its state is known, so that its server's crash would not end it.
    pub captured: bool,
    /// Since it was opened.
    pub connected_seconds: f64,
    /// How long its transaction has been open.
    pub transaction_seconds: Option<f64>,
    /// How long it has been asked to move.
    pub waiting_seconds: Option<f64>,
    /// Forwarded to its servers.
    pub bytes_from_client: u64,
    /// Forwarded to its client.
    pub bytes_to_client: u64,
    /// Statements with a name that its client has prepared by protocol and not closed.
    pub prepared_statements: u64,
    /// How its last order to move ended.
    pub last_transfer: Option<LastTransferStatus>,
    /// What stands, or stood last, against its moving.
    pub cannot_move_because: Option<String>,
}

/// The end of an order to move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LastTransferStatus {
    /// Whose order it was.
    pub round: u64,
    /// `success` or `recoverable`.
    pub outcome: String,
    /// Why it did not succeed.
    pub reason: Option<String>,
    /// How long the client was held.
    pub held_seconds: f64,
}

impl Status {
    /// As JSON in one line.
    #[must_use]
    pub(crate) fn to_json(&self) -> String {
        // Strings and numbers only: it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The word for a backend's state.
#[must_use]
pub(crate) const fn state_word(state: Option<BackendState>) -> &'static str {
    match state {
        Some(BackendState::Active) => "active",
        Some(BackendState::Draining) => "draining",
        None => "removed",
    }
}

/// The state now.
#[must_use]
pub(crate) fn status(state: &ProxyState) -> Status {
    let backends = state.connector.balancer().view();
    let sessions = state.sessions.snapshot();
    let count = sessions.len();
    let Waiting {
        count: waiting,
        reasons,
        longest,
    } = waiting(sessions, Instant::now());
    let transfers = state.rounds.recent_transfers();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: moment(SystemTime::now()),
        backends: backends
            .into_iter()
            .map(|backend| BackendStatus {
                name: backend.name.to_string(),
                address: backend.address,
                state: state_word(backend.state).to_owned(),
                up: backend.up,
                sessions: backend.sessions,
                held: state.holds.held_on(backend.id),
            })
            .collect(),
        sessions: count,
        sessions_max: state.config.read().max_connections,
        rounds: state.rounds.views().iter().map(round_status).collect(),
        waiting,
        waiting_for: reasons,
        waiting_sessions: longest,
        transfers: transfers.iter().map(|last| transfer_status(last)).collect(),
    }
}

/// As the log has it.
fn moment(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at.max(SystemTime::UNIX_EPOCH)).to_string()
}

fn round_status(round: &RoundView) -> RoundStatus {
    RoundStatus {
        round: round.round,
        trigger: round.trigger.to_owned(),
        sessions: round.sessions,
        success: round.success,
        recoverable: round.recoverable,
        fatal: round.fatal,
        waiting: round.waiting,
        held: round.held,
        started: moment(round.started),
        elapsed_seconds: round.elapsed.as_secs_f64(),
    }
}

fn transfer_status(transfer: &RecentTransfer) -> TransferStatus {
    let session = &transfer.session;
    TransferStatus {
        finished: moment(transfer.finished),
        conn: session.conn,
        user: session.user.clone(),
        client: session.client.clone(),
        round: transfer.round,
        outcome: transfer.outcome.as_str().to_owned(),
        from: transfer.from.to_string(),
        to: transfer.to.as_deref().map(str::to_owned),
        reason: transfer.reason.clone(),
        waited_seconds: transfer.waited.as_secs_f64(),
        held_seconds: transfer.held.as_secs_f64(),
    }
}

/// The state now, in one line for the service manager.
#[must_use]
pub(crate) fn summary(state: &ProxyState) -> String {
    let backends = state.connector.balancer().view();
    let up = backends.iter().filter(|backend| backend.up).count();
    let (sessions, all) = (state.sessions.len(), backends.len());
    format!("{sessions} sessions, {up} of {all} backends up")
}

/// The sessions now, by number.
#[must_use]
pub(crate) fn sessions(sessions: &[Arc<Session>]) -> Vec<SessionStatus> {
    let now = Instant::now();
    sessions
        .iter()
        .map(|session| session_status(session.view(), now))
        .collect()
}

fn session_status(session: SessionView, now: Instant) -> SessionStatus {
    let seconds = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
    let cannot_move_because = session.cannot_move_because();
    let SessionView {
        name,
        application,
        forwarding,
        last_transfer,
        held,
        captured,
        ..
    } = session;
    let state = match forwarding.activity {
        _ if held => "held",
        Activity::Idle => "idle",
        Activity::Active => "active",
        Activity::Transaction => "transaction",
        Activity::Waiting => "waiting",
        Activity::Moving => "moving",
    };
    SessionStatus {
        conn: name.conn,
        user: name.user.clone(),
        database: name.database.clone(),
        application,
        client: name.client.clone(),
        client_tls: session.client_tls,
        server_tls: session.server_tls,
        backend: session.backend.to_string(),
        state: state.to_owned(),
        captured,
        connected_seconds: seconds(session.opened),
        transaction_seconds: forwarding.in_transaction.map(seconds),
        waiting_seconds: forwarding.ordered.map(seconds),
        cannot_move_because,
        bytes_from_client: forwarding.counts.from_client,
        bytes_to_client: forwarding.counts.to_client,
        prepared_statements: forwarding.counts.statements,
        last_transfer: last_transfer.map(|last| LastTransferStatus {
            round: last.round,
            outcome: last.outcome.as_str().to_owned(),
            reason: last.reason.map(|reason| reason.text),
            held_seconds: last.held.as_secs_f64(),
        }),
    }
}

/// The state now, for the metrics.
#[must_use]
pub(crate) fn reading(state: &ProxyState) -> Reading {
    let mut pending = BTreeMap::new();
    for session in state.sessions.snapshot() {
        let SessionView {
            backend,
            forwarding,
            ..
        } = session.view();
        if forwarding.ordered.is_some() {
            let label = forwarding
                .obstacle
                .map_or(ReasonLabel::Worker, Obstacle::label);
            *pending.entry((backend.to_string(), label)).or_default() += 1;
        }
    }
    let backends = state.connector.balancer().view();
    let held = backends
        .iter()
        .map(|backend| state.holds.held_on(backend.id));
    let sessions_held = held.sum();
    Reading {
        backends: backends
            .into_iter()
            .map(|backend| BackendReading {
                name: backend.name.to_string(),
                sessions: backend.sessions,
                up: backend.up,
                draining: backend.state != Some(BackendState::Active),
            })
            .collect(),
        sessions_max: state.config.read().max_connections,
        sessions_held,
        pending,
    }
}
