//! SIGHUP: the file is read again and no session notices.

use std::collections::HashSet;
use std::time::Instant;

use rustix::process::Signal;

use crate::support::gate::Gate;
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::{Server, WHO, restored, transfer_state};
use crate::support::soon;

/// The backend that a new session gets.
fn backend_of_new_session(proxy: &Proxy) -> String {
    let position = proxy.log().position();
    let _client = proxy.login("maria");
    let opened = proxy.wait_log(position, |line| line.is("session opened"));
    opened.get("backend").to_owned()
}

#[test]
fn sessions_leave_a_backend_that_became_draining() {
    let servers = [Server::echoing(), Server::echoing()];
    let setup = Setup::new(&servers.each_ref().map(Server::address));
    let proxy = setup.start();
    let mut clients: Vec<_> = (0..6).map(|_| proxy.login("maria")).collect();
    let position = proxy.log().position();
    proxy.reconfigure(&setup.clone().state(0, "draining").text());
    let round = proxy.wait_round(position);
    // Those on the other one have no reason to move.
    round.assert_all_moved(3);
    assert_eq!(round.trigger, "SIGHUP");
    for client in &mut clients {
        assert_eq!(client.value(WHO), servers[1].address().to_string());
    }
    assert_eq!(backend_of_new_session(&proxy), "pod-1");

    // And it may come back.
    proxy.reconfigure(&setup.text());
    let deadline = soon();
    while backend_of_new_session(&proxy) != "pod-0" {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn sessions_leave_a_backend_that_vanished() {
    let servers = [Server::echoing(), Server::echoing()];
    let addresses = servers.each_ref().map(Server::address);
    let proxy = Setup::new(&addresses).start();
    let mut clients: Vec<_> = (0..4).map(|_| proxy.login("maria")).collect();
    let position = proxy.log().position();
    proxy.reconfigure(&Setup::new(&addresses[..1]).text());
    proxy.wait_round(position).assert_all_moved(2);
    for client in &mut clients {
        assert_eq!(client.value(WHO), addresses[0].to_string());
    }
}

#[test]
fn a_broken_file_changes_nothing_and_is_named() {
    let servers = [Server::echoing(), Server::echoing()];
    let setup = Setup::new(&servers.each_ref().map(Server::address));
    let proxy = setup.start();
    let mut client = proxy.login("maria");
    let position = proxy.log().position();
    let broken = setup.clone().state(0, "draining").top("listne = 1").text();
    proxy.reconfigure(&broken);
    let complaint = proxy.wait_log(position, |line| line.raw.contains("proxy.conf:"));
    assert!(["ERROR", "WARN"].contains(&complaint.level.as_str()));
    assert!(complaint.raw.contains("listne"), "{}", complaint.raw);
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
    // Neither is draining: new sessions spread over both.
    let mut more: Vec<_> = (0..3).map(|_| proxy.login("maria")).collect();
    let homes: HashSet<_> = more.iter_mut().map(|client| client.value(WHO)).collect();
    assert_eq!(homes.len(), 2);
}

/// A server that says when a session is to be restored on it, and does so when it
/// is let.
fn hesitant(reached: &Gate, go_on: &Gate) -> Server {
    let (reached, go_on) = (reached.clone(), go_on.clone());
    Server::start(move |mut end| {
        end.welcome();
        end.echo_with(transfer_state, || {
            reached.open();
            go_on.wait();
            restored()
        });
    })
}

#[test]
fn a_session_on_its_way_to_a_backend_that_became_draining_moves_on() {
    let (reached, go_on) = (Gate::default(), Gate::default());
    let servers = [
        Server::echoing(),
        hesitant(&reached, &go_on),
        Server::echoing(),
    ];
    let setup = Setup::new(&servers.each_ref().map(Server::address)).patient();
    let proxy = setup.start();
    let mut client = proxy.login("maria");
    proxy.signal(Signal::USR1);
    reached.wait();
    let position = proxy.log().position();
    proxy.reconfigure(&setup.clone().state(1, "draining").text());
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    go_on.open();
    proxy.wait_log(position, |line| {
        line.is("transfer finished") && line.get("to") == "pod-1"
    });
    // The reload's own round may have seen it arrive as well, and moved nobody; and it
    // may be over before the other has counted its own.
    proxy.wait_log(position, |line| {
        line.is("migration round finished")
            && line.get("trigger") == "SIGHUP"
            && line.get("success") == "1"
    });
    assert_ne!(client.value(WHO), servers[1].address().to_string());
}

#[test]
fn an_order_to_leave_a_backend_that_was_left_meanwhile_is_dismissed() {
    let (reached, go_on) = (Gate::default(), Gate::default());
    let servers = [Server::echoing(), hesitant(&reached, &go_on)];
    let setup = Setup::new(&servers.each_ref().map(Server::address)).patient();
    let proxy = setup.start();
    let mut client = proxy.login("maria");
    proxy.signal(Signal::USR1);
    reached.wait();
    let position = proxy.log().position();
    proxy.reconfigure(&setup.clone().state(0, "draining").text());
    proxy.wait_log(position, |line| {
        line.is("migration round started") && line.get("trigger") == "SIGHUP"
    });
    go_on.open();
    let finished = proxy.wait_log(position, |line| {
        line.is("migration round finished") && line.get("trigger") == "SIGHUP"
    });
    let counts = ["sessions", "success", "recoverable", "fatal"].map(|key| finished.get(key));
    assert_eq!(counts, ["0"; 4], "{}", finished.raw);
    assert_eq!(client.value(WHO), servers[1].address().to_string());
}

#[test]
fn a_limit_that_the_machine_cannot_hold_is_refused_at_a_reload_too() {
    let servers = [Server::echoing(), Server::echoing()];
    let setup = Setup::new(&servers.each_ref().map(Server::address));
    let proxy = setup.start();
    let mut client = proxy.login("maria");
    let position = proxy.log().position();
    let too_many = setup
        .clone()
        .state(0, "draining")
        .top("max_connections = 1000000");
    proxy.reconfigure(&too_many.text());
    let refused = proxy.wait_log(position, |line| line.is("reload failed, nothing changed"));
    let reason = refused.get("reason");
    assert!(
        reason.starts_with("max_connections = 1000000 needs "),
        "{reason}"
    );
    // It is not draining.
    let mut second = proxy.login("maria");
    let homes = [client.value(WHO), second.value(WHO)];
    assert_ne!(homes[0], homes[1]);
}
