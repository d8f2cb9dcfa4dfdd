//! What a stranger can send before authentication, and what it gets for it.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::message::{self, VERSION_3_0, VERSION_3_2};
use crate::support::proxy::{Proxy, Setup, now};
use crate::support::server::Server;
use crate::support::wire::{Received, Wire};
use crate::support::{closed_port, soon};

/// A proxy in front of a scripted server, and its server.
fn proxy() -> (Server, Proxy) {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    (server, proxy)
}

/// The proxy still takes a session.
fn assert_serves(proxy: &Proxy) {
    let mut client = proxy.login("maria");
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

#[test]
fn malformed_startup_packets_are_refused_and_harm_nobody() {
    let (_server, proxy) = proxy();
    let user = ("user", "maria");
    let valid = message::startup(VERSION_3_0, &[user]);
    let cut = |length: usize| {
        let mut packet = valid[..length].to_vec();
        packet[..4].copy_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        packet
    };
    let cases = [
        ("length 0", vec![0; 4], "08P01"),
        ("length 3", vec![0, 0, 0, 3], "08P01"),
        ("length 7", vec![0, 0, 0, 7, 0, 3, 0], "08P01"),
        ("length 10001", 10_001_u32.to_be_bytes().to_vec(), "08P01"),
        ("a huge length", vec![0xff; 4], "08P01"),
        ("protocol 2.0", message::startup(2 << 16, &[user]), "0A000"),
        ("protocol 4.0", message::startup(4 << 16, &[user]), "0A000"),
        (
            "no user",
            message::startup(VERSION_3_0, &[("database", "d")]),
            "28000",
        ),
        (
            "an empty user",
            message::startup(VERSION_3_0, &[("user", "")]),
            "28000",
        ),
        ("no terminator", cut(valid.len() - 1), "08P01"),
        ("a name without value", cut(valid.len() - 7), "08P01"),
        ("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "08P01"),
    ];
    for (name, packet, sqlstate) in cases {
        eprintln!("{name}");
        let mut client = Wire::connect(proxy.address());
        client.send(&packet);
        client.expect_error("FATAL", sqlstate);
        client.expect_gone();
    }
    assert_serves(&proxy);
}

#[test]
fn the_longest_startup_packet_is_taken() {
    const LONGEST: usize = 10_000;
    let (_server, proxy) = proxy();
    let packet = |length: usize| {
        let parameters = |filler| [("user", "maria"), ("options", filler)];
        let short = message::startup(VERSION_3_0, &parameters("")).len();
        message::startup(VERSION_3_0, &parameters(&"x".repeat(length - short)))
    };
    let mut client = Wire::connect(proxy.address());
    client.send(&packet(LONGEST));
    client.expect(b'R');
    let mut client = Wire::connect(proxy.address());
    client.send(&packet(LONGEST + 1));
    client.expect_error("FATAL", "08P01");
}

#[test]
fn a_newer_minor_version_is_negotiated_by_the_server() {
    let server = Server::start(|mut end| {
        assert_eq!(end.version, VERSION_3_2);
        let mut unknown = VERSION_3_0.to_be_bytes().to_vec();
        unknown.extend(0_i32.to_be_bytes());
        end.wire.send(&message::frame(b'v', &unknown));
        end.welcome();
        end.echo();
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(VERSION_3_2, &[("user", "maria")]));
    let negotiated = client.expect(b'v');
    assert_eq!(negotiated.body[..4], VERSION_3_0.to_be_bytes());
    client.expect(b'R');
    client.receive_greeting();
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
    drop(client);
    server.join();
}

#[test]
fn encryption_is_refused_once_each_and_the_session_begins() {
    let (_server, proxy) = proxy();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::packet(message::GSSENC_REQUEST, &[]));
    assert_eq!(client.receive_byte(), b'N');
    client.send(&message::packet(message::SSL_REQUEST, &[]));
    assert_eq!(client.receive_byte(), b'N');
    client.start(&[("user", "maria")]);
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

#[test]
fn encryption_cannot_be_asked_for_without_end() {
    let (_server, proxy) = proxy();
    let mut client = Wire::connect(proxy.address());
    let request = message::packet(message::SSL_REQUEST, &[]);
    let refusals = (0..10)
        .take_while(|_| {
            // The proxy may have closed the connection already.
            let _ = client.try_send(&request);
            match client.receive_one_byte() {
                Some(b'N') => true,
                Some(b'E') | None => false,
                Some(other) => panic!("answer {other}"),
            }
        })
        .count();
    assert!((1..=2).contains(&refusals), "{refusals} refusals");
    assert_serves(&proxy);
}

#[test]
fn data_behind_an_encryption_request_ends_the_connection() {
    let (_server, proxy) = proxy();
    let mut client = Wire::connect(proxy.address());
    let mut early = message::packet(message::SSL_REQUEST, &[]);
    early.extend(message::startup(VERSION_3_0, &[("user", "maria")]));
    client.send(&early);
    client.expect_error("FATAL", "08P01");
    client.expect_gone();
}

#[test]
fn a_trickle_does_not_renew_the_handshake_timeout() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()])
        .top("handshake_timeout = \"300ms\"")
        .start();
    let packet = message::startup(VERSION_3_0, &[("user", &"m".repeat(5_000))]);
    let mut client = Wire::connect(proxy.address());
    let began = Instant::now();
    let mut bytes = packet[..packet.len() - 1].iter();
    let end = loop {
        // A byte whenever nothing has come for a moment.  The last one never
        // comes, and once the proxy is gone sending fails.
        let next = bytes.next().expect("the proxy gives up");
        let _ = client.try_send(&[*next]);
        match client.receive_by(now() + Duration::from_millis(10)) {
            Received::Nothing => assert!(began.elapsed() < crate::support::PATIENCE),
            end => break end,
        }
    };
    if let Received::Message(error) = &end {
        assert_eq!(error.tag as char, 'E', "{error:?}");
        assert_eq!(error.field('V'), "FATAL");
    }
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "gave up early"
    );
    assert_serves(&proxy);
}

