//! What a session over TLS goes through from its first byte to its last.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use openssl::ssl::{ShutdownState, SslVersion};

use super::peer::careless_client;
use super::rig::{Site, before_postgres, secure, tls_connect, tls_login};
use crate::support::message::{self, BackendKey};
use crate::support::poll_kernel;
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::Server;
use crate::support::wire::Wire;

fn start(server: SocketAddr, mode: &str) -> Proxy {
    let site = Site::new();
    Setup::new(&[server])
        .section(&site.client_tls(mode, ""))
        .start()
}

fn ssl_request() -> Vec<u8> {
    message::packet(message::SSL_REQUEST, &[])
}

#[test]
fn what_is_sent_in_clear_behind_sslrequest_is_never_executed() {
    let server = Server::start(|_| panic!("a session came through"));
    let startup = message::startup(message::VERSION_3_0, &[("user", "maria")]);
    for mode in ["allow", "require"] {
        let proxy = start(server.address(), mode);
        for behind in [
            startup.clone(),
            [startup.clone(), message::query("DROP TABLE x")].concat(),
            message::cancel_request(&BackendKey(vec![0; 8])),
            ssl_request(),
            b"x".to_vec(),
        ] {
            let mut client = Wire::connect(proxy.address());
            client.send(&[ssl_request(), behind].concat());
            let error = client.expect_error("FATAL", "08P01");
            assert!(error.field('M').contains("encryption request"), "{error:?}");
            client.expect_gone();
        }
        // Behind the answer it is no handshake.
        let mut client = Wire::connect(proxy.address());
        client.send(&ssl_request());
        assert_eq!(client.receive_byte(), b'S');
        client.send(&startup);
        proxy.wait_log(0, |line| line.raw.contains("negotiating TLS"));
    }
    server.join();
    assert_eq!(server.further_cancels(), []);
}

#[test]
fn a_startup_packet_behind_the_first_one_inside_tls_is_refused() {
    let server = Server::start(|_| panic!("a session came through"));
    let proxy = start(server.address(), "allow");
    let mut client = tls_connect(proxy.address(), &careless_client(SslVersion::TLS1_3));
    client.send(&ssl_request());
    client.expect_error("FATAL", "08P01");
    client.expect_gone();
    server.join();
}

