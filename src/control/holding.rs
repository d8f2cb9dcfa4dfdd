//! `hold` and `release`: one server's restart under its sessions.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::json;

use super::commands::{
    ARRIVAL_LOOK, PROGRESS, Running, done, no_backend, not_done, not_moved_json, not_moved_table,
    placed_on, sessions_on, start_round,
};
use super::protocol::Done;
use crate::forwarder::Obstacle;
use crate::hold::HoldError;
use crate::metrics::ReasonLabel;
use crate::proxy_state::ProxyState;
use crate::round::{Aim, NotMoved, Round};

/// Captures and holds the sessions of a backend, each at its safe point.
pub(super) fn hold(running: &mut Running<'_>, name: &str, wait: Option<Duration>) -> Done {
    let state = running.state;
    let Some(backend) = state.connector.balancer().find(name) else {
        return no_backend(name);
    };
    let migration = state.config.read().migration.clone();
    if migration.hold.is_zero() {
        return not_done(HoldError::Off.to_string());
    }
    let now = Instant::now();
    let until = now + migration.hold;
    // Who is held first is held no longer than that either.
    let deadline = now + wait.unwrap_or(migration.wait).min(migration.hold);
    let already = match state.holds.begin(backend.id, &backend.name, until) {
        Ok(already) => already,
        Err(error) => return not_done(error.to_string()),
    };
    // What this command has not begun is another's to end.
    let give_up = |reason: &str| {
        if !already {
            state.holds.release(backend.id);
        }
        not_done(reason)
    };
    // Those that log in meanwhile come to a round of their own; nobody is asked twice
    // but who was too late.
    let mut asked = HashSet::new();
    let mut left = Vec::new();
    let arriving = loop {
        let mut sessions = sessions_on(state, name);
        sessions.retain(|session| !session.is_held() && asked.insert(session.name().conn));
        if sessions.is_empty() {
            // One that ends between the two counts is taken for a login until the next look.
            let arriving = placed_on(state, name).saturating_sub(sessions_on(state, name).len());
            if arriving == 0 || Instant::now() >= deadline {
                break arriving;
            }
            std::thread::sleep(ARRIVAL_LOOK);
            continue;
        }
        let rest = deadline.saturating_duration_since(Instant::now());
        let aim = Aim::Hold(backend.id);
        let Some(round) = start_round(running, sessions, aim, Some(rest)) else {
            return give_up("no round could be started");
        };
        // Behind the deadline the round takes its orders back; what is under way ends.
        if !wait_held(running, &round, deadline + migration.timeout) {
            // Whoever asked has gone before it was done, and nobody would release it.
            return give_up("its client has gone");
        }
        // A server that was slow once may be faster the next time.
        let there_is_time = Instant::now() < deadline;
        let (late, stay): (Vec<_>, Vec<_>) = round
            .not_moved()
            .into_iter()
            .partition(|session| session.label == ReasonLabel::Timeout && there_is_time);
        left.extend(stay);
        if !late.is_empty() {
            asked.retain(|conn| late.iter().all(|session| session.conn != *conn));
            std::thread::sleep(ARRIVAL_LOOK);
        }
    };
    // Who has left meanwhile stands in nobody's way.
    left.retain(|session: &NotMoved| session.label != ReasonLabel::SessionEnded);
    for session in sessions_on(state, name) {
        let (name, view) = (session.name(), session.view());
        let last = view
            .last_transfer
            .as_ref()
            .and_then(|last| last.reason.as_ref());
        // Who has said goodbye stands in nobody's way, nor who has ended just now.
        if view.forwarding.obstacle == Some(Obstacle::TerminateSent)
            || last.is_some_and(|reason| reason.label == ReasonLabel::SessionEnded)
        {
            continue;
        }
        if !session.is_held() && left.iter().all(|known| known.conn != name.conn) {
            let waits = || "it waits for its turn".to_owned();
            left.push(NotMoved {
                conn: name.conn,
                client: name.client.clone(),
                user: name.user.clone(),
                label: ReasonLabel::Worker,
                reason: view.cannot_move_because().unwrap_or_else(waits),
            });
        }
    }
    if !state.holds.is_commanded(backend.id) {
        return not_done(format!("backend {name} was released meanwhile"));
    }
    held(name, state.holds.held_on(backend.id), &left, arriving)
}

/// Waits until all of a round are held or stay, or until `deadline`; false: the client
/// has gone.
fn wait_held(running: &mut Running<'_>, round: &Round, deadline: Instant) -> bool {
    while !round.wait_held(deadline.min(Instant::now() + PROGRESS)) {
        if Instant::now() >= deadline {
            return true;
        }
        let view = round.view();
        let line = format!("{} of {} held", view.held, view.sessions);
        if !(running.progress)(line) {
            return false;
        }
    }
    true
}

fn held(name: &str, held: usize, left: &[NotMoved], arriving: usize) -> Done {
    let json = json!({
        "backend": name,
        "held": held,
        "not_held": not_moved_json(left),
        "logging_in": arriving,
    });
    if left.is_empty() && arriving > 0 {
        let text =
            format!("backend {name}: {held} sessions are held, {arriving} are logging in there\n");
        return done(1, text, json);
    }
    if left.is_empty() {
        let text = format!("backend {name}: {held} sessions are held\n");
        return done(0, text, json);
    }
    let text = format!(
        "backend {name}: {held} sessions are held, {} go on\n\n{}",
        left.len(),
        not_moved_table(left)
    );
    done(1, text, json)
}

/// Lets the sessions of a backend go on.
pub(super) fn release(state: &ProxyState, name: &str) -> Done {
    let in_file = state.connector.balancer().find(name);
    let Some(backend) = in_file.map_or_else(|| state.holds.named(name), |it| Some(it.id)) else {
        return no_backend(name);
    };
    let held = state.holds.held_on(backend);
    if !state.holds.release(backend) {
        return not_done(format!("backend {name} is not held"));
    }
    log::info!(backend = name, sessions = held; "hold released by command");
    let text = format!("backend {name} is released, {held} sessions were held\n");
    done(0, text, json!({ "backend": name, "sessions": held }))
}
