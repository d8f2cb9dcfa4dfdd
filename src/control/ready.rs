//! `ready`: a backend takes sessions again.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Order;
use super::commands::{Running, done, no_backend, not_done};
use super::protocol::Done;
use crate::balancer::BackendId;
use crate::config::BackendState;

/// How late a look may be: a machine under load.
const LATENESS: Duration = Duration::from_secs(1);

/// Lets a backend take sessions.  Where it has said that it is about to go, it is asked
/// anew: only what it says now stands against it.
pub(super) fn ready(running: &Running<'_>, name: &str) -> Done {
    let balancer = running.state.connector.balancer();
    let asked = Instant::now();
    if !balancer.set_state(name, BackendState::Active) {
        return no_backend(name);
    }
    log::info!(backend = name, state = "active"; "backend state set by command");
    if let Some(backend) = balancer.find(name)
        && balancer.says_leaving(backend.id).is_some()
    {
        look(running, backend.id);
        // It takes clients again where they wait for it.
        let _ = balancer.forget_signs(backend.id, asked);
        if balancer.says_leaving(backend.id).is_some() {
            return not_done(format!(
                "backend {name} says itself that it is about to go, and is taken when it does not"
            ));
        }
    }
    let json = json!({ "backend": name, "state": "active" });
    done(0, format!("backend {name} is active\n"), json)
}

/// Has a backend looked at; returns when that is over, or should be.
fn look(running: &Running<'_>, backend: BackendId) {
    let (over, looked) = crossbeam_channel::bounded(0);
    // A look that is under way comes first.
    let patience = running.state.config.read().connect_timeout * 2 + LATENESS;
    if running.orders.send(Order::Look { backend, over }).is_ok() {
        // Nothing is sent: the senders go when it is over.
        let _ = looked.recv_timeout(patience);
    }
}
