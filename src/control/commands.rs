//! What each command does.  A further one is a variant of [`Command`], a line in
//! [`run`] and a subcommand in `arguments`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use serde_json::{Value, json};

use super::holding;
use super::protocol::{Command, Done, bounded};
use super::ready;
use super::table::{printable, table};
use super::{Order, Reloaded};
use crate::config::BackendState;
use crate::drain;
use crate::proxy_state::ProxyState;
use crate::round::{Aim, NotMoved, Round};
use crate::session::Session;
use crate::status::{SessionStatus, sessions, status};

/// Between two progress lines.
pub(super) const PROGRESS: Duration = Duration::from_secs(1);
/// Between two looks at a drain.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// Between two looks at logins and moves that are under way to a draining backend.
pub(super) const ARRIVAL_LOOK: Duration = Duration::from_millis(50);

/// What a command works with.
pub(super) struct Running<'a> {
    pub(super) state: &'a Arc<ProxyState>,
    /// To the server's own thread.
    pub(super) orders: &'a Sender<Order>,
    /// Tells the client that it goes on; false: the client has gone.
    pub(super) progress: &'a mut dyn FnMut(String) -> bool,
}

/// Carries a command out.
pub(super) fn run(command: Command, running: &mut Running<'_>) -> Done {
    match command {
        Command::Status => show_status(running.state),
        Command::Sessions { backend, waiting } => {
            show_sessions(running.state, backend.as_deref(), waiting)
        }
        Command::Migrate {
            backend,
            conn,
            wait,
        } => migrate(running, backend.as_deref(), conn, bounded(wait)),
        Command::Drain { name, wait } => drain(running, &name, bounded(wait)),
        Command::Ready { name } => ready::ready(running, &name),
        Command::Hold { name, wait } => holding::hold(running, &name, bounded(wait)),
        Command::Release { name } => holding::release(running.state, &name),
        Command::Kill { conn } => kill(running.state, conn),
        Command::Reload => reload(running.orders),
    }
}

pub(super) fn done(code: u8, text: String, json: Value) -> Done {
    Done { code, text, json }
}

pub(super) fn not_done(reason: impl Into<String>) -> Done {
    let reason = reason.into();
    done(1, format!("{reason}\n"), json!({ "error": reason }))
}

fn show_status(state: &ProxyState) -> Done {
    let status = status(state);
    let backends: Vec<_> = status
        .backends
        .iter()
        .map(|backend| {
            vec![
                backend.name.clone(),
                backend.address.clone(),
                backend.state.clone(),
                if backend.up { "up" } else { "down" }.to_owned(),
                backend.sessions.to_string(),
                backend.held.to_string(),
            ]
        })
        .collect();
    let heads = ["BACKEND", "ADDRESS", "STATE", "UP", "SESSIONS", "HELD"];
    let mut text = format!(
        "sqlproxy {}: {} of {} sessions\n\n{}",
        status.version,
        status.sessions,
        status.sessions_max,
        table(&heads, &backends)
    );
    let rounds: Vec<_> = status
        .rounds
        .iter()
        .map(|round| {
            let counts = [
                round.sessions,
                round.success,
                round.recoverable,
                round.fatal,
                round.waiting,
            ];
            let mut row = vec![round.round.to_string(), round.trigger.clone()];
            row.extend(counts.map(|count| count.to_string()));
            row
        })
        .collect();
    if !rounds.is_empty() {
        let heads = [
            "ROUND",
            "TRIGGER",
            "SESSIONS",
            "SUCCESS",
            "RECOVERABLE",
            "FATAL",
            "WAITING",
        ];
        text.push('\n');
        text.push_str(&table(&heads, &rounds));
    }
    let json = serde_json::to_value(&status).unwrap_or_default();
    done(0, text, json)
}

fn show_sessions(state: &ProxyState, backend: Option<&str>, waiting: bool) -> Done {
    if let Some(unknown) = backend.filter(|name| !has_backend(state, name)) {
        return no_backend(unknown);
    }
    let mut found = sessions(&state.sessions.snapshot());
    found.retain(|session| {
        let here = backend.is_none_or(|name| session.backend == name);
        here && (!waiting || session.waiting_seconds.is_some())
    });
    let rows: Vec<_> = found.iter().map(session_row).collect();
    let heads = [
        "CONN",
        "USER",
        "DATABASE",
        "CLIENT",
        "BACKEND",
        "STATE",
        "SINCE",
        "CANNOT MOVE BECAUSE",
    ];
    let json = serde_json::to_value(&found).unwrap_or_default();
    done(0, table(&heads, &rows), json)
}

