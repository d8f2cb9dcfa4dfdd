//! What servers may answer to a transfer's own requests, and what comes of it.
//!
//! One proxy before two scripted servers that behave alike; what they do wrong
//! hangs on the user's name, so that one round tries every case at once.

use std::net::SocketAddr;

use crate::support::message::{
    self, command_complete, data_row, error_response, one_row, ready, row_description,
};
use crate::support::proxy::{Outcome, Setup};
use crate::support::server::{
    STATE_COLUMNS, STATE_TAG, Server, ServerEnd, WHO, restored, transfer_state,
};
use crate::support::wire::Wire;

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// The old server's answer to the state query with that key.
    state: fn(&str) -> Vec<u8>,
    /// The new server's answer to the restore.
    restore: fn() -> Vec<u8>,
    /// What the new server does with the token login.
    login: fn(&mut ServerEnd),
    outcome: Outcome,
    /// What the log's reason must contain.
    reason: &'static str,
}

const RIGHT: Case = Case {
    name: "all right",
    state: transfer_state,
    restore: restored,
    login: ServerEnd::welcome,
    outcome: Outcome::Success,
    reason: "",
};

const fn bad_state(name: &'static str, state: fn(&str) -> Vec<u8>) -> Case {
    Case {
        name,
        state,
        outcome: Outcome::Recoverable,
        ..RIGHT
    }
}

const fn bad_restore(name: &'static str, restore: fn() -> Vec<u8>) -> Case {
    Case {
        name,
        restore,
        outcome: Outcome::Recoverable,
        ..RIGHT
    }
}

const fn bad_login(name: &'static str, login: fn(&mut ServerEnd)) -> Case {
    Case {
        name,
        login,
        outcome: Outcome::Recoverable,
        ..RIGHT
    }
}

/// A state answer with these columns.
fn state(columns: &[&str], values: &[Option<&str>]) -> Vec<u8> {
    one_row(columns, values, STATE_TAG)
}

fn restore(value: Option<&str>, tag: &str) -> Vec<u8> {
    one_row(&["crdb_internal.deserialize_session"], &[value], tag)
}

