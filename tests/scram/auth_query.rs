//! Users that are looked up on a backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{PASSWORD, Site, connect, password_failed, refusal, try_connect, who};
use crate::support::gate::Gate;
use crate::support::log::Line;
use crate::support::message::{
    VERSION_3_0, command_complete, data_row, error_response, frame, ready, startup,
};
use crate::support::metrics::{ADMIN, http_get};
use crate::support::proxy::{Proxy, Setup};
use crate::support::scram;
use crate::support::server::{Server, ServerEnd};
use crate::support::wire::{Received, Wire};
use crate::support::{poll_kernel, soon};

/// Why a client was refused, for the log alone.
fn cause(proxy: &Proxy, user: &str, password: &str) -> ((String, String), String) {
    let position = proxy.log().position();
    let told = refusal(proxy, user, password);
    let is_it = |line: &Line| line.is("connection refused") && line.get("user") == user;
    let line = proxy.wait_log(position, is_it);
    (told, line.get("reason").to_owned())
}

#[test]
fn who_may_log_in_is_the_servers_to_say() {
    let site = Site::new();
    site.execute(
        "CREATE ROLE expired LOGIN PASSWORD 'open sesame' VALID UNTIL '2001-01-01';
         CREATE ROLE lasting LOGIN PASSWORD 'open sesame' VALID UNTIL '2999-01-01';
         CREATE ROLE nologin PASSWORD 'open sesame';
         CREATE ROLE without LOGIN;
         CREATE ROLE \"sma'll; --\" LOGIN PASSWORD 'open sesame';
         DO $$ BEGIN
           EXECUTE 'CREATE ROLE ' || repeat('x', 63) || ' LOGIN PASSWORD ''open sesame''';
         END $$;
         SET password_encryption = 'md5';
         CREATE ROLE old LOGIN PASSWORD 'open sesame';",
    );
    let proxy = site.by_query().start();
    for user in ["anna", "lasting", "sma'll; --"] {
        assert_eq!(who(&mut connect(&proxy, user)), user);
    }
    let no_password = "auth_query gives no password: it has none, or one that has expired";
    for (user, expected) in [
        ("anna", "wrong password"),
        ("nobody", "auth_query gives no such user"),
        ("nologin", "auth_query gives no such user"),
        ("anna' OR 'a'='a", "auth_query gives no such user"),
        // PostgreSQL cuts a name at 63 bytes, and would find another one by it.
        (&"x".repeat(100), "auth_query gives no such user"),
        ("expired", no_password),
        ("without", no_password),
        (
            "old",
            "its password is kept as an md5 hash, which SCRAM cannot use",
        ),
    ] {
        let password = if user == "anna" { "sesame" } else { PASSWORD };
        let (told, reason) = cause(&proxy, user, password);
        assert_eq!(told, password_failed(user));
        assert_eq!(
            reason,
            format!("password authentication failed: {expected}")
        );
    }
    // What holds is what the server says now.
    site.execute("ALTER ROLE lasting PASSWORD 'another'");
    assert_eq!(
        refusal(&proxy, "lasting", PASSWORD),
        password_failed("lasting")
    );
    assert_eq!(
        who(&mut try_connect(&proxy, "lasting", "another").unwrap()),
        "lasting"
    );
    let log = proxy.log().text();
    assert!(
        !log.contains("SCRAM-SHA-256$") && !log.contains("md5d"),
        "{log}"
    );
}