#[test]
fn gssencrequest_then_sslrequest() {
    let server = Server::echoing();
    let proxy = start(server.address(), "require");
    let mut client = Wire::connect(proxy.address());
    client.send(&message::packet(message::GSSENC_REQUEST, &[]));
    assert_eq!(client.receive_byte(), b'N');
    client.send(&ssl_request());
    assert_eq!(client.receive_byte(), b'S');
    let tcp = client.socket().try_clone().unwrap();
    let tls = careless_client(SslVersion::TLS1_3);
    let mut client = Wire::over(tls.connect("localhost", tcp).unwrap());
    client.start(&[("user", "maria")]);
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

#[test]
fn a_cancel_request_is_good_with_tls_and_without() {
    let server = secure();
    let site = Site::new();
    let proxy = before_postgres(&[server.cluster.address()])
        .section(&site.client_tls("require", ""))
        .section("[server_tls]\nsslmode = \"require\"")
        .start();
    let mut watcher = server.cluster.client();
    for (number, over_tls) in [true, false].into_iter().enumerate() {
        let name = format!("sleeper {number}");
        let tls = careless_client(SslVersion::TLS1_3);
        let mut client = tls_connect(proxy.address(), &tls);
        let greeting = client.start(&[
            ("user", "postgres"),
            ("database", "postgres"),
            ("application_name", &name),
        ]);
        client.send(&message::query("SELECT pg_sleep(600)"));
        let asleep = "SELECT count(*) FROM pg_stat_activity \
                      WHERE application_name = $1 AND wait_event = 'PgSleep'";
        poll_kernel(
            || {
                watcher
                    .query_one(asleep, &[&name])
                    .unwrap()
                    .get::<_, i64>(0)
                    == 1
            },
            || format!("{name} does not sleep"),
        );
        let request = message::cancel_request(&greeting.key.unwrap());
        if over_tls {
            let mut canceller = tls_connect(proxy.address(), &tls);
            canceller.send(&request);
            canceller.expect_gone();
        } else {
            // As libpq did up to version 16, whatever its sslmode.
            let mut canceller = Wire::connect(proxy.address());
            canceller.send(&request);
            canceller.expect_gone();
        }
        client.expect(b'T');
        client.expect_error("ERROR", "57014");
        client.expect(b'Z');
        assert_eq!(client.value("SELECT 1"), "1");
    }
}

#[test]
fn a_client_may_stop_sending_and_still_hear_its_answer() {
    let server = Server::echoing();
    let proxy = start(server.address(), "require");
    let mut client = tls_login(proxy.address(), "maria");
    client.send(&message::query("SELECT 'last words'"));
    let session = client.stream_mut();
    session.shutdown().unwrap();
    session.get_ref().shutdown(Shutdown::Write).unwrap();
    let answer = client.receive_through(b'Z');
    assert_eq!(answer[1].values(), [Some("SELECT 'last words'".to_owned())]);
    // The proxy says its goodbye as well.
    client.expect_end();
    assert!(
        client
            .stream_mut()
            .get_shutdown()
            .contains(ShutdownState::RECEIVED)
    );
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    assert_eq!(closed.get("reason"), "client disconnected");
    server.join();
}

#[test]
fn a_server_may_end_and_its_last_word_still_arrives() {
    let server = Server::start(|mut end| {
        end.welcome();
        end.next_query();
        end.wire
            .send(&message::error_response("FATAL", "57P01", "terminated"));
    });
    let proxy = start(server.address(), "require");
    let mut client = tls_login(proxy.address(), "maria");
    client.send(&message::query("SELECT 1"));
    client.expect_error("FATAL", "57P01");
    client.expect_end();
    assert!(
        client
            .stream_mut()
            .get_shutdown()
            .contains(ShutdownState::RECEIVED)
    );
}

#[test]
fn who_leaves_with_terminate_needs_no_close_notify() {
    let server = Server::echoing();
    let proxy = start(server.address(), "require");
    type Prepare = fn(&std::net::TcpStream);
    let leave: [(&str, Prepare); 2] = [
        ("close", |_| {}),
        ("reset", |tcp| {
            let zero = Some(std::time::Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(tcp, zero).unwrap();
        }),
    ];
    for (how, prepare) in leave {
        let position = proxy.log().position();
        let mut client = tls_login(proxy.address(), "maria");
        client.send(&message::terminate());
        prepare(client.stream_mut().get_ref());
        // `SslStream` sends no close_notify of its own.
        drop(client);
        let closed = proxy.wait_log(position, |line| line.is("session closed"));
        assert_eq!(closed.get("reason"), "client disconnected", "{how}");
    }
    server.join();
}

#[test]
fn a_stream_that_is_cut_off_is_told_from_one_that_ends() {
    let server = Server::echoing();
    let proxy = start(server.address(), "require");
    drop(tls_login(proxy.address(), "maria"));
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    assert_eq!(
        closed.get("reason"),
        "client closed the connection while reading requests"
    );
    let position = proxy.log().position();
    tls_login(proxy.address(), "maria")
        .stream_mut()
        .shutdown()
        .unwrap();
    let closed = proxy.wait_log(position, |line| line.is("session closed"));
    assert_eq!(closed.get("reason"), "client disconnected");
}

#[test]
fn probes_leave_no_trace() {
    let server = Server::start(|_| panic!("a session came through"));
    let proxy = start(server.address(), "require");
    let before = proxy.log().position();
    let resources = proxy.resources_at_rest(0);
    let address = proxy.address();
    // Connected, and gone.
    drop(Wire::connect(address));
    Wire::connect(address).reset();
    // Asked for TLS, and gone.
    let mut client = Wire::connect(address);
    client.send(&ssl_request());
    assert_eq!(client.receive_byte(), b'S');
    drop(client);
    // Shaken hands, and gone without a word, or with one.
    drop(tls_connect(address, &careless_client(SslVersion::TLS1_3)));
    let mut client = tls_connect(address, &careless_client(SslVersion::TLS1_2));
    client.stream_mut().shutdown().unwrap();
    drop(client);
    proxy.wait_resources(resources);
    // Something that is logged, so that all before it would have been.
    let mut client = Wire::connect(address);
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    proxy.wait_log(before, |line| line.is("connection refused"));
    let lines = proxy.log().since(before);
    assert_eq!(lines.len(), 1, "{lines:#?}");
}

#[test]
fn large_answers_pass_whole_both_ways_while_one_side_reads_late() {
    let server = Server::echoing();
    let proxy = start(server.address(), "require");
    let mut client = tls_login(proxy.address(), "maria");
    let long = format!("SELECT '{}'", "x".repeat(3_000_000));
    client.send(&message::query(&long));
    assert_eq!(client.receive_through(b'Z')[1].values(), [Some(long)]);
    let stream = client.stream_mut();
    stream.write_all(&message::terminate()).unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}