fn session_row(session: &SessionStatus) -> Vec<String> {
    let since = session
        .transaction_seconds
        .or(session.waiting_seconds)
        .unwrap_or(session.connected_seconds);
    vec![
        session.conn.to_string(),
        printable(&session.user, 16),
        printable(&session.database, 12),
        session.client.clone(),
        printable(&session.backend, 12),
        session.state.clone(),
        age(since),
        session.cannot_move_because.clone().unwrap_or_default(),
    ]
}

/// In the largest unit that it has two of.
fn age(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0}s"),
        s if s < 7200.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

fn has_backend(state: &ProxyState, name: &str) -> bool {
    let backends = state.connector.balancer().view();
    backends.iter().any(|backend| &*backend.name == name)
}

pub(super) fn no_backend(name: &str) -> Done {
    not_done(format!("there is no backend {:?}", printable(name, 63)))
}

pub(super) fn sessions_on(state: &ProxyState, backend: &str) -> Vec<Arc<Session>> {
    let mut found = state.sessions.snapshot();
    found.retain(|session| &*session.backend_name() == backend);
    found
}

fn migrate(
    running: &mut Running<'_>,
    backend: Option<&str>,
    conn: Option<u64>,
    wait: Option<Duration>,
) -> Done {
    let state = running.state;
    if let Some(unknown) = backend.filter(|name| !has_backend(state, name)) {
        return no_backend(unknown);
    }
    let mut chosen = match backend {
        Some(name) => sessions_on(state, name),
        None => state.sessions.snapshot(),
    };
    if let Some(conn) = conn {
        chosen.retain(|session| session.name().conn == conn);
        if chosen.is_empty() {
            return not_done(format!("there is no session {conn}"));
        }
    }
    match start_round(running, chosen, Aim::MoveAll, wait) {
        Some(round) => {
            wait_round(running, &round, None);
            round_done(&round)
        }
        None => not_done("no round could be started"),
    }
}

pub(super) fn start_round(
    running: &Running<'_>,
    sessions: Vec<Arc<Session>>,
    aim: Aim,
    wait: Option<Duration>,
) -> Option<Arc<Round>> {
    let (reply, round) = crossbeam_channel::bounded(1);
    let order = Order::Migrate {
        sessions,
        aim,
        wait,
        reply,
    };
    running.orders.send(order).ok()?;
    // The sender goes where the proxy ends.
    round.recv().ok().flatten()
}

/// Waits for a round's end, or until `deadline`, and tells how it goes.
fn wait_round(running: &mut Running<'_>, round: &Round, deadline: Option<Instant>) {
    loop {
        let look = Instant::now() + PROGRESS;
        let until = deadline.map_or(look, |deadline| deadline.min(look));
        if round.wait_done(until) || deadline.is_some_and(|at| Instant::now() >= at) {
            return;
        }
        let view = round.view();
        let line = format!(
            "round {}: {} of {} done, {} waiting",
            view.round,
            view.sessions - view.waiting,
            view.sessions,
            view.waiting
        );
        if !(running.progress)(line) {
            return;
        }
    }
}

fn round_done(round: &Round) -> Done {
    let view = round.view();
    let left = round.not_moved();
    let mut text = format!(
        "round {}: {} sessions, {} moved, {} stayed, {} lost\n",
        view.round, view.sessions, view.success, view.recoverable, view.fatal
    );
    if !left.is_empty() {
        text.push('\n');
        text.push_str(&not_moved_table(&left));
    }
    let json = json!({
        "round": view.round,
        "sessions": view.sessions,
        "success": view.success,
        "recoverable": view.recoverable,
        "fatal": view.fatal,
        "waiting": view.waiting,
        "not_moved": not_moved_json(&left),
    });
    done(u8::from(view.success < view.sessions), text, json)
}

pub(super) fn not_moved_table(left: &[NotMoved]) -> String {
    let rows: Vec<_> = left
        .iter()
        .map(|session| {
            vec![
                session.conn.to_string(),
                session.client.clone(),
                session.user.clone(),
                session.reason.clone(),
            ]
        })
        .collect();
    table(&["CONN", "CLIENT", "USER", "REASON"], &rows)
}

