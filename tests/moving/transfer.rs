//! Single transfers between scripted servers: targets that cannot be reached,
//! servers that stall at each step, and what the swap brings along.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::support::gate::Gate;
use crate::support::message::{self, command_complete, parameter_status, ready};
use crate::support::proxy::{Outcome, Setup};
use crate::support::server::{Server, ServerEnd, WHO, restored, transfer_key, transfer_state};
use crate::support::wire::Wire;
use crate::support::{PATIENCE, closed_port};

const SHORT: &str = "[migration]\ntimeout = \"300ms\"\nwait = \"300ms\"";

#[test]
fn a_single_backend_is_dialed_anew() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = proxy.login("maria");
    let first = server.last_key();
    for _ in 0..3 {
        let round = proxy.migrate();
        round.assert_all_moved(1);
        assert_eq!(round.only().from, "pod-0");
        assert_eq!(round.only().line.get("to"), "pod-0");
        assert_eq!(client.value("SELECT 1"), "SELECT 1");
    }
    assert_ne!(server.last_key(), first, "still on its first connection");
}

#[test]
fn an_idle_session_keeps_nothing_of_the_server_it_left() {
    let servers = [Server::echoing(), Server::echoing()];
    let proxy = Setup::new(&[servers[0].address(), servers[1].address()]).start();
    let clients: Vec<_> = (0..6).map(|_| proxy.login("maria")).collect();
    let before = proxy.resources_at_rest(clients.len());
    for _ in 0..3 {
        proxy.migrate().assert_all_moved(6);
        // Not one of them says a word.
        proxy.wait_resources(before);
    }
    drop(clients);
}

#[test]
fn no_reachable_target_leaves_the_session_in_peace() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address(), closed_port()]).start();
    let mut client = proxy.login("maria");
    for _ in 0..3 {
        let round = proxy.migrate();
        assert_eq!(round.only().outcome, Outcome::Recoverable);
        assert_eq!(round.only().from, "pod-0");
        assert_eq!(client.value("SELECT 1"), "SELECT 1");
    }
}

#[test]
fn a_round_over_no_session_is_told_too() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    let round = proxy.migrate();
    assert_eq!((round.sessions, round.transfers.len()), (0, 0));
    assert_eq!(proxy.migrate().number, round.number + 1);
}

#[test]
fn a_late_answer_to_the_state_query_is_swallowed() {
    // The very first state query is answered late, wherever the session is.
    let gate = Gate::default();
    let first = Arc::new(AtomicBool::new(true));
    let servers = [(); 2].map(|()| {
        let (held, first) = (gate.clone(), Arc::clone(&first));
        Server::start(move |mut end| {
            end.welcome();
            let answer = |key: &str| {
                if first.swap(false, Ordering::Relaxed) {
                    held.wait();
                }
                transfer_state(key)
            };
            end.echo_with(answer, restored);
        })
    });
    let proxy = Setup::new(&servers.each_ref().map(Server::address))
        .section(SHORT)
        .start();
    let mut client = proxy.login("maria");
    let home = client.value(WHO);

    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable, "{round:#?}");
    // The answer is still owed.  The client goes on, its requests in order.
    client.send(&[message::query("SELECT 1"), message::query("SELECT 2")].concat());
    gate.open();
    for sql in ["SELECT 1", "SELECT 2"] {
        let answer = client.receive_through(b'Z');
        let tags: Vec<_> = answer.iter().map(|message| message.tag as char).collect();
        assert_eq!(tags, ['T', 'D', 'C', 'Z'], "{answer:?}");
        assert_eq!(answer[1].values(), [Some(sql.to_owned())]);
    }
    proxy.migrate().assert_all_moved(1);
    assert_ne!(client.value(WHO), home);
}

/// A round against a new server that plays `script` with the restoring
/// connection, and the session's fate.
fn stalled_target(script: fn(&mut ServerEnd)) {
    let servers = [(); 2].map(|()| {
        Server::start(move |mut end| {
            if end.is_restore() {
                script(&mut end);
                // Silent until the proxy gives up.
                while end.next().is_some() {}
            } else {
                end.welcome();
                end.echo();
            }
        })
    });
    let proxy = Setup::new(&servers.each_ref().map(Server::address))
        .section(SHORT)
        .start();
    let mut client = proxy.login("maria");
    let home = client.value(WHO);
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable, "{round:#?}");
    assert_eq!(client.value(WHO), home);
    drop(client);
    for server in &servers {
        server.join();
    }
}

#[test]
fn a_target_silent_from_the_start_is_given_up() {
    stalled_target(|_| {});
}

