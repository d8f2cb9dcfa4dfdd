//! What becomes of the proxy's state in JSON.

#![allow(
    clippy::indexing_slicing,
    reason = "a missing member is the test's failure"
)]

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::metrics::TransferOutcome;
use crate::recent_transfers::RecentTransfers;
use crate::session_name::SessionName;

fn session_name(user: &str) -> Arc<SessionName> {
    Arc::new(SessionName {
        conn: 7,
        client: "192.0.2.1:40000".to_owned(),
        user: user.to_owned(),
        database: "defaultdb".to_owned(),
    })
}

fn failed(user: &str, reason: &str) -> RecentTransfer {
    RecentTransfer {
        session: session_name(user),
        round: 3,
        outcome: TransferOutcome::Recoverable,
        from: "pod-a".into(),
        to: None,
        reason: Some(reason.to_owned()),
        waited: Duration::from_millis(60_000),
        held: Duration::from_millis(12),
        finished: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_408_794_123),
    }
}

fn json_of(transfer: &RecentTransfer) -> Value {
    serde_json::to_value(transfer_status(transfer)).unwrap_or_default()
}

#[test]
fn a_transfer_says_what_its_log_line_said() {
    let user = "<img src=x onerror=\"alert(1)\">\u{202e}\u{1}";
    let expected = json!({
        "finished": "2026-11-23T04:39:54.123Z",
        "conn": 7,
        "user": user,
        "client": "192.0.2.1:40000",
        "round": 3,
        "outcome": "recoverable",
        "from": "pod-a",
        "to": null,
        "reason": "open transaction (waited 60.0s)",
        "waited_seconds": 60.0,
        "held_seconds": 0.012,
    });
    let transfer = failed(user, "open transaction (waited 60.0s)");
    assert_eq!(json_of(&transfer), expected);
    let moved = RecentTransfer {
        outcome: TransferOutcome::Success,
        to: Some("pod-b".into()),
        reason: None,
        ..transfer
    };
    let json = json_of(&moved);
    assert_eq!(json["outcome"], "success");
    assert_eq!(json["to"], "pod-b");
    assert_eq!(json["reason"], Value::Null);
}

#[test]
fn a_round_says_how_long_it_took() {
    let round = RoundView {
        round: 3,
        trigger: "SIGUSR1",
        sessions: 10,
        success: 6,
        recoverable: 1,
        fatal: 0,
        waiting: 3,
        held: 2,
        started: SystemTime::UNIX_EPOCH,
        elapsed: Duration::from_millis(1500),
    };
    let expected = json!({
        "round": 3, "trigger": "SIGUSR1", "sessions": 10, "success": 6, "recoverable": 1,
        "fatal": 0, "waiting": 3, "held": 2, "started": "1970-01-01T00:00:00.000Z",
        "elapsed_seconds": 1.5,
    });
    let json = serde_json::to_value(round_status(&round)).unwrap_or_default();
    assert_eq!(json, expected);
}

/// Names and reasons of the largest size, each character of them six in JSON.
#[test]
fn the_longest_names_and_reasons_make_no_long_answer() {
    let recent = RecentTransfers::default();
    let name = crate::error::shown(&"\u{1}".repeat(10_000));
    for _ in 0..60 {
        recent.note(failed(&name, &"\u{1}".repeat(1_000_000)));
    }
    let transfers = recent.newest_first();
    let bytes: usize = transfers
        .iter()
        .map(|transfer| json_of(transfer).to_string().len())
        .sum();
    assert!(bytes < 200 * 1024, "{bytes}");
}
