//! Shares of the sessions, networks, idle sessions.

use crate::support::message::{self, VERSION_3_0};
use crate::support::metrics::{ADMIN, http_get};
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::Server;
use crate::support::wire::Wire;

fn start(lines: &str) -> (Proxy, Setup, Server) {
    let server = Server::echoing();
    let setup = Setup::new(&[server.address()]).top(ADMIN).section(lines);
    (setup.start(), setup, server)
}

/// Who gets no session hears why.
fn refused(proxy: &Proxy, user: &str, database: &str) -> String {
    let mut wire = Wire::connect(proxy.address());
    let parameters = [("user", user), ("database", database)];
    wire.send(&message::startup(VERSION_3_0, &parameters));
    let told = wire.expect_error("FATAL", "53300").field('M');
    wire.expect_gone();
    told
}

fn login(proxy: &Proxy, user: &str, database: &str) -> Wire {
    let mut wire = Wire::connect(proxy.address());
    wire.start(&[("user", user), ("database", database)]);
    proxy.wait_opened(&wire);
    wire
}

#[test]
fn one_user_and_one_database_have_their_share() {
    let (proxy, setup, _server) = start("[limits]\nper_user = 2\nper_database = 3");
    let first = login(&proxy, "maria", "shop");
    let _second = login(&proxy, "maria", "shop");
    assert_eq!(
        refused(&proxy, "maria", "other"),
        "sqlproxy has reached per_user = 2 for user \"maria\""
    );
    let _third = login(&proxy, "anna", "shop");
    assert_eq!(
        refused(&proxy, "bert", "shop"),
        "sqlproxy has reached per_database = 3 for database \"shop\""
    );
    let _elsewhere = login(&proxy, "bert", "other");
    // A place that is given back is the next one's, and those refused have taken none.
    let position = proxy.log().position();
    drop(first);
    proxy.wait_log(position, |line| line.is("session closed"));
    let _again = login(&proxy, "maria", "shop");
    let metrics = http_get(&proxy, "/metrics").1;
    for reason in ["per_user", "per_database"] {
        let sample = format!("sqlproxy_clients_refused_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&sample), "{metrics}");
    }
    // Taken back by a reload.
    let position = proxy.log().position();
    proxy.reconfigure(&setup.text().replace("per_user = 2", "per_user = 9"));
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    login(&proxy, "maria", "third");
}

#[test]
fn a_network_that_is_not_allowed_gets_no_answer_and_a_reload_ends_its_sessions() {
    let (proxy, setup, _server) = start("[limits]\nallow = [\"127.0.0.0/8\"]");
    let mut client = login(&proxy, "maria", "shop");
    let position = proxy.log().position();
    proxy.reconfigure(&setup.text().replace("allow", "deny"));
    let fatal = client.expect_error("FATAL", "57P01");
    assert_eq!(
        fatal.field('M'),
        "terminating connection because its network is not allowed any more"
    );
    client.expect_gone();
    proxy.wait_log(position, |line| line.is("session closed"));
    let mut wire = Wire::connect(proxy.address());
    wire.expect_gone();
    let line = proxy.wait_log(position, |line| {
        line.is("connection closed: its network is not allowed")
    });
    assert!(line.get("client").starts_with("127.0.0.1:"));
    let metrics = http_get(&proxy, "/metrics").1;
    assert!(metrics.contains("sqlproxy_clients_refused_total{reason=\"network\"} 1"));
}

#[test]
fn who_is_idle_for_long_is_ended_outside_of_a_transaction() {
    let pods = crate::support::pods::Pods::start(1);
    let proxy = Setup::new(&pods.addresses())
        .top("idle_timeout = \"500ms\"")
        .start();
    let mut in_transaction = proxy.login("maria");
    in_transaction.rows("BEGIN");
    let mut idle = proxy.login("anna");
    let fatal = idle.expect_error("FATAL", "57P05");
    assert_eq!(
        fatal.field('M'),
        "terminating connection due to idle-session timeout"
    );
    idle.expect_gone();
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    assert_eq!(closed.get("reason"), "idle for idle_timeout");
    assert_eq!(closed.get("user"), "anna");
    in_transaction.rows("COMMIT");
    in_transaction.expect_error("FATAL", "57P05");
}

/// Version 2's header: signature, version and command, family, length, what it says.
fn second_version(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, family]);
    header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    header.extend(body);
    header
}

/// A session behind the header, and where the log says that it comes from.
fn behind(proxy: &Proxy, header: &[u8]) -> String {
    let position = proxy.log().position();
    let mut wire = Wire::connect(proxy.address());
    // In one piece with what follows, as a load balancer's first packet may be.
    let startup = message::startup(VERSION_3_0, &[("user", "maria"), ("database", "d")]);
    wire.send(&[header, &startup].concat());
    wire.expect(b'R');
    wire.receive_greeting();
    assert_eq!(wire.value("SELECT 1"), "SELECT 1");
    let opened = proxy.wait_log(position, |line| line.is("session opened"));
    opened.get("client").to_owned()
}

