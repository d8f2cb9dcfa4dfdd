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
    let text = metrics.encode();
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
        assert_eq!(value(&metrics.encode(), name), 2.0);
        drop(first);
        assert_eq!(value(&metrics.encode(), name), 1.0);
        drop(second);
        assert_eq!(value(&metrics.encode(), name), 0.0);
    }
}

#[test]
fn a_transfer_is_counted_with_its_outcome_and_measured() {
    let metrics = Metrics::new();
    let held = Duration::from_millis(2);
    metrics.transfer_finished(TransferOutcome::Success, held, Some(412));
    metrics.transfer_finished(TransferOutcome::Success, held, Some(2000));
    metrics.transfer_finished(TransferOutcome::Recoverable, held, None);
    metrics.transfer_finished(TransferOutcome::Recoverable, held, None);
    metrics.transfer_finished(TransferOutcome::Recoverable, held, None);
    metrics.transfer_finished(TransferOutcome::Fatal, held, None);
    metrics.dial_finished(Duration::from_millis(1500));
    let text = metrics.encode();
    for (name, expected) in [
        ("proxy_conn_migration_attempted", 6.0),
        ("proxy_conn_migration_success", 2.0),
        ("proxy_conn_migration_error_recoverable", 3.0),
        ("proxy_conn_migration_error_fatal", 1.0),
        ("proxy_conn_migration_attempted_latency_count", 6.0),
        (
            "proxy_conn_migration_attempted_latency_bucket{le=\"0.001\"}",
            0.0,
        ),
        (
            "proxy_conn_migration_attempted_latency_bucket{le=\"0.0025\"}",
            6.0,
        ),
        (
            "proxy_conn_migration_transfer_response_message_size_count",
            2.0,
        ),
        (
            "proxy_conn_migration_transfer_response_message_size_sum",
            2412.0,
        ),
        ("proxy_dial_tenant_latency_count", 1.0),
        ("proxy_dial_tenant_latency_sum", 1.5),
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
                    metrics.transfer_finished(outcome, Duration::ZERO, None);
                }
            });
        }
        let scrapes: Vec<String> = (0..500).map(|_| metrics.encode()).collect();
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
