//! Logins are the client's and the server's; the proxy only hands them on.

use std::sync::mpsc;

use postgres::{Client, NoTls};
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use sqlpod::Auth;

use crate::support::message::{self, Message, authentication, built, error_response};
use crate::support::pods::Pods;
use crate::support::proxy::Setup;
use crate::support::server::{Server, ServerEnd};
use crate::support::wire::{Received, Wire};
use crate::support::{PATIENCE, soon};

/// Asks for an answer and takes it.
fn ask(end: &mut ServerEnd, code: i32, data: &[u8]) -> Vec<u8> {
    end.wire.send(&authentication(code, data));
    let answer = end.next().unwrap();
    assert_eq!(answer.tag as char, 'p', "{answer:?}");
    answer.body
}

#[test]
fn a_cleartext_password_is_relayed() {
    let server = Server::start(|mut end| {
        assert_eq!(ask(&mut end, 3, &[]), b"open sesame\0");
        end.welcome();
        end.echo();
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    assert_eq!(client.expect(b'R').body, 3_i32.to_be_bytes());
    client.send(&message::password("open sesame"));
    assert_eq!(client.expect(b'R').body, [0; 4]);
    client.receive_greeting();
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
    let log = proxy.log().text();
    assert!(!log.contains("sesame"), "the password was logged");
    drop(client);
    server.join();
}

#[test]
fn an_md5_challenge_is_relayed() {
    const SALT: &[u8] = b"s\0lt";
    let server = Server::start(|mut end| {
        assert_eq!(ask(&mut end, 5, SALT), b"md5digest\0");
        end.welcome();
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    assert_eq!(client.expect(b'R').body[4..], *SALT);
    client.send(&message::password("md5digest"));
    client.expect(b'R');
    client.receive_greeting();
    drop(client);
    server.join();
}

#[test]
fn scram_is_relayed_to_the_byte() {
    // The server's side is played by fixed bytes, so the client's proof is
    // wrong and its messages count, not their meaning.
    let (seen, answers) = mpsc::channel();
    let server = Server::start(move |mut end| {
        seen.send(ask(&mut end, 10, b"SCRAM-SHA-256\0\0")).unwrap();
        seen.send(ask(&mut end, 11, b"r=whatever,s=c2FsdA==,i=4096"))
            .unwrap();
        end.wire.send(&authentication(12, b"v=c2lnbmF0dXJl"));
        end.welcome();
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    assert_eq!(client.expect(b'R').body[4..], *b"SCRAM-SHA-256\0\0");
    let scram = ScramSha256::new(b"secret", ChannelBinding::unsupported());
    let first =
        built(|buffer| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), buffer));
    client.send(&first);
    assert_eq!(answers.recv_timeout(PATIENCE).unwrap(), first[5..]);
    assert_eq!(
        client.expect(b'R').body[4..],
        *b"r=whatever,s=c2FsdA==,i=4096"
    );
    let last = built(|buffer| frontend::sasl_response(b"c=biws,r=whatever,p=cHJvb2Y=", buffer));
    client.send(&last);
    assert_eq!(answers.recv_timeout(PATIENCE).unwrap(), last[5..]);
    assert_eq!(client.expect(b'R').body[4..], *b"v=c2lnbmF0dXJl");
    assert_eq!(client.expect(b'R').body, [0; 4]);
    client.receive_greeting();
    drop(client);
    server.join();
}

#[test]
fn the_servers_refusal_reaches_the_client_as_it_is() {
    fn refusal() -> Message {
        let text = "password authentication failed for user \"maria\"";
        Message {
            tag: b'E',
            body: error_response("FATAL", "28P01", text)[5..].to_vec(),
        }
    }
    let server = Server::start(|mut end| {
        ask(&mut end, 3, &[]);
        end.wire.send(&refusal().bytes());
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    client.expect(b'R');
    client.send(&message::password("wrong"));
    assert_eq!(client.receive(), refusal());
    client.expect_gone();
    server.join();
}

#[test]
fn notices_during_login_are_handed_on_however_many() {
    const NOTICES: usize = 200;
    let server = Server::start(|mut end| {
        let notice = message::notice_response("01000", "almost there");
        end.wire.send(&notice.repeat(NOTICES));
        end.welcome();
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    let notices = client.receive_through(b'R').len() - 1;
    assert_eq!(notices, NOTICES);
    client.receive_greeting();
}

/// More than a login may take and the kernel's buffers hold.
const FLOOD_BYTES: usize = 32 * 1024 * 1024;

#[test]
fn a_flood_during_login_is_bounded() {
    // Neither a client nor a proxy can be made to take it for ever.
    let server = Server::start(|mut end| {
        let notice = message::notice_response("01000", &"x".repeat(8_000));
        let mut sent = 0;
        while end.wire.try_send(&notice).is_ok() {
            sent += notice.len();
            assert!(sent < FLOOD_BYTES, "the proxy takes all of it");
        }
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    let mut bytes = 0;
    let end = loop {
        match client.receive_by(soon()) {
            Received::Message(message) if message.tag == b'N' => bytes += message.body.len(),
            end => break end,
        }
        assert!(bytes < FLOOD_BYTES, "no end to it");
    };
    let Received::Message(error) = end else {
        panic!("a bare end: {end:?}");
    };
    assert_eq!(error.tag as char, 'E', "{error:?}");
    assert_eq!(error.field('V'), "FATAL");
    client.expect_gone();
    server.join();
}

#[test]
fn a_client_that_answers_with_something_else_is_refused() {
    let server = Server::start(|mut end| {
        end.wire.send(&authentication(3, &[]));
        assert_eq!(end.next(), None, "what is no password is not handed on");
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    client.expect(b'R');
    client.send(&message::query("SELECT 1"));
    client.expect_error("FATAL", "08P01");
    client.expect_gone();
    server.join();
}

#[test]
fn a_login_that_hangs_is_given_up_at_the_handshake_timeout() {
    let server = Server::start(|mut end| {
        end.wire.send(&authentication(3, &[]));
        assert_eq!(end.next(), None);
    });
    let proxy = Setup::new(&[server.address()])
        .top("handshake_timeout = \"300ms\"")
        .start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    client.expect(b'R');
    let error = client.expect(b'E');
    assert_eq!(error.field('V'), "FATAL");
    client.expect_gone();
    server.join();
}

#[test]
fn real_passwords_open_the_door_and_wrong_ones_do_not() {
    for auth in [Auth::Password, Auth::ScramSha256] {
        let pods = Pods::start_with(2, |config| config.auth(auth).user("maria", "open sesame"));
        let proxy = Setup::new(&pods.addresses()).start();
        let conninfo = |password: &str| {
            let base = proxy.connection_string("maria");
            format!("{base} password='{password}'")
        };
        let refused = Client::connect(&conninfo("open barley"), NoTls)
            .err()
            .unwrap();
        assert_eq!(refused.code().unwrap().code(), "28P01", "{auth:?}");

        let mut client = Client::connect(&conninfo("open sesame"), NoTls).unwrap();
        for _ in 0..3 {
            client.batch_execute("SELECT 1").unwrap();
            // Nobody is asked for the password again.
            proxy.migrate().assert_all_moved(1);
        }
        client.batch_execute("SELECT 1").unwrap();
        assert!(
            !proxy.log().text().contains("sesame"),
            "a password was logged"
        );
    }
}
