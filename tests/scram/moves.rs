//! What a client has proved at its login lets its session in elsewhere.

use super::{PASSWORD, Site, connect, password_failed, refusal, who};
use crate::support::message::{VERSION_3_2, startup, terminate};
use crate::support::postgres::USER;
use crate::support::proxy::{CONTROL, Outcome, Setup};
use crate::support::psql::Psql;
use crate::support::scram;
use crate::support::wire::Wire;

#[test]
fn a_session_moves_twenty_times() {
    let site = Site::new();
    for setup in [site.by_file(), site.by_query()] {
        let proxy = setup.start();
        let mut clients = ["anna", "bert"].map(|user| connect(&proxy, user));
        for client in &mut clients {
            let set = "SET application_name = 'still me'";
            client.batch_execute(set).unwrap();
        }
        for _ in 0..20 {
            proxy.migrate().assert_all_moved(2);
        }
        for (client, user) in clients.iter_mut().zip(["anna", "bert"]) {
            assert_eq!(who(client), user);
            let row = client.query_one("SHOW application_name", &[]).unwrap();
            assert_eq!(row.get::<_, String>(0), "still me");
        }
    }
}

#[test]
fn a_password_that_was_changed_meanwhile_keeps_the_session() {
    let site = Site::new();
    let proxy = site.by_query().start();
    let mut client = connect(&proxy, "anna");
    // The same password, but another salt.
    let changes = [
        "ALTER ROLE anna PASSWORD 'open sesame'",
        "ALTER ROLE anna PASSWORD 'another'",
        "ALTER ROLE anna PASSWORD NULL",
    ];
    for change in changes {
        site.execute(change);
        let round = proxy.migrate();
        let transfer = round.only();
        assert_eq!(transfer.outcome, Outcome::Recoverable);
        let reason = transfer.reason();
        assert!(
            reason.ends_with(
                "no login by what the client has proved: it holds another verifier of the \
                 user, by salt or iterations, or has no such user"
            ),
            "{change}: {reason}"
        );
        assert_eq!(who(&mut client), "anna");
    }
    assert_eq!(refusal(&proxy, "anna", PASSWORD), password_failed("anna"));
    // Where the verifier is back, the session moves again.
    let verifier = site.verifier("bert");
    site.execute(&format!("ALTER ROLE anna PASSWORD '{verifier}'"));
    assert_eq!(proxy.migrate().only().outcome, Outcome::Recoverable);
    let mut fresh = connect(&proxy, "anna");
    assert_eq!(proxy.migrate().success, 1);
    assert_eq!(who(&mut fresh), "anna");
}

/// A server whose verifier has the salt that is expected, and another key.
#[test]
fn a_server_that_refuses_the_proof_is_quoted() {
    let site = Site::new();
    let proxy = site.by_file().start();
    let mut client = connect(&proxy, "anna");
    let own = site.verifier("anna");
    let (salted, keys) = own.rsplit_once('$').unwrap();
    let other = site.verifier("bert");
    let (_, others) = other.rsplit_once('$').unwrap();
    assert_ne!(keys, others);
    site.execute(&format!("ALTER ROLE anna PASSWORD '{salted}${others}'"));
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable);
    let reason = round.only().reason();
    let words =
        "server refused the login: password authentication failed for user \"anna\" (28P01)";
    assert!(reason.ends_with(words), "{reason}");
    assert_eq!(who(&mut client), "anna");
    // At the login itself the client has the server's words.
    let position = proxy.log().position();
    assert_eq!(refusal(&proxy, "anna", PASSWORD), password_failed("anna"));
    let line = proxy.wait_log(position, |line| line.is("login refused by server"));
    assert_eq!(line.get("sqlstate"), "28P01");
}

