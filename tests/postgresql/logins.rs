//! How the proxy logs in on a session's new server (`[login]`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use postgres::{Client, Config, NoTls};
use rustix::process::Signal;

use crate::support::message::{authentication, ready};
use crate::support::postgres::Cluster;
use crate::support::proxy::{Outcome, Proxy, Setup};
use crate::support::server::{Server, ServerEnd};
use crate::tls::certs::{Files, authority};

const PASSWORD: &str = "sec:ret\\word";
const USERS: [&str; 3] = ["scram", "md5", "clear"];

/// A server that asks for passwords.
fn asking() -> Cluster {
    let cluster = Cluster::start(&[], |data| {
        let hba = "host all postgres all trust\n\
                   host all scram all scram-sha-256\n\
                   host all md5 all md5\n\
                   host all clear all password\n";
        fs::write(data.join("pg_hba.conf"), hba).unwrap();
    });
    let mut client = cluster.client();
    for (user, encryption) in [("scram", "scram-sha-256"), ("md5", "md5"), ("clear", "md5")] {
        let sql = format!(
            "SET password_encryption = '{encryption}'; CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'"
        );
        client.batch_execute(&sql).unwrap();
    }
    cluster
}

fn write_passfile(file: &Path, text: &str) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn passfile_line(user: &str, password: &str) -> String {
    let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
    format!("*:*:postgres:{user}:{escaped}\n")
}

/// A session that the next round will find.
fn connect(proxy: &Proxy, user: &str) -> Client {
    let position = proxy.log().position();
    let client = Config::new()
        .host("127.0.0.1")
        .port(proxy.address().port())
        .user(user)
        .password(PASSWORD)
        .dbname("postgres")
        .connect(NoTls)
        .unwrap();
    proxy.wait_log(position, |line| line.is("session opened"));
    client
}

fn setup(cluster: &Cluster, file: &Path) -> Setup {
    Setup::new(&cluster.addresses())
        .top("dialect = \"postgresql\"")
        .section(&format!(
            "[login]\nmethod = \"passfile\"\nfile = \"{}\"",
            file.display()
        ))
}

#[test]
fn a_password_of_the_file_moves_a_session_by_every_method() {
    let cluster = asking();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passwords");
    let lines = USERS.map(|user| passfile_line(user, PASSWORD));
    write_passfile(&file, &lines.concat());
    let proxy = setup(&cluster, &file).start();
    let mut clients = USERS.map(|user| connect(&proxy, user));
    for client in &mut clients {
        client
            .batch_execute("SET application_name = 'still me'")
            .unwrap();
    }
    for _ in 0..3 {
        proxy.migrate().assert_all_moved(3);
        for client in &mut clients {
            let row = client.query_one("SHOW application_name", &[]).unwrap();
            assert_eq!(row.get::<_, String>(0), "still me");
        }
    }
    assert!(!proxy.log().text().contains("ret"), "a password in the log");
}

#[test]
fn a_password_that_is_missing_or_wrong_keeps_the_session() {
    let cluster = asking();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passwords");
    write_passfile(&file, &passfile_line("scram", "wrong"));
    let proxy = setup(&cluster, &file).start();
    let mut clients = ["scram", "md5"].map(|user| connect(&proxy, user));
    let reason_of = |round: &crate::support::proxy::Round, user: &str| {
        let found = round.transfers.iter().find(|t| t.line.get("user") == user);
        let transfer = found.unwrap();
        assert_eq!(transfer.outcome, Outcome::Recoverable);
        transfer.reason().to_owned()
    };
    let round = proxy.migrate();
    let reason = reason_of(&round, "scram");
    assert!(
        reason.contains("password authentication failed for user \"scram\""),
        "{reason}"
    );
    let reason = reason_of(&round, "md5");
    assert!(
        reason.contains("it asks for a password although it was given none that the file"),
        "{reason}"
    );
    for client in &mut clients {
        client.query_one("SELECT 1", &[]).unwrap();
    }
    // Put right, and read again.
    let lines = ["scram", "md5"].map(|user| passfile_line(user, PASSWORD));
    write_passfile(&file, &lines.concat());
    let position = proxy.log().position();
    proxy.signal(Signal::HUP);
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    proxy.migrate().assert_all_moved(2);
    // One that others may read changes nothing.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let position = proxy.log().position();
    proxy.signal(Signal::HUP);
    let refused = proxy.wait_log(position, |line| line.is("reload failed, nothing changed"));
    assert!(refused.get("reason").contains("others may read it"));
    proxy.migrate().assert_all_moved(2);
}