pub(super) fn not_moved_json(left: &[NotMoved]) -> Value {
    left.iter()
        .map(|session| {
            json!({
                "conn": session.conn,
                "client": session.client,
                "user": session.user,
                "reason": session.reason,
            })
        })
        .collect()
}

fn drain(running: &mut Running<'_>, name: &str, wait: Option<Duration>) -> Done {
    let state = running.state;
    let balancer = state.connector.balancer();
    if !balancer.set_state(name, BackendState::Draining) {
        return no_backend(name);
    }
    log::info!(backend = name, state = "draining"; "backend state set by command");
    if let Err(error) = drain::start(state, "command", false) {
        return not_done(format!("no thread for the drain: {error}"));
    }
    let wait = wait.unwrap_or_else(|| state.config.read().migration.wait);
    let deadline = Instant::now() + wait;
    let mut next_line = Instant::now() + PROGRESS;
    loop {
        // Logins and moves on their way there count as well.
        let placed = placed_on(state, name);
        if placed == 0 {
            let text = format!("backend {name} is drained\n");
            let json = json!({ "backend": name, "drained": true, "sessions": 0 });
            return done(0, text, json);
        }
        let now = Instant::now();
        if now >= deadline {
            return not_drained(name, &sessions(&sessions_on(state, name)), placed);
        }
        if now >= next_line {
            next_line = now + PROGRESS;
            if !(running.progress)(format!("{placed} sessions left on {name}")) {
                return not_done("its client has gone");
            }
        }
        std::thread::sleep(DRAIN_LOOK.min(deadline - now));
    }
}

/// Sessions on a backend, and logins and moves on their way there.
pub(super) fn placed_on(state: &ProxyState, name: &str) -> usize {
    let backends = state.connector.balancer().view();
    let named = backends.iter().filter(|backend| &*backend.name == name);
    named.map(|backend| backend.sessions).sum()
}

fn not_drained(name: &str, left: &[SessionStatus], placed: usize) -> Done {
    let rows: Vec<_> = left.iter().map(session_row).collect();
    let heads = [
        "CONN",
        "USER",
        "DATABASE",
        "CLIENT",
        "BACKEND",
        "STATE",
        "SINCE",
        "CANNOT MOVE BECAUSE",
    ];
    let arriving = placed.saturating_sub(left.len());
    let mut text = format!(
        "backend {name} is not drained, {} sessions are left",
        left.len()
    );
    if arriving > 0 {
        text.push_str(&format!(", {arriving} logins or moves are under way there"));
    }
    text.push('\n');
    if !left.is_empty() {
        text.push_str(&format!("\n{}", table(&heads, &rows)));
    }
    let json = json!({
        "backend": name,
        "drained": false,
        "sessions": left.len(),
        "arriving": arriving,
        "left": serde_json::to_value(left).unwrap_or_default(),
    });
    done(1, text, json)
}

fn kill(state: &ProxyState, conn: u64) -> Done {
    let found = state.sessions.snapshot();
    let Some(session) = found.iter().find(|session| session.name().conn == conn) else {
        return not_done(format!("there is no session {conn}"));
    };
    session.kill();
    done(
        0,
        format!("session {conn} is ended\n"),
        json!({ "conn": conn }),
    )
}

fn reload(orders: &Sender<Order>) -> Done {
    let (reply, result) = crossbeam_channel::bounded(1);
    let reloaded = match orders.send(Order::Reload { reply }) {
        Ok(()) => result.recv(),
        Err(_) => return not_done("sqlproxy is shutting down"),
    };
    match reloaded {
        Ok(Ok(Reloaded { changed, later })) => {
            let mut text = match changed.as_slice() {
                [] => "configuration reloaded, it says what it said before\n".to_owned(),
                changed => format!("configuration reloaded: {}\n", changed.join(", ")),
            };
            for what in &later {
                text.push_str(&format!("note: {what}\n"));
            }
            done(
                0,
                text,
                json!({ "reloaded": true, "changed": changed, "notes": later }),
            )
        }
        Ok(Err(reason)) => not_done(format!("nothing changed: {reason}")),
        Err(_) => not_done("sqlproxy is shutting down"),
    }
}
