//! Answers to the state query that come after the transfer's timeout: the client
//! goes on at once, and never sees them.
//!
//! One proxy before two scripted servers that behave alike; how the late answer
//! comes hangs on the user's name, so that one round tries every case at once.

use crate::support::gate::Gate;
use crate::support::message::{self, Message, error_response, parameter_status, ready};
use crate::support::proxy::{Outcome, Setup};
use crate::support::server::{
    STATE_COLUMNS, STATE_TAG, Server, ServerEnd, WHO, transfer_key, transfer_state,
};
use crate::support::wire::Wire;

/// What the client asks while the answer is still owed.
const MEANWHILE: [&str; 3] = ["SELECT 1", "SELECT 2", "SELECT 3"];

struct Case {
    name: &'static str,
    /// Sends the late answer to the state query with that key.
    deliver: fn(&mut ServerEnd, &str),
    /// What the client gets before the answers to its own requests.
    to_client: &'static str,
    /// Whether its own requests are answered.
    lives: bool,
}

const WHOLE: Case = Case {
    name: "whole",
    deliver: |end, key| end.wire.send(&transfer_state(key)),
    to_client: "",
    lives: true,
};

fn echo(sql: &str) -> Vec<u8> {
    message::one_row(&["echo"], &[Some(sql)], "SELECT 1")
}

const CASES: &[Case] = &[
    WHOLE,
    Case {
        name: "byte by byte",
        deliver: |end, key| {
            for byte in transfer_state(key) {
                end.wire.send(&[byte]);
            }
        },
        ..WHOLE
    },
    Case {
        name: "larger than max_state_size",
        deliver: |end, key| {
            let state = "c3RhdGU=".repeat(64 * 1024);
            let values = [None, Some(state.as_str()), Some("dG9rZW4="), Some(key)];
            end.wire
                .send(&message::one_row(&STATE_COLUMNS, &values, STATE_TAG));
        },
        ..WHOLE
    },
    Case {
        name: "an error",
        deliver: |end, _| {
            end.wire
                .send(&[error_response("ERROR", "XX000", "late"), ready(b'I')].concat());
        },
        ..WHOLE
    },
    Case {
        name: "with what is the client's in it",
        deliver: |end, key| {
            let answer = transfer_state(key);
            // Behind the RowDescription.
            let (first, rest) = answer.split_at(row_description_length(&answer));
            let notice = message::notice_response("00000", "of the query");
            let told = parameter_status("TimeZone", "Asia/Tokyo");
            let heard = end.notification();
            end.wire
                .send(&[first, &notice, &told, &heard, rest].concat());
        },
        to_client: "SA",
        ..WHOLE
    },
    Case {
        name: "together with the answers to the client",
        deliver: |end, key| {
            let mut all = transfer_state(key);
            for sql in MEANWHILE {
                assert_eq!(end.next_query().as_deref(), Some(sql));
                all.extend(echo(sql));
            }
            end.wire.send(&all);
        },
        ..WHOLE
    },
    Case {
        name: "cut off",
        deliver: |end, key| {
            end.wire.send(&transfer_state(key)[..30]);
            end.wire
                .socket()
                .shutdown(std::net::Shutdown::Write)
                .unwrap();
        },
        lives: false,
        ..WHOLE
    },
    Case {
        name: "a FATAL",
        deliver: |end, _| {
            end.wire
                .send(&error_response("FATAL", "57P01", "shutting down"));
            end.wire
                .socket()
                .shutdown(std::net::Shutdown::Write)
                .unwrap();
        },
        lives: false,
        ..WHOLE
    },
];

fn row_description_length(answer: &[u8]) -> usize {
    let length: [u8; 4] = answer[1..5].try_into().unwrap();
    1 + usize::try_from(u32::from_be_bytes(length)).unwrap()
}

/// Late once a session, then as it should be.
fn server(gate: &Gate) -> Server {
    let gate = gate.clone();
    Server::start(move |mut end| {
        let user = end.parameter("user").unwrap().to_owned();
        let case = CASES.iter().find(|case| case.name == user).unwrap();
        end.welcome();
        if !end.is_restore() {
            let address = end.wire.socket().local_addr().unwrap().to_string();
            while let Some(sql) = end.next_query() {
                if let Some(key) = transfer_key(&sql) {
                    gate.wait();
                    (case.deliver)(&mut end, key);
                    break;
                }
                assert_eq!(sql, WHO);
                let who = message::one_row(&["address"], &[Some(&address)], "SELECT 1");
                end.wire.send(&who);
            }
            if !case.lives {
                return while end.next().is_some() {};
            }
        }
        end.echo();
    })
}

fn tags(answer: &[Message]) -> String {
    answer.iter().map(|message| message.tag as char).collect()
}

#[test]
fn a_late_answer_is_swallowed_however_it_comes() {
    let gate = Gate::default();
    let servers = [server(&gate), server(&gate)];
    let addresses = servers.each_ref().map(Server::address);
    let section = "[migration]\ntimeout = \"1s\"\nwait = \"500ms\"\nmax_state_size = \"64KiB\"";
    let proxy = Setup::new(&addresses).section(section).start();
    let mut keys = Vec::new();
    let mut clients: Vec<(&Case, Wire, String)> = CASES
        .iter()
        .map(|case| {
            let mut client = Wire::connect(proxy.address());
            keys.push(client.start(&[("user", case.name)]).key.unwrap());
            proxy.wait_opened(&client);
            let home = client.value(WHO);
            (case, client, home)
        })
        .collect();

    let round = proxy.migrate();
    for transfer in &round.transfers {
        assert_eq!(
            transfer.outcome,
            Outcome::Recoverable,
            "{}",
            transfer.line.raw
        );
        assert!(
            transfer.reason().contains("timeout"),
            "{}",
            transfer.line.raw
        );
    }
    // The answers are still owed, so nobody can be asked again.
    for transfer in &proxy.migrate().transfers {
        let reason = transfer.reason();
        assert!(
            reason.starts_with("late answer of an earlier transfer"),
            "{reason}"
        );
    }
    for (_, client, _) in &mut clients {
        client.send(&MEANWHILE.map(message::query).concat());
    }
    gate.open();
    for ((case, client, _), key) in clients.iter_mut().zip(&keys) {
        if !case.lives {
            let error = client.expect(b'E');
            assert_eq!(error.field('V'), "FATAL", "{}", case.name);
            assert!(
                ["08006", "57P01"].contains(&error.field('C').as_str()),
                "{}: {error:?}",
                case.name
            );
            client.expect_end();
            // Its place in the next round goes with it.
            let own = client.socket().local_addr().unwrap().to_string();
            proxy.wait_log(0, |line| {
                line.is("session closed") && line.get("client") == own
            });
            continue;
        }
        for (number, sql) in MEANWHILE.iter().enumerate() {
            let answer = client.receive_through(b'Z');
            let unasked = if number == 0 { case.to_client } else { "" };
            assert_eq!(tags(&answer), format!("{unasked}TDCZ"), "{}", case.name);
            assert_eq!(
                answer[unasked.len() + 1].values(),
                [Some((*sql).to_owned())]
            );
            if let Some(heard) = answer.iter().find(|message| message.tag == b'A') {
                assert_eq!(heard.body[..4], key.0[..4], "the client's own process");
            }
        }
    }
    clients.retain(|(case, ..)| case.lives);
    proxy.migrate().assert_all_moved(clients.len() as u64);
    for (case, client, home) in &mut clients {
        assert_ne!(client.value(WHO), *home, "{}", case.name);
        assert_eq!(client.value("SELECT 4"), "SELECT 4", "{}", case.name);
    }
}