#[test]
fn a_load_balancer_says_whom_a_connection_is_for() {
    let lines = "[limits]\nproxy_protocol = [\"127.0.0.0/8\"]\nallow = [\"192.0.2.0/24\", \
                 \"2001:db8::/32\", \"127.0.0.1\"]\ndeny = [\"192.0.2.9\"]";
    let (proxy, _, server) = start(lines);
    let line = |source: &str| format!("PROXY TCP4 {source} 192.0.2.1 4000 26257\r\n");
    assert_eq!(
        behind(&proxy, line("192.0.2.7").as_bytes()),
        "192.0.2.7:4000"
    );
    let six = b"PROXY TCP6 2001:db8::7 2001:db8::1 4000 26257\r\n";
    assert_eq!(behind(&proxy, six), "[2001:db8::7]:4000");
    let mut body = vec![192, 0, 2, 7, 192, 0, 2, 1, 0x0f, 0xa0, 0x66, 0x91];
    assert_eq!(
        behind(&proxy, &second_version(0x21, 0x11, &body)),
        "192.0.2.7:4000"
    );
    // With more that it has to say.
    body.extend([0x02, 0, 3, b'f', b'o', b'o']);
    assert_eq!(
        behind(&proxy, &second_version(0x21, 0x11, &body)),
        "192.0.2.7:4000"
    );
    let mut body = vec![0; 36];
    body[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    body[15] = 7;
    body[32..34].copy_from_slice(&4000_u16.to_be_bytes());
    assert_eq!(
        behind(&proxy, &second_version(0x21, 0x21, &body)),
        "[2001:db8::7]:4000"
    );
    // For itself: its own address, which is its own to check.
    for header in [second_version(0x20, 0, &[]), b"PROXY UNKNOWN\r\n".to_vec()] {
        let client = behind(&proxy, &header);
        assert!(client.starts_with("127.0.0.1:"), "{client}");
    }
    // Whom the lists exclude.
    for source in ["192.0.2.9", "198.51.100.1"] {
        let position = proxy.log().position();
        let mut wire = Wire::connect(proxy.address());
        wire.send(line(source).as_bytes());
        wire.expect_gone();
        let words = "connection closed: its network is not allowed";
        let told = proxy.wait_log(position, |line| line.is(words));
        assert_eq!(told.get("client"), format!("{source}:4000"));
    }
    drop(server);
}

#[test]
fn a_header_is_neither_left_away_nor_made_up() {
    let (proxy, _, _server) = start("[limits]\nproxy_protocol = [\"127.0.0.1\"]");
    let startup = message::startup(VERSION_3_0, &[("user", "maria")]);
    let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200));
    let much = second_version(0x21, 0x11, &vec![0; 5000]);
    let bad: [&[u8]; 6] = [
        &startup,
        b"PROXY TCP4 nobody 192.0.2.1 1 1\r\n",
        long.as_bytes(),
        &much,
        &second_version(0x21, 0x11, &[1, 2, 3]),
        &second_version(0x31, 0x11, &[0; 12]),
    ];
    for header in bad {
        let mut wire = Wire::connect(proxy.address());
        wire.send(header);
        let told = wire.expect_error("FATAL", "08P01").field('M');
        assert!(told.contains("reading the PROXY header"), "{told}");
        wire.expect_gone();
    }
    // A probe says nothing, and is worth no line.
    let position = proxy.log().position();
    drop(Wire::connect(proxy.address()));
    assert_eq!(
        behind(&proxy, b"PROXY UNKNOWN\r\n").split(':').next(),
        Some("127.0.0.1")
    );
    let since = proxy.log().since(position);
    assert!(
        !since
            .iter()
            .any(|line| line.event.starts_with("connection closed"))
    );
    // From elsewhere a header is no startup packet.
    let (proxy, _, _server) = start("[limits]\nproxy_protocol = [\"10.0.0.0/8\"]");
    let mut wire = Wire::connect(proxy.address());
    wire.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 26257\r\n");
    wire.expect_error("FATAL", "08P01");
    wire.expect_gone();
}

#[test]
fn a_header_that_does_not_end_holds_up_nobody_else() {
    let lines = "[limits]\nproxy_protocol = [\"127.0.0.1\"]";
    let server = Server::echoing();
    let setup = Setup::new(&[server.address()]).top("handshake_timeout = \"300ms\"");
    let proxy = setup.section(lines).start();
    for begun in [
        &b"PROXY TC"[..],
        b"PROXY TCP4 1.1.1.1",
        b"\r\n\r\n\0\r\nQUIT\n\x21",
    ] {
        let mut wire = Wire::connect(proxy.address());
        wire.send(begun);
        wire.expect_error("FATAL", "08P01");
        wire.expect_gone();
    }
}