#[test]
fn a_target_silent_in_the_middle_of_its_login_is_given_up() {
    stalled_target(|end| end.wire.send(&message::authentication(0, &[])));
}

#[test]
fn a_target_silent_at_the_restore_is_given_up() {
    stalled_target(ServerEnd::welcome);
}

#[test]
fn a_target_that_stops_in_the_middle_of_the_restores_answer_is_given_up() {
    stalled_target(|end| {
        end.welcome();
        end.next_query();
        end.wire.send(&restored()[..20]);
    });
}

/// The first target plays `script` with the restoring connection, and then says nothing
/// more; the second one is well.
fn one_of_two_targets(section: &str, script: fn(&mut ServerEnd)) {
    let stalled = Server::start(move |mut end| {
        script(&mut end);
        while end.next().is_some() {}
    });
    let servers = [Server::echoing(), stalled, Server::echoing()];
    let proxy = Setup::new(&servers.each_ref().map(Server::address))
        .top("connect_timeout = \"5m\"")
        .section(section)
        .start();
    let mut client = proxy.login("maria");
    proxy.migrate().assert_all_moved(1);
    assert_eq!(client.value(WHO), servers[2].address().to_string());
    drop(client);
    for server in &servers {
        server.join();
    }
}

#[test]
fn a_target_that_hangs_leaves_time_for_the_next() {
    let hang: [fn(&mut ServerEnd); 4] = [
        |_| {},
        |end| end.wire.send(&message::authentication(0, &[])),
        ServerEnd::welcome,
        |end| {
            end.welcome();
            end.next_query();
            end.wire.send(&restored()[..20]);
        },
    ];
    std::thread::scope(|scope| {
        for hang in hang {
            let section = "[migration]\ntimeout = \"12s\"";
            scope.spawn(move || one_of_two_targets(section, hang));
        }
    });
}

#[test]
fn a_target_that_fails_in_the_restore_is_not_the_last() {
    let fail: [fn(&mut ServerEnd); 2] = [
        |end| {
            end.welcome();
            end.next_query();
            end.wire.finish_sending();
        },
        |end| {
            end.welcome();
            end.next_query();
            end.wire.send(b"nonsense, and much of it");
        },
    ];
    for fail in fail {
        one_of_two_targets("", fail);
    }
}

#[test]
fn the_client_hears_what_differs_on_the_new_server() {
    fn server(version: &'static str) -> Server {
        Server::start(move |mut end| {
            let greeting = [
                message::authentication(0, &[]),
                parameter_status("server_version", version),
                parameter_status("client_encoding", "UTF8"),
                ready(b'I'),
            ];
            end.wire.send(&greeting.concat());
            end.echo();
        })
    }
    let servers = [server("15.1"), server("15.2")];
    let proxy = Setup::new(&servers.each_ref().map(Server::address)).start();
    let mut client = Wire::connect(proxy.address());
    let mut known = client.start(&[("user", "maria")]).parameters;
    proxy.wait_opened(&client);
    for _ in 0..4 {
        proxy.migrate().assert_all_moved(1);
        let now = client.expect(b'S').strings();
        assert_eq!(now[0], "server_version");
        assert_ne!(known["server_version"], now[1]);
        known.insert(now[0].clone(), now[1].clone());
        let answer = client.query("SELECT 1");
        assert_eq!(answer.len(), 4, "nothing else changed: {answer:?}");
    }
}

/// To whoever listens, a notification of its own session names the process that the client
/// knows, on whichever server and at whichever step it comes.
#[test]
fn a_notification_during_a_transfer_names_the_client_s_process() {
    fn server() -> Server {
        Server::start(|mut end| {
            end.welcome();
            let heard = end.notification();
            end.echo_with(
                |key| [heard.clone(), transfer_state(key)].concat(),
                || [heard.clone(), restored()].concat(),
            );
        })
    }
    let servers = [server(), server()];
    let proxy = Setup::new(&servers.each_ref().map(Server::address)).start();
    let mut client = Wire::connect(proxy.address());
    let key = client.start(&[("user", "maria")]).key.unwrap();
    proxy.wait_opened(&client);
    for _ in 0..3 {
        proxy.migrate().assert_all_moved(1);
        for step in ["capture", "restore"] {
            assert_eq!(client.expect(b'A').body[..4], key.0[..4], "{step}");
        }
    }
}