/// A name that is no text at all is nobody's.
#[test]
fn a_name_that_is_no_text_is_unknown() {
    let site = Site::new();
    let proxy = site.by_query().start();
    let mut wire = Wire::connect(proxy.address());
    let mut packet = startup(VERSION_3_0, &[("user", "?")]);
    let at = packet.iter().position(|byte| *byte == b'?').unwrap();
    packet[at] = 0xff;
    wire.send(&packet);
    wire.expect(b'R');
    wire.send(&scram::initial_response("SCRAM-SHA-256", b"n,,n=,r=x"));
    let challenge = scram::expect_request(&mut wire, 11);
    let (_, nonce) = challenge.split_at(2);
    let nonce = nonce.split(|byte| *byte == b',').next().unwrap();
    let proof = [
        b"c=biws,r=",
        nonce,
        b",p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ]
    .concat();
    wire.send(&scram::response(&proof));
    wire.expect_error("FATAL", "28P01");
}

/// Neither the database's nor the user's search_path leads the query astray.
#[test]
fn a_hostile_search_path_leads_nowhere() {
    let site = Site::new();
    let verifier = site.verifier("bert");
    site.execute(&format!(
        "CREATE SCHEMA evil;
         CREATE TABLE evil.pg_authid AS
           SELECT 'anna'::name AS rolname, NULL::timestamptz AS rolvaliduntil,
                  '{verifier}'::text AS rolpassword, true AS rolcanlogin;
         CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'infinity'::timestamptz $$;
         CREATE FUNCTION evil.always(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT true';
         CREATE FUNCTION evil.always(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT true';
         CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = name, FUNCTION = evil.always);
         CREATE OPERATOR evil.< (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = evil.always);
         CREATE ROLE lookup SUPERUSER LOGIN PASSWORD 'looks up';
         ALTER DATABASE postgres SET search_path = evil, pg_catalog;
         ALTER ROLE lookup SET search_path = evil, pg_catalog;"
    ));
    let file = site.write("passwords", "*:*:postgres:lookup:looks up\n");
    let proxy = site
        .setup(&format!(
            "auth_user = \"lookup\"\nfile = \"{}\"",
            file.display()
        ))
        .start();
    site.execute("ALTER ROLE anna PASSWORD 'another'");
    assert_eq!(refusal(&proxy, "anna", PASSWORD), password_failed("anna"));
    assert_eq!(
        who(&mut try_connect(&proxy, "anna", "another").unwrap()),
        "anna"
    );
    assert!(!proxy.log().text().contains("looks up"));
}

/// As the README says it: a user that may read nothing but what this function gives.
#[test]
fn a_function_may_be_asked_instead() {
    let site = Site::new();
    let readme = include_str!("../../README.md");
    let part = readme
        .split("### Asking clients for their passwords")
        .nth(1)
        .unwrap();
    let between = |start: &str| {
        let block = part.split(start).nth(1).unwrap();
        block.split("```").next().unwrap()
    };
    site.execute(&between("```sql\n").replace('…', "looks up"));
    let file = site.write("passwords", "*:*:*:sqlproxy:looks up\n");
    let login = |query: &str| {
        let file = file.display();
        site.setup(&format!(
            "auth_user = \"sqlproxy\"\nfile = \"{file}\"\n{query}"
        ))
    };
    let function = "auth_query = \"SELECT * FROM sqlproxy.look_up($1)\"";
    assert!(between("```toml\n").contains(function));
    let proxy = login(function).start();
    assert_eq!(who(&mut connect(&proxy, "anna")), "anna");
    assert_eq!(refusal(&proxy, "anna", "sesame"), password_failed("anna"));
    let (told, reason) = cause(&proxy, "postgres", PASSWORD);
    assert_eq!(told, password_failed("postgres"));
    assert!(
        reason.ends_with("auth_query gives no such user"),
        "{reason}"
    );

    // The default one is for those who may read the catalog, and the client hears of no
    // permission.
    let proxy = login("").top(ADMIN).start();
    let unknown = (
        "08006".to_owned(),
        "sqlproxy could not look the user up".to_owned(),
    );
    let (told, reason) = cause(&proxy, "anna", PASSWORD);
    assert_eq!(told, unknown);
    assert_eq!(
        reason,
        "looking the user up failed: server refused auth_query: permission denied for table \
         pg_authid (42501)"
    );
    let (_, metrics) = http_get(&proxy, "/metrics");
    let refused = "sqlproxy_clients_refused_total{reason=\"user_lookup\"} 1";
    assert!(metrics.contains(refused), "{metrics}");
    site.execute("GRANT SELECT ON pg_authid TO sqlproxy");
    assert_eq!(who(&mut connect(&proxy, "anna")), "anna");
}

#[test]
fn a_query_that_gives_something_else_lets_nobody_in() {
    let site = Site::new();
    let broke = "looking the user up failed: server broke the protocol while looking a user up: ";
    let two_columns = "auth_query does not give two columns, a user's name and its password";
    let refused = "looking the user up failed: server refused auth_query: ";
    for (query, expected) in [
        ("SELECT $1::text", format!("{broke}{two_columns}")),
        ("SELECT $1::text, 'b', 'c'", format!("{broke}{two_columns}")),
        (
            "SELECT $1::text, 'a' UNION ALL SELECT 'x', 'b'",
            format!("{broke}auth_query gives more than one row"),
        ),
        (
            "SELEC $1",
            format!("{refused}syntax error at or near \\\"SELEC\\\" (42601)"),
        ),
        (
            "SELECT $1::text, pg_sleep(60)::text",
            format!("{refused}canceling statement due to statement timeout (57014)"),
        ),
        (
            "SELECT 'bert'::text, $1::text",
            "password authentication failed: auth_query gives no such user".to_owned(),
        ),
        (
            "SELECT $1::text, 'SCRAM-SHA-256$4096:x'",
            "password authentication failed: auth_query gives a malformed SCRAM-SHA-256 verifier"
                .to_owned(),
        ),
        (
            "SELECT $1::text, ''",
            "password authentication failed: auth_query gives an empty password".to_owned(),
        ),
    ] {
        let login = format!("auth_user = \"postgres\"\nauth_query = \"{query}\"");
        let proxy = site.setup(&login).start();
        let (told, reason) = cause(&proxy, "anna", PASSWORD);
        assert_eq!(reason.replace('"', "\\\""), expected, "{query}");
        let code = match reason.starts_with("password") {
            true => "28P01",
            false => "08006",
        };
        assert_eq!(told.0, code);
    }
    // A password in clear does, as in a file.
    let login = "auth_user = \"postgres\"\nauth_query = \"SELECT $1::text, 'open sesame'\"";
    let proxy = site.setup(login).start();
    assert_eq!(who(&mut connect(&proxy, "anna")), "anna");
}

/// Whether the proxy looks somebody up on this connection.
fn is_lookup(end: &ServerEnd) -> bool {
    end.parameter("application_name") == Some("sqlproxy auth_query")
}

fn before(server: &Server) -> Setup {
    Setup::new(&[server.address()])
        .top("dialect = \"postgresql\"")
        .section("[login]\nmethod = \"scram\"\nauth_user = \"proxy\"\nauth_dbname = \"own\"")
}

/// What a client sends for its own session is not for the proxy's.
#[test]
fn nothing_of_the_clients_startup_packet_is_in_the_proxys() {
    let server = Server::start(|mut end| {
        assert!(is_lookup(&end));
        let expected = [
            ("user", "proxy"),
            ("database", "own"),
            ("application_name", "sqlproxy auth_query"),
            ("search_path", "pg_catalog"),
            ("statement_timeout", "4000"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(end.parameters, expected);
        assert_eq!(end.version, VERSION_3_0);
        end.welcome();
        let parse = end.next().unwrap();
        assert!(
            !parse.body.windows(4).any(|text| text == b"anna"),
            "{parse:?}"
        );
        let bind = end.next().unwrap();
        assert!(
            bind.body.windows(8).any(|text| text == b"\0\0\0\x04anna"),
            "{bind:?}"
        );
        let (execute, sync) = (end.next().unwrap(), end.next().unwrap());
        assert_eq!([execute.tag, sync.tag], *b"ES");
        let answer = [
            frame(b'1', &[]),
            frame(b'2', &[]),
            data_row(&[Some("anna"), None]),
            command_complete("SELECT 1"),
            ready(b'I'),
        ];
        end.wire.send(&answer.concat());
        assert!(end.next().is_none(), "not left");
    });
    let proxy = before(&server).start();
    let mut wire = Wire::connect(proxy.address());
    wire.send(&startup(
        VERSION_3_0,
        &[
            ("user", "anna"),
            ("database", "other"),
            ("options", "-c search_path=evil"),
            ("search_path", "evil"),
            ("role", "postgres"),
            ("replication", "database"),
        ],
    ));
    scram::expect_request(&mut wire, 10);
    wire.send(&scram::initial_response("SCRAM-SHA-256", b"n,,n=,r=x"));
    scram::expect_request(&mut wire, 11);
    drop(wire);
    server.join();
}

/// A server that does not answer costs a client its own time to log in, and no more.
#[test]
fn a_lookup_has_its_deadline_and_few_are_under_way() {
    const CLIENTS: usize = 30;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (under_way, highest) = (Arc::clone(&now), Arc::clone(&most));
    let gate = Gate::default();
    let opened = gate.clone();
    let server = Server::start(move |mut end| {
        assert!(is_lookup(&end));
        end.welcome();
        let count = under_way.fetch_add(1, Ordering::SeqCst) + 1;
        highest.fetch_max(count, Ordering::SeqCst);
        opened.wait();
        // Before it answers: the proxy may begin the next one then.
        under_way.fetch_sub(1, Ordering::SeqCst);
        while end.next().is_some_and(|message| message.tag != b'S') {}
        let refusal = error_response("ERROR", "42501", "on purpose");
        let _ = end.wire.try_send(&[refusal, ready(b'I')].concat());
    });
    let proxy = before(&server).top("handshake_timeout = \"5m\"").start();
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut wire = Wire::connect(proxy.address());
            scram::ask(&mut wire, "anna");
            wire.send(&scram::initial_response("SCRAM-SHA-256", b"n,,n=,r=x"));
            wire
        })
        .collect();
    // One address's share.
    poll_kernel(
        || now.load(Ordering::SeqCst) == 8,
        || format!("{} are under way", now.load(Ordering::SeqCst)),
    );
    gate.open();
    for client in &mut clients {
        client.expect_error("FATAL", "08006");
    }
    assert_eq!(most.load(Ordering::SeqCst), 8);

    let silent = Server::start(|mut end| {
        assert!(is_lookup(&end));
        end.welcome();
        while end.next().is_some() {}
    });
    let proxy = before(&silent).top("handshake_timeout = \"300ms\"").start();
    let mut wire = Wire::connect(proxy.address());
    scram::ask(&mut wire, "anna");
    wire.send(&scram::initial_response("SCRAM-SHA-256", b"n,,n=,r=x"));
    wire.expect_error("FATAL", "08006");
    let line = proxy.wait_log(0, |line| line.is("connection refused"));
    assert_eq!(
        line.get("reason"),
        "looking the user up failed: timeout while looking a user up (server)"
    );
}

/// Whoever queues for his lookup keeps nobody out who comes later.
#[test]
fn a_queue_for_lookups_makes_room() {
    const EXTRA_CONNECTIONS: usize = 64;
    let server = Server::start(|mut end| {
        assert!(is_lookup(&end));
        end.welcome();
        while end.next().is_some() {}
    });
    let proxy = before(&server)
        .top("max_connections = 1\nhandshake_timeout = \"10m\"")
        .start();
    let mut crowd: Vec<_> = (0..=EXTRA_CONNECTIONS)
        .map(|_| {
            let mut wire = Wire::connect(proxy.address());
            scram::ask(&mut wire, "anna");
            wire.send(&scram::initial_response("SCRAM-SHA-256", b"n,,n=,r=x"));
            wire
        })
        .collect();
    let deadline = soon();
    loop {
        let mut wire = Wire::connect(proxy.address());
        wire.send(&startup(VERSION_3_0, &[("user", "bert")]));
        if wire.receive().tag == b'R' {
            break;
        }
        assert!(Instant::now() < deadline, "nobody is let in");
    }
    let told = |wire: &mut Wire| match wire.receive_by(Instant::now() + LOOK) {
        Received::Message(error) => {
            assert_eq!(error.field('C'), "53300", "{error:?}");
            true
        }
        other => {
            assert_eq!(other, Received::Nothing);
            false
        }
    };
    while !crowd.iter_mut().any(told) {
        assert!(Instant::now() < deadline, "nobody hears of it");
    }
}

/// At one of many, for a word that it may have.
const LOOK: Duration = Duration::from_millis(10);
