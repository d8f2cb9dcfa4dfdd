//! Each name with what moves it, and the invariant under load.
#![allow(
    clippy::unwrap_used,
    reason = "a failed expectation is the test's failure"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

fn value(text: &str, name: &str) -> f64 {
    let start = format!("{name} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("{name} is missing from:\n{text}"))
        .parse()
        .unwrap()
}

#[test]
fn every_event_counts_under_its_own_name() {
    let table = [
        (Event::Accepted, "proxy_sql_accepted_conns"),
        (Event::Successful, "proxy_sql_successful_conns"),
        (
            Event::AuthenticationFailure,
            "proxy_sql_authentication_failures",
        ),
        (Event::Routing, "proxy_err_routing"),
        (Event::BackendDown, "proxy_err_backend_down"),
        (Event::BackendDisconnect, "proxy_err_backend_disconnect"),
        (Event::ClientDisconnect, "proxy_err_client_disconnect"),
        (Event::Refused, "proxy_err_refused_conn"),
        (Event::DialRetry, "proxy_dial_tenant_retries"),
        (Event::RebalanceRequested, "proxy_balancer_rebalance_total"),
    ];
    let metrics = Metrics::new();
    for (count, (event, _)) in (1..).zip(table) {
        for _ in 0..count {
            metrics.count(event);
        }
    }
    let text = metrics.encode(&Reading::default());
    for (count, (_, name)) in (1_u32..).zip(table) {
        assert_eq!(value(&text, name), f64::from(count), "{name}");
        assert!(text.contains(&format!("# TYPE {name} counter\n")), "{name}");
    }
}

#[test]
fn a_level_lasts_as_long_as_its_guard() {
    let table = [
        (Gauge::SqlConns, "proxy_sql_conns"),
        (Gauge::RebalanceQueued, "proxy_balancer_rebalance_queued"),
        (Gauge::RebalanceRunning, "proxy_balancer_rebalance_running"),
    ];
    for (level, name) in table {
        let metrics = Metrics::new();
        let first = metrics.hold(level);
        let second = metrics.hold(level);
        assert_eq!(value(&metrics.encode(&Reading::default()), name), 2.0);
        drop(first);
        assert_eq!(value(&metrics.encode(&Reading::default()), name), 1.0);
        drop(second);
        assert_eq!(value(&metrics.encode(&Reading::default()), name), 0.0);
    }
}

#[test]
fn a_transfer_is_counted_with_its_outcome_and_measured() {
    let metrics = Metrics::new();
    let held = Duration::from_millis(2);
    let finish = |outcome, state_bytes| {
        metrics.transfer_finished(&FinishedTransfer {
            outcome,
            reason: ReasonLabel::None,
            from: "a",
            to: Some("b"),
            waited: Duration::ZERO,
            held,
            state_bytes,
        });
    };
    finish(TransferOutcome::Success, Some(412));
    finish(TransferOutcome::Success, Some(2000));
    finish(TransferOutcome::Recoverable, None);
    finish(TransferOutcome::Recoverable, None);
    finish(TransferOutcome::Recoverable, None);
    finish(TransferOutcome::Fatal, None);
    metrics.dial_finished(Duration::from_millis(1500));
    let text = metrics.encode(&Reading::default());
    for (name, expected) in [
        ("proxy_conn_migration_attempted", 6.0),
        ("proxy_conn_migration_success", 2.0),
        ("proxy_conn_migration_error_recoverable", 3.0),
        ("proxy_conn_migration_error_fatal", 1.0),
        ("sqlproxy_transfer_hold_seconds_count", 6.0),
        ("sqlproxy_transfer_hold_seconds_bucket{le=\"0.001\"}", 0.0),
        ("sqlproxy_transfer_hold_seconds_bucket{le=\"0.0025\"}", 6.0),
        ("sqlproxy_session_state_bytes_count", 2.0),
        ("sqlproxy_session_state_bytes_sum", 2412.0),
        (
            "sqlproxy_transfers_total{from=\"a\",outcome=\"success\",reason=\"none\",to=\"b\"}",
            2.0,
        ),
        ("sqlproxy_dial_seconds_count", 1.0),
        ("sqlproxy_dial_seconds_sum", 1.5),
    ] {
        assert_eq!(value(&text, name), expected, "{name}");
    }
}

#[test]
fn no_scrape_sees_an_attempt_without_its_outcome() {
    let metrics = Metrics::new();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for outcome in [
            TransferOutcome::Success,
            TransferOutcome::Recoverable,
            TransferOutcome::Fatal,
        ] {
            let (metrics, done) = (&metrics, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    metrics.transfer_finished(&FinishedTransfer {
                        outcome,
                        reason: ReasonLabel::None,
                        from: "a",
                        to: None,
                        waited: Duration::ZERO,
                        held: Duration::ZERO,
                        state_bytes: None,
                    });
                }
            });
        }
        let scrapes: Vec<String> = (0..500)
            .map(|_| metrics.encode(&Reading::default()))
            .collect();
        done.store(true, Ordering::Relaxed);
        for text in scrapes {
            let outcomes = ["success", "error_recoverable", "error_fatal"];
            let sum: f64 = outcomes
                .iter()
                .map(|name| value(&text, &format!("proxy_conn_migration_{name}")))
                .sum();
            assert_eq!(value(&text, "proxy_conn_migration_attempted"), sum);
        }
    });
}

#[test]
fn a_scrape_shows_the_state_and_nothing_that_is_gone() {
    let metrics = Metrics::new();
    let backend = |name: &str| BackendReading {
        name: name.to_owned(),
        sessions: 3,
        up: true,
        draining: false,
    };
    let mut reading = Reading {
        backends: vec![
            backend("a"),
            backend("b"),
            // Left over from a reload that changed its address.
            BackendReading {
                up: false,
                draining: true,
                ..backend("b")
            },
        ],
        sessions_max: 5000,
        ..Reading::default()
    };
    reading
        .pending
        .insert(("a".to_owned(), ReasonLabel::OpenTransaction), 2);
    metrics.config_read(true, &[("server.crt".to_owned(), 1_900_000_000)]);
    let text = metrics.encode(&reading);
    for (name, expected) in [
        ("sqlproxy_sessions{backend=\"a\"}", 3.0),
        ("sqlproxy_sessions{backend=\"b\"}", 6.0),
        ("sqlproxy_sessions_max", 5000.0),
        ("sqlproxy_sessions_held", 0.0),
        ("sqlproxy_backend_up{backend=\"b\"}", 1.0),
        ("sqlproxy_backend_draining{backend=\"b\"}", 0.0),
        (
            "sqlproxy_transfers_pending{backend=\"a\",reason=\"open_transaction\"}",
            2.0,
        ),
        ("sqlproxy_config_last_reload_successful", 1.0),
        (
            "sqlproxy_certificate_expiry_timestamp_seconds{file=\"server.crt\"}",
            1_900_000_000.0,
        ),
    ] {
        assert_eq!(value(&text, name), expected, "{name}");
    }
    assert!(text.contains("sqlproxy_build_info{version="), "{text}");
    assert!(value(&text, "process_open_fds") > 0.0);
    metrics.config_read(false, &[]);
    let text = metrics.encode(&Reading::default());
    assert!(!text.contains("backend=\"a\""), "{text}");
    assert_eq!(value(&text, "sqlproxy_config_last_reload_successful"), 0.0);
    assert!(text.contains("server.crt"), "what is in force stays");
}