#[test]
fn a_silent_client_is_given_up_at_the_handshake_timeout() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()])
        .top("handshake_timeout = \"200ms\"")
        .start();
    assert_serves(&proxy);
    let before = proxy.resources_at_rest(0);
    let mut clients: Vec<_> = (0..10).map(|_| Wire::connect(proxy.address())).collect();
    for client in &mut clients {
        while matches!(client.receive_by(soon()), Received::Message(_)) {}
    }
    proxy.wait_resources(before);
}

#[test]
fn a_health_probe_is_not_worth_a_line() {
    let (_server, proxy) = proxy();
    assert_serves(&proxy);
    proxy.wait_log(0, |line| line.is("session closed"));
    let before = proxy.log().position();
    for _ in 0..5 {
        drop(Wire::connect(proxy.address()));
        Wire::connect(proxy.address()).reset();
    }
    // A session behind them shows that they have been dealt with: connections
    // are accepted in their order.
    assert_serves(&proxy);
    proxy.wait_log(before, |line| line.is("session closed"));
    let lines = proxy.log().since(before);
    let others: Vec<_> = lines
        .iter()
        .filter(|line| !line.is("session opened") && !line.is("session closed"))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn a_revival_token_is_refused_in_every_spelling() {
    let (server, proxy) = proxy();
    for name in [
        "crdb:session_revival_token_base64",
        "CRDB:SESSION_REVIVAL_TOKEN_BASE64",
        "crdb:Session_Revival_Token_base64",
    ] {
        let mut client = Wire::connect(proxy.address());
        let parameters = [("user", "maria"), (name, "c2VjcmV0")];
        client.send(&message::startup(VERSION_3_0, &parameters));
        let error = client.expect(b'E');
        assert_eq!(error.field('V'), "FATAL");
        assert_eq!(
            error.field('M'),
            "parameter crdb:session_revival_token_base64 is not allowed"
        );
        client.expect_gone();
    }
    assert_serves(&proxy);
    server.join();
    let log = proxy.log().text();
    assert!(!log.contains("c2VjcmV0"), "the token was logged");
}

/// CockroachDB lowers names by Unicode: U+212A becomes `k`, U+0130 `i` and a dot.
#[test]
fn a_name_that_a_server_may_read_as_another_is_refused() {
    let (server, proxy) = proxy();
    let long = format!("X{}", "x".repeat(3000));
    let cut = format!("parameter X{}… is not allowed", "x".repeat(63));
    for (names, told) in [
        (
            vec!["crdb:session_revival_to\u{212a}en_base64"],
            "parameter crdb:session_revival_to\\xe2\\x84\\xaaen_base64 is not allowed",
        ),
        (
            vec!["crdb:sess\u{130}on_revival_token_base64"],
            "parameter crdb:sess\\xc4\\xb0on_revival_token_base64 is not allowed",
        ),
        (
            vec!["größe"],
            "parameter gr\\xc3\\xb6\\xc3\\x9fe is not allowed",
        ),
        (vec!["User"], "parameter User is not allowed"),
        (
            vec!["crdb:remote_addr", "CRDB:remote_addr"],
            "parameter CRDB:remote_addr is not allowed",
        ),
        (vec![&long.to_lowercase()[..], &long[..]], &cut),
    ] {
        let mut client = Wire::connect(proxy.address());
        let mut parameters = vec![("user", "maria")];
        parameters.extend(names.into_iter().map(|name| (name, "c2VjcmV0")));
        client.send(&message::startup(VERSION_3_0, &parameters));
        let error = client.expect_error("FATAL", "08004");
        assert_eq!(error.field('M'), told);
        client.expect_gone();
    }
    // The same name again is no riddle: the last one counts.
    let mut client = Wire::connect(proxy.address());
    client.start(&[("user", "maria"), ("TimeZone", "UTC"), ("TimeZone", "UTC")]);
    drop(client);
    assert_serves(&proxy);
    server.join();
}

#[test]
fn the_servers_learn_the_true_client_address() {
    let server = Server::start(|mut end| {
        let addresses: Vec<_> = end
            .parameters
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("crdb:remote_addr"))
            .map(|(_, value)| value.clone())
            .collect();
        assert_eq!(end.parameter("application_name"), Some("kept"));
        end.welcome();
        let seen = addresses.join(",");
        while end.next_query().is_some() {
            let answer = message::one_row(&["seen"], &[Some(&seen)], "SELECT 1");
            end.wire.send(&answer);
        }
    });
    let proxy = Setup::new(&[server.address()]).start();
    for name in ["crdb:remote_addr", "CRDB:REMOTE_ADDR", "crdb:Remote_Addr"] {
        let mut client = Wire::connect(proxy.address());
        client.start(&[
            ("user", "maria"),
            (name, "10.9.8.7:1"),
            ("application_name", "kept"),
        ]);
        let own = client.socket().local_addr().unwrap().to_string();
        assert_eq!(client.value("SELECT 1"), own);
    }
    server.join();
}