const CASES: &[Case] = &[
    RIGHT,
    Case {
        name: "a notice in between",
        state: |key| {
            let notice = message::notice_response("00000", "by the way");
            [notice, transfer_state(key)].concat()
        },
        ..RIGHT
    },
    Case {
        name: "a refusal",
        state: |key| {
            let refusal = "cannot serialize a session which has active portals";
            state(&STATE_COLUMNS, &[Some(refusal), None, None, Some(key)])
        },
        outcome: Outcome::Recoverable,
        reason: "cannot serialize a session which has active portals",
        ..RIGHT
    },
    Case {
        name: "an ErrorResponse",
        state: |_| {
            [
                error_response("ERROR", "42601", "no such thing"),
                ready(b'I'),
            ]
            .concat()
        },
        outcome: Outcome::Recoverable,
        reason: "no such thing",
        ..RIGHT
    },
    bad_state("an error that is empty, not NULL", |key| {
        state(
            &STATE_COLUMNS,
            &[Some(""), Some("c3RhdGU="), Some("dG9rZW4="), Some(key)],
        )
    }),
    bad_state("no state", |key| {
        state(&STATE_COLUMNS, &[None, None, Some("dG9rZW4="), Some(key)])
    }),
    bad_state("no token", |key| {
        state(&STATE_COLUMNS, &[None, Some("c3RhdGU="), None, Some(key)])
    }),
    bad_state("a state that is no base64", |key| {
        let state_text = Some("'); DROP TABLE t; --");
        state(
            &STATE_COLUMNS,
            &[None, state_text, Some("dG9rZW4="), Some(key)],
        )
    }),
    bad_state("too few columns", |key| {
        state(
            &STATE_COLUMNS[1..],
            &[Some("c3RhdGU="), Some("dG9rZW4="), Some(key)],
        )
    }),
    bad_state("too many columns", |key| {
        let [a, b, c, d] = STATE_COLUMNS;
        let values = [
            None,
            Some("c3RhdGU="),
            Some("dG9rZW4="),
            Some(key),
            Some("x"),
        ];
        state(&[a, b, c, d, "more"], &values)
    }),
    bad_state("wrong names", |key| {
        let names = ["error", "a", "b", "transfer_key"];
        state(
            &names,
            &[None, Some("c3RhdGU="), Some("dG9rZW4="), Some(key)],
        )
    }),
    bad_state("fewer values than columns", |key| {
        state(&STATE_COLUMNS, &[None, Some("c3RhdGU="), Some(key)])
    }),
    bad_state("another key", |_| {
        transfer_state("00000000-0000-4000-8000-000000000000")
    }),
    bad_state("no key", |_| {
        state(
            &STATE_COLUMNS,
            &[None, Some("c3RhdGU="), Some("dG9rZW4="), None],
        )
    }),
    bad_state("another tag", |key| {
        let values = [None, Some("c3RhdGU="), Some("dG9rZW4="), Some(key)];
        one_row(&STATE_COLUMNS, &values, "SHOW TRANSFER STATE 2")
    }),
    bad_state("no row", |_| {
        let description = row_description(&STATE_COLUMNS);
        [description, command_complete(STATE_TAG), ready(b'I')].concat()
    }),
    bad_state("two rows", |key| {
        let row = data_row(&[None, Some("c3RhdGU="), Some("dG9rZW4="), Some(key)]);
        let description = row_description(&STATE_COLUMNS);
        [
            description,
            row.clone(),
            row,
            command_complete(STATE_TAG),
            ready(b'I'),
        ]
        .concat()
    }),
    bad_state("a row that nothing describes", |key| {
        let row = data_row(&[None, Some("c3RhdGU="), Some("dG9rZW4="), Some(key)]);
        [row, command_complete(STATE_TAG), ready(b'I')].concat()
    }),
    bad_state("no CommandComplete", |key| {
        let row = data_row(&[None, Some("c3RhdGU="), Some("dG9rZW4="), Some(key)]);
        [row_description(&STATE_COLUMNS), row, ready(b'I')].concat()
    }),
    bad_state("an error behind the row", |key| {
        let row = data_row(&[None, Some("c3RhdGU="), Some("dG9rZW4="), Some(key)]);
        let error = error_response("ERROR", "XX000", "changed my mind");
        [row_description(&STATE_COLUMNS), row, error, ready(b'I')].concat()
    }),
    bad_state("a row whose lengths lie", |_| {
        let lie = message::frame(b'D', b"\x00\x04\xff\xff\xff\xff\x7f\xff\xff\xffx");
        let description = row_description(&STATE_COLUMNS);
        [description, lie, command_complete(STATE_TAG), ready(b'I')].concat()
    }),
    bad_state("an empty query response", |_| {
        [message::frame(b'I', &[]), ready(b'I')].concat()
    }),
    bad_state("messages of no known type", |_| {
        [
            message::frame(b'~', b"?"),
            message::frame(0, b""),
            ready(b'I'),
        ]
        .concat()
    }),
    Case {
        name: "a restore that fails",
        restore: || {
            let text = "can only deserialize matching session users";
            [error_response("ERROR", "42501", text), ready(b'I')].concat()
        },
        outcome: Outcome::Recoverable,
        reason: "can only deserialize matching session users",
        ..RIGHT
    },
    bad_restore("restored: false", || restore(Some("f"), "SELECT 1")),
    bad_restore("restored: NULL", || restore(None, "SELECT 1")),
    bad_restore("restored: another tag", || restore(Some("t"), "SELECT 2")),
    bad_restore("restored: another column", || {
        one_row(&["?column?"], &[Some("t")], "SELECT 1")
    }),
    bad_restore("restored: no row", || {
        let description = row_description(&["crdb_internal.deserialize_session"]);
        [description, command_complete("SELECT 0"), ready(b'I')].concat()
    }),
    Case {
        name: "a token login that fails",
        login: |end| {
            let refusal = error_response("FATAL", "28000", "token is not for you");
            end.wire.send(&refusal);
        },
        outcome: Outcome::Recoverable,
        reason: "token is not for you",
        ..RIGHT
    },
    bad_login("a token login that wants a password", |end| {
        end.wire.send(&message::authentication(3, &[]));
    }),
    bad_login("a token login that sends a row", |end| {
        end.wire.send(&data_row(&[Some("?")]));
    }),
    bad_login("a token login that is cut", |end| {
        end.wire
            .socket()
            .shutdown(std::net::Shutdown::Both)
            .unwrap();
    }),
];

/// A server that does to each user what its case says.
fn server() -> Server {
    Server::start(|mut end| {
        let user = end.parameter("user").unwrap();
        let case = CASES.iter().find(|case| case.name == user).unwrap();
        if end.is_restore() {
            (case.login)(&mut end);
        } else {
            end.welcome();
        }
        end.echo_with(case.state, case.restore);
    })
}

#[test]
fn wrong_answers_keep_the_session_where_it_is() {
    let servers = [server(), server()];
    let addresses = servers.each_ref().map(Server::address);
    let proxy = Setup::new(&addresses).start();
    let mut sessions: Vec<(&Case, Wire, SocketAddr)> = CASES
        .iter()
        .map(|case| {
            let mut client = proxy.login(case.name);
            let home = client.value(WHO).parse().unwrap();
            (case, client, home)
        })
        .collect();

    // Twice: what one round left behind would confuse the next.
    for _ in 0..2 {
        let round = proxy.migrate();
        for (case, client, home) in &mut sessions {
            let transfer = round
                .transfers
                .iter()
                .find(|t| t.line.get("user") == case.name);
            let transfer = transfer.unwrap_or_else(|| panic!("{}: no outcome", case.name));
            assert_eq!(
                transfer.outcome, case.outcome,
                "{}: {}",
                case.name, transfer.line.raw
            );
            if case.outcome != Outcome::Success {
                assert!(
                    transfer.reason().contains(case.reason),
                    "{}",
                    transfer.line.raw
                );
            }
            let sql = format!("SELECT '{} {}'", case.name, round.number);
            assert_eq!(client.value(&sql), sql, "{}", case.name);
            let there = client.value(WHO).parse().unwrap();
            assert_eq!(
                there == *home,
                case.outcome != Outcome::Success,
                "{}",
                case.name
            );
            *home = there;
        }
    }
    let log = proxy.log().text();
    assert!(!log.contains("dG9rZW4="), "a token was logged");
    assert!(!log.contains("c3RhdGU="), "a session's state was logged");
}