#[test]
fn an_open_transaction_is_waited_for_and_left_in_peace() {
    fn server() -> Server {
        Server::start(|mut end| {
            end.welcome();
            let mut status = b'I';
            while let Some(sql) = end.next_query() {
                assert!(!sql.contains("TRANSFER"), "asked inside a transaction");
                match sql.as_str() {
                    "BEGIN" => status = b'T',
                    "FAIL" => status = b'E',
                    "COMMIT" => status = b'I',
                    _ => {}
                }
                end.wire
                    .send(&[command_complete(&sql), ready(status)].concat());
            }
        })
    }
    let servers = [server(), server()];
    let proxy = Setup::new(&servers.each_ref().map(Server::address))
        .section(SHORT)
        .start();
    let mut client = proxy.login("maria");
    for statement in ["BEGIN", "INSERT", "FAIL", "SELECT"] {
        client.query(statement);
        let round = proxy.migrate();
        assert_eq!(round.only().outcome, Outcome::Recoverable);
        let reason = round.only().reason();
        assert!(reason.contains("open transaction"), "{reason}");
    }
    client.query("COMMIT");
    drop(client);
    for server in &servers {
        server.join();
    }
}

#[test]
fn a_running_query_moves_when_it_is_done() {
    let gate = Gate::default();
    let held = gate.clone();
    let slow = move |mut end: ServerEnd| {
        end.welcome();
        if !end.is_restore() {
            assert_eq!(end.next_query().as_deref(), Some("SLOW"));
            held.wait();
            end.wire
                .send(&[command_complete("SLOW"), ready(b'I')].concat());
        }
        end.echo();
    };
    let servers = [Server::start(slow.clone()), Server::start(slow)];
    let proxy = Setup::new(&servers.each_ref().map(Server::address)).start();
    let mut client = proxy.login("maria");
    client.send(&message::query("SLOW"));
    client.wait_drained();
    let position = proxy.log().position();
    proxy.signal(rustix::process::Signal::USR1);
    // The round says itself that it waits.
    proxy.wait_log(position, |line| {
        line.fields
            .get("waiting")
            .is_some_and(|waiting| waiting == "1")
    });
    gate.open();
    proxy.wait_round(position).assert_all_moved(1);
    assert_eq!(client.receive_through(b'Z').len(), 2);
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

#[test]
fn a_burst_of_signals_moves_a_session_one_step_at_a_time() {
    let servers = [Server::echoing(), Server::echoing()];
    let proxy = Setup::new(&servers.each_ref().map(Server::address)).start();
    let mut client = proxy.login("maria");
    let position = proxy.log().position();
    let moved = || {
        let lines = proxy.log().since(position).into_iter();
        lines
            .filter(|line| line.is("transfer finished") && line.get("outcome") == "success")
            .count()
    };
    let began = Instant::now();
    while moved() < 50 {
        assert!(began.elapsed() < PATIENCE);
        proxy.signal(rustix::process::Signal::USR1);
        let sql = format!("SELECT '{:?}'", began.elapsed());
        assert_eq!(client.value(&sql), sql);
    }
    // Signals melt together, so only a session more tells a later round.
    let _second = proxy.login("pedro");
    proxy.signal(rustix::process::Signal::USR1);
    let last = proxy.wait_log(position, |line| {
        line.is("migration round finished") && line.get("sessions") == "2"
    });
    // Every round before has its end, in whatever order.
    let last = last.number("round");
    for round in 1..last {
        proxy.wait_log(position, |line| {
            line.is("migration round finished") && line.number("round") == round
        });
    }
    let lines = proxy.log().since(position);
    // By round: a transfer is logged when its session already goes on, perhaps
    // into the next one.
    let mut moves: Vec<_> = lines
        .iter()
        .filter(|line| line.is("transfer finished") && line.get("user") == "maria")
        .filter(|line| line.get("outcome") == "success" && line.number("round") <= last)
        .map(|line| (line.number("round"), line.get("from"), line.get("to")))
        .collect();
    moves.sort_unstable();
    assert!(moves.len() >= 50, "{moves:?}");
    for pair in moves.windows(2) {
        assert_eq!(
            pair[0].2, pair[1].1,
            "one move begins where the last one ended"
        );
    }
    assert!(lines.iter().all(|line| line.level != "ERROR"));
}

#[test]
fn a_server_lost_while_it_is_asked_is_fatal_and_the_client_is_told() {
    let old = Server::start(|mut end| {
        end.welcome();
        assert!(end.next_query().unwrap().starts_with("SHOW TRANSFER STATE"));
        end.wire.reset();
    });
    let proxy = Setup::new(&[old.address()]).start();
    let mut client = proxy.login("maria");
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Fatal, "{round:#?}");
    let error = client.expect(b'E');
    assert_eq!(error.field('V'), "FATAL");
    assert!(
        ["08006", "57P01"].contains(&error.field('C').as_str()),
        "{error:?}"
    );
    client.expect_end();
}