/// A hold waits for what may come, and that is not another password.
#[test]
fn a_login_that_is_refused_holds_nobody() {
    let cluster = asking();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passwords");
    write_passfile(&file, &passfile_line("scram", "wrong"));
    let proxy = setup(&cluster, &file)
        .section("[migration]\nhold = \"10m\"")
        .start();
    let mut client = connect(&proxy, "scram");
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable);
    client.query_one("SELECT 1", &[]).unwrap();
}

/// What a server does behind the first message of a SCRAM exchange.
type Lie = fn(&mut ServerEnd);

/// Whoever asks for SCRAM and lets everybody in has not proved anything.
#[test]
fn a_server_that_does_not_know_the_password_gets_no_session() {
    let cluster = asking();
    let liars: [(&str, Lie); 3] = [
        ("it ends a SCRAM exchange before its end", |_| {}),
        ("it ends a SCRAM exchange before its end", |end| {
            end.wire.send(&ready(b'I'));
        }),
        ("a malformed SCRAM message", |end| {
            end.wire
                .send(&authentication(11, b"r=not-the-client's,s=c2FsdA==,i=4096"));
            let _ = end.next();
        }),
    ];
    for (reason, lie) in liars {
        let liar = Server::start(move |mut end| {
            end.wire.send(&authentication(10, b"SCRAM-SHA-256\0\0"));
            let _ = end.next();
            lie(&mut end);
            end.welcome();
        });
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("passwords");
        write_passfile(&file, &passfile_line("scram", PASSWORD));
        let setup = setup(&cluster, &file);
        let setup = setup.state(1, "draining");
        let setup = setup.backend("liar", liar.address(), "draining");
        let proxy = setup.start();
        let mut client = connect(&proxy, "scram");
        let position = proxy.log().position();
        let text = setup.clone().state(0, "draining").state(2, "active").text();
        proxy.reconfigure(&text);
        let round = proxy.wait_round(position);
        assert_eq!(round.only().outcome, Outcome::Recoverable);
        let found = round.only().reason();
        assert!(found.ends_with(reason), "{found}");
        client.query_one("SELECT 1", &[]).unwrap();
    }
}

#[test]
fn the_proxys_certificate_lets_sessions_in() {
    let files = Files::new();
    let root = authority("the root");
    let server = root.issue("127.0.0.1");
    let proxys = root.issue("proxy");
    let cluster = Cluster::start(
        &[
            "ssl = on",
            "ssl_cert_file = 'server.crt'",
            "ssl_key_file = 'server.key'",
            "ssl_ca_file = 'root.crt'",
        ],
        |data| {
            let hba = "host all postgres all trust\n\
                       hostssl all all all cert map=proxied\n";
            fs::write(data.join("pg_hba.conf"), hba).unwrap();
            let map = "proxied proxy anna\nproxied proxy bert\n";
            fs::write(data.join("pg_ident.conf"), map).unwrap();
            fs::write(data.join("server.crt"), server.cert.to_pem().unwrap()).unwrap();
            fs::write(data.join("root.crt"), root.cert.to_pem().unwrap()).unwrap();
            let key = server.key.private_key_to_pem_pkcs8().unwrap();
            fs::write(data.join("server.key"), key).unwrap();
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(data.join("server.key"), mode).unwrap();
        },
    );
    let create = "CREATE ROLE anna LOGIN; CREATE ROLE bert LOGIN";
    cluster.client().batch_execute(create).unwrap();
    let proxy = Setup::new(&cluster.addresses())
        .top("dialect = \"postgresql\"")
        .section(&format!(
            "[server_tls]\nsslmode = \"require\"\ncert_file = \"{}\"\nkey_file = \"{}\"",
            files.cert("proxy.crt", &proxys).display(),
            files.key("proxy.key", &proxys).display()
        ))
        .section("[login]\nmethod = \"cert\"")
        .start();
    let mut clients = ["anna", "bert"].map(|user| connect(&proxy, user));
    for user in ["anna", "bert"] {
        proxy.wait_log(0, |line| {
            line.is("session opened") && line.get("user") == user
        });
    }
    for _ in 0..2 {
        proxy.migrate().assert_all_moved(2);
    }
    for (client, user) in clients.iter_mut().zip(["anna", "bert"]) {
        let row = client.query_one("SELECT current_user::text", &[]).unwrap();
        assert_eq!(row.get::<_, String>(0), user);
    }
}
