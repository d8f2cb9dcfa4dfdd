//! Messages that come in pieces, and messages that are large.

use std::thread;

use crate::support::message::{self, Message};
use crate::support::proxy::Setup;
use crate::support::server::Server;
use crate::support::wire::Wire;

#[test]
fn requests_may_be_split_at_every_byte() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = proxy.login("maria");
    // Two in one, so that the split also falls on and beside their border.
    let requests = [message::query("SELECT 'a'"), message::query("SELECT 'bb'")].concat();
    for at in 1..requests.len() {
        client.send_split(&requests, at);
        let answers = [client.receive_through(b'Z'), client.receive_through(b'Z')];
        let values = answers.map(|answer| answer[1].values().remove(0).unwrap());
        assert_eq!(values, ["SELECT 'a'", "SELECT 'bb'"], "split at {at}");
    }
}

#[test]
fn answers_may_be_split_at_every_byte() {
    fn answer() -> Vec<u8> {
        message::one_row(&["a", "b"], &[Some("one"), None], "SELECT 1")
    }
    let server = Server::start(|mut end| {
        end.welcome();
        while let Some(at) = end.next_query() {
            end.wire.send_split(&answer(), at.parse().unwrap());
        }
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = proxy.login("maria");
    for at in 1..answer().len() {
        let messages = client.query(&at.to_string());
        let bytes: Vec<u8> = messages.iter().flat_map(Message::bytes).collect();
        assert_eq!(
            bytes.escape_ascii().to_string(),
            answer().escape_ascii().to_string()
        );
    }
    drop(client);
    server.join();
}

#[test]
fn a_startup_packet_may_be_split_at_every_byte() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    let packet = message::startup(message::VERSION_3_0, &[("user", "maria")]);
    for at in 1..packet.len() {
        let mut client = Wire::connect(proxy.address());
        client.send_split(&packet, at);
        client.expect(b'R');
        client.receive_greeting();
    }
}

#[test]
fn a_session_moves_between_split_messages() {
    let servers = [Server::echoing(), Server::echoing()];
    let proxy = Setup::new(&servers.each_ref().map(Server::address)).start();
    let mut client = proxy.login("maria");
    let request = message::query("SELECT 1");
    for at in 1..request.len() {
        // Half a message is not a safe point, so the session stays, whenever
        // the round comes to it; after the other half it goes.
        client.send_split(&request, at);
        assert_eq!(client.receive_through(b'Z').len(), 4);
        proxy.migrate().assert_all_moved(1);
    }
}

#[test]
fn messages_of_64_mib_pass_both_ways_at_once() {
    const SIZE: usize = 64 * 1024 * 1024;
    // A pattern whose period divides no buffer size, so that a piece that is
    // lost, doubled or swapped shows.
    fn pattern(seed: u8) -> Vec<u8> {
        let period: Vec<u8> = (0..251_u8).map(|i| i ^ seed).collect();
        let mut bytes = period.repeat(SIZE / period.len() + 1);
        bytes.truncate(SIZE);
        bytes
    }
    const CLIENTS_SEED: u8 = 3;
    const SERVERS_SEED: u8 = 100;
    let server = Server::start(|mut end| {
        end.welcome();
        let mut sender = Wire::over(end.wire.socket().try_clone().unwrap());
        let sending = thread::spawn(move || {
            sender.send(&message::frame(b'd', &pattern(SERVERS_SEED)));
            sender.send(&message::ready(b'I'));
        });
        let got = end.next().unwrap();
        assert!(
            got.tag == b'd' && got.body == pattern(CLIENTS_SEED),
            "{got:?}"
        );
        sending.join().unwrap();
        assert_eq!(end.next(), None);
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = proxy.login("maria");
    let mut sender = Wire::over(client.socket().try_clone().unwrap());
    let sending = thread::spawn(move || {
        sender.send(&message::frame(b'd', &pattern(CLIENTS_SEED)));
    });
    let got = client.receive();
    assert!(
        got.tag == b'd' && got.body == pattern(SERVERS_SEED),
        "{got:?}"
    );
    client.expect(b'Z');
    sending.join().unwrap();
    client.send(&message::terminate());
    server.join();
}