#[test]
fn one_more_than_max_connections_is_told_so() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()])
        .top("max_connections = 2")
        .start();
    let _first = proxy.login("maria");
    let second = proxy.login("maria");
    let mut third = Wire::connect(proxy.address());
    // Whether it was refused at once or only after its packet is not promised.
    let _ = third.try_send(&message::startup(VERSION_3_0, &[("user", "maria")]));
    third.expect_error("FATAL", "53300");
    third.expect_gone();

    drop(second);
    // Its place is free when all of it is gone, which nothing announces.
    let deadline = soon();
    loop {
        let mut fourth = Wire::connect(proxy.address());
        fourth.send(&message::startup(VERSION_3_0, &[("user", "maria")]));
        match fourth.receive().tag {
            b'R' => break,
            _ => assert!(Instant::now() < deadline, "the place is not given back"),
        }
    }
}

/// A pool that opens hundreds of connections at once does so in a moment in which
/// the proxy accepts none.
#[test]
fn hundreds_of_connections_can_wait_for_their_accept() {
    const CONNECTIONS: usize = 600;
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let most: usize = most.trim().parse().unwrap();
    let (_server, proxy) = proxy();
    proxy.signal(Signal::STOP);
    let connections = most.min(CONNECTIONS);
    let waiting: Vec<_> = (0..connections)
        .map(|number| {
            // A connection that is turned away hears nothing, and tries again.
            TcpStream::connect_timeout(&proxy.address(), Duration::from_millis(900))
                .unwrap_or_else(|error| panic!("connection {number}: {error}"))
        })
        .collect();
    proxy.signal(Signal::CONT);
    assert_serves(&proxy);
    drop(waiting);
}

#[test]
fn a_client_is_told_that_no_backend_answers() {
    let (gone, hangs_up) = (closed_port(), Server::start(drop));
    let proxy = Setup::new(&[gone, hangs_up.address()]).start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(VERSION_3_0, &[("user", "maria")]));
    let error = client.expect(b'E');
    assert_eq!(error.field('V'), "FATAL");
    assert!(error.field('C').starts_with("08"), "{error:?}");
    client.expect_gone();
}

#[test]
fn the_next_backend_is_tried_where_one_does_not_answer() {
    let server = Server::echoing();
    let proxy = Setup::new(&[closed_port(), server.address()]).start();
    for _ in 0..4 {
        assert_serves(&proxy);
    }
    let opened = proxy.wait_log(0, |line| line.is("session opened"));
    assert_eq!(opened.get("backend"), "pod-1");
    assert_eq!(opened.get("user"), "maria");
    assert_eq!(opened.get("database"), "defaultdb");
}

#[test]
fn a_draining_backend_gets_no_new_session() {
    let (draining, active) = (Server::start(|_| unreachable!()), Server::echoing());
    let proxy = Setup::new(&[draining.address(), active.address()])
        .state(0, "draining")
        .start();
    for _ in 0..4 {
        assert_serves(&proxy);
    }
    draining.join();
}