#[test]
fn a_held_session_comes_back() {
    let mut site = Site::new();
    let file = site.write_users(&["anna"]);
    let proxy = Setup::new(&[site.cluster.address()])
        .top("dialect = \"postgresql\"")
        .top(CONTROL)
        .section(&format!(
            "[login]\nmethod = \"scram\"\nauth_file = \"{}\"",
            file.display()
        ))
        .section("[migration]\nhold = \"60s\"")
        .start();
    let mut psql = Psql::connect(&format!(
        "host=127.0.0.1 port={} user=anna password='{PASSWORD}' dbname=postgres",
        proxy.address().port()
    ));
    psql.run("SET application_name = 'still me'; PREPARE kept AS SELECT 'prepared';");
    for _ in 0..3 {
        let (code, text) = proxy.ask(&["hold", "pod-0", "--wait", "30s"]);
        assert_eq!(code, 0, "{text}");
        site.cluster.stop();
        site.cluster.start_again();
        assert_eq!(psql.run("SHOW application_name;"), ["still me"]);
        assert_eq!(psql.run("EXECUTE kept;"), ["prepared"]);
        assert_eq!(psql.run("SELECT current_user;"), ["anna"]);
    }
}

/// A new client that is looked up while the server is away waits for it as others do.
#[test]
fn a_newcomer_waits_for_the_server_that_knows_it() {
    let mut site = Site::new();
    let proxy = Setup::new(&[site.cluster.address()])
        .top("dialect = \"postgresql\"\nhandshake_timeout = \"5m\"")
        .top(CONTROL)
        .section(&format!(
            "[login]\nmethod = \"scram\"\nauth_user = \"{USER}\""
        ))
        .section("[migration]\nhold = \"5m\"")
        .start();
    let mut waiting = connect(&proxy, "anna");
    let (code, text) = proxy.ask(&["hold", "pod-0", "--wait", "30s"]);
    assert_eq!(code, 0, "{text}");
    site.cluster.stop();
    std::thread::scope(|scope| {
        let newcomer = scope.spawn(|| who(&mut connect(&proxy, "bert")));
        site.cluster.start_again();
        assert_eq!(newcomer.join().unwrap(), "bert");
    });
    assert_eq!(who(&mut waiting), "anna");
}

/// Sessions that logged in otherwise are not the proxy's to log in for.
#[test]
fn a_session_from_before_the_method_was_set_stays() {
    let site = Site::new();
    let scram = site.by_file();
    let relayed = Setup::new(&site.cluster.addresses()).top("dialect = \"postgresql\"");
    let proxy = relayed.start();
    let mut client = connect(&proxy, "anna");
    let position = proxy.log().position();
    proxy.reconfigure(&scram.text());
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable);
    assert_eq!(
        round.only().reason(),
        "it logged in before method = \"scram\" was set, which asks the client"
    );
    assert_eq!(who(&mut client), "anna");
}

/// The proxy is the server of the login, and says what it speaks.
#[test]
fn a_newer_protocol_is_agreed_upon() {
    let site = Site::new();
    let proxy = site.by_file().start();
    for (version, parameters, told) in [
        (VERSION_3_2, vec![], None),
        (
            (3 << 16) | 9999,
            vec![("_pq_.greased", "yes"), ("_pq_.more", "no")],
            Some(b"\0\x03\0\x02\0\0\0\x02_pq_.greased\0_pq_.more\0".to_vec()),
        ),
    ] {
        let mut wire = Wire::connect(proxy.address());
        let mut all = vec![("user", "anna"), ("database", "postgres")];
        all.extend(parameters);
        wire.send(&startup(version, &all));
        if let Some(body) = told {
            assert_eq!(wire.expect(b'v').body, body);
        }
        assert_eq!(scram::expect_request(&mut wire, 10), b"SCRAM-SHA-256\0\0");
        scram::answer(&mut wire, PASSWORD);
        assert_eq!(wire.value("SELECT current_user"), "anna");
        proxy.wait_opened(&wire);
        proxy.migrate().assert_all_moved(1);
        assert_eq!(wire.value("SELECT current_user"), "anna");
        let position = proxy.log().position();
        wire.send(&terminate());
        proxy.wait_log(position, |line| line.is("session closed"));
    }
}