#[test]
fn a_lost_server_is_told_to_the_client_outside_of_transfers_too() {
    let server = Server::start(|mut end| {
        end.welcome();
        end.next_query();
        end.wire.reset();
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = proxy.login("maria");
    client.send(&message::query("SELECT 1"));
    client.expect_error("FATAL", "08006");
    client.expect_end();
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    assert!(closed.get("reason").contains("server"), "{}", closed.raw);
}

#[test]
fn a_client_that_leaves_during_a_transfer_leaves_nothing_behind() {
    let servers = [(); 2].map(|()| {
        Server::start(|mut end| {
            end.welcome();
            // No answer to anything, until the proxy leaves.
            while end.next().is_some() {}
        })
    });
    let proxy = Setup::new(&servers.each_ref().map(Server::address))
        .section("[migration]\ntimeout = \"1s\"")
        .start();
    drop(proxy.login("maria"));
    proxy.wait_log(0, |line| line.is("session closed"));
    let before = proxy.resources_at_rest(0);
    for leave in [Wire::reset, drop, |mut client: Wire| {
        client.finish_sending()
    }] {
        let client = proxy.login("maria");
        let position = proxy.log().position();
        proxy.signal(rustix::process::Signal::USR1);
        leave(client);
        proxy.wait_round(position);
        proxy.wait_log(position, |line| line.is("session closed"));
    }
    for server in &servers {
        server.join();
    }
    proxy.wait_resources(before);
}

#[test]
fn the_old_servers_farewell_behind_the_restore_is_not_the_clients() {
    let (asked, said) = (Gate::default(), Gate::default());
    let servers = [(); 2].map(|()| {
        let (asked, said) = (asked.clone(), said.clone());
        Server::start(move |mut end| {
            end.welcome();
            if end.is_restore() {
                end.echo_with(transfer_state, || {
                    asked.open();
                    said.wait();
                    restored()
                });
            } else if let Some(sql) = end.next_query() {
                let key = transfer_key(&sql).unwrap();
                end.wire.send(&transfer_state(key));
                asked.wait();
                let farewell = message::error_response("FATAL", "57P01", "shutting down");
                end.wire.send(&farewell);
                end.wire.finish_sending();
                said.open();
                while end.next().is_some() {}
            }
        })
    });
    let proxy = Setup::new(&servers.each_ref().map(Server::address)).start();
    let mut client = proxy.login("maria");
    proxy.migrate().assert_all_moved(1);
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

#[test]
fn a_session_whose_client_has_said_terminate_is_left_alone() {
    let (told, over) = (Gate::default(), Gate::default());
    let (held, waiting) = (told.clone(), over.clone());
    let server = Server::start(move |mut end| {
        end.welcome();
        end.wire.expect(b'X');
        held.open();
        waiting.wait();
        end.wire.expect_gone();
    });
    let proxy = Setup::new(&[server.address()]).section(SHORT).start();
    let mut client = proxy.login("maria");
    client.send(&message::terminate());
    told.wait();
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable, "{round:#?}");
    assert!(round.only().reason().starts_with("client leaving"));
    over.open();
    drop(client);
    server.join();
}

#[test]
fn a_servers_farewell_is_the_last_word_whatever_else_fails() {
    // Its answers end in FATAL, and the client sends until a write fails.
    let server = Server::start(|mut end| {
        end.welcome();
        end.next_query();
        let farewell = message::error_response("FATAL", "57P01", "shutting down");
        end.wire.send(&farewell);
        end.wire.reset();
    });
    let proxy = Setup::new(&[server.address()]).start();
    for _ in 0..50 {
        let mut client = proxy.login("maria");
        client.send(&message::query("SELECT 1"));
        // Enough for the proxy to find the server's socket broken, whatever it does.
        for _ in 0..2_000 {
            if client.try_send(&message::query("SELECT 2")).is_err() {
                break;
            }
        }
        let last = client.receive();
        assert!(
            ["57P01", "08006"].contains(&last.field('C').as_str()),
            "{last:?}"
        );
        client.expect_gone();
    }
}

#[test]
fn a_server_lost_behind_an_ordinary_error_is_told() {
    let server = Server::start(|mut end| {
        end.welcome();
        end.next_query();
        end.wire
            .send(&message::error_response("ERROR", "42601", "no"));
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = proxy.login("maria");
    client.send(&message::query("SELECT 1"));
    client.expect_error("ERROR", "42601");
    client.expect_error("FATAL", "08006");
    client.expect_end();
}
