//! Users from a file in pgbouncer's format.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use super::{PASSWORD, Site, connect, password_failed, refusal, try_connect, user_line, who};
use crate::support::metrics::{ADMIN, Scrape, http_get};
use crate::support::proxy::Proxy;
use crate::support::psql::Psql;
use crate::support::scram;
use crate::support::wire::Wire;

#[test]
fn a_driver_and_psql_log_in() {
    let site = Site::new();
    let proxy = site.by_file().top(ADMIN).start();
    let before = Scrape::of(&proxy);
    let mut clients = ["anna", "bert"].map(|user| connect(&proxy, user));
    assert_eq!(clients.each_mut().map(who), ["anna", "bert"]);
    let mut psql = Psql::connect(&format!(
        "host=127.0.0.1 port={} user=anna password='{PASSWORD}' dbname=postgres",
        proxy.address().port()
    ));
    assert_eq!(psql.run("SELECT current_user;"), ["anna"]);
    assert_eq!(refusal(&proxy, "anna", "sesame"), password_failed("anna"));
    let line = proxy.wait_log(0, |line| line.is("connection refused"));
    assert_eq!(line.get("sqlstate"), "28P01");
    assert_eq!(
        line.get("reason"),
        "password authentication failed: wrong password"
    );
    let counted = "proxy_sql_authentication_failures";
    let failures = Scrape::of(&proxy).get(counted) - before.get(counted);
    assert_eq!(failures as i64, 1);
    let (_, metrics) = http_get(&proxy, "/metrics");
    let refused = "sqlproxy_clients_refused_total{reason=\"password\"} 1";
    assert!(metrics.contains(refused), "{metrics}");
    let log = proxy.log().text();
    assert!(!log.contains("sesame") && !log.contains("SCRAM-SHA-256$"));
}

/// By the steps of the exchange nobody learns who is there.
#[test]
fn an_unknown_user_is_asked_as_others_are() {
    let site = Site::new();
    let list = user_line("anna", &site.verifier("anna"))
        + &user_line("plain", PASSWORD)
        + &user_line("empty", "");
    let file = site.write("userlist.txt", &list);
    let proxy = site
        .setup(&format!("auth_file = \"{}\"", file.display()))
        .start();
    let mut seen = Vec::new();
    for user in ["anna", "plain", "empty", "nobody", "näbody"] {
        let ask = || {
            let mut wire = Wire::connect(proxy.address());
            let (challenge, answer) = scram::prove(&mut wire, user, "sesame");
            assert_eq!(answer.field('M'), password_failed(user).1);
            assert_eq!(answer.field('C'), "28P01");
            wire.expect_gone();
            let (_, rest) = challenge.split_once(",s=").unwrap();
            let nonce = challenge.len() - rest.len();
            (rest.to_owned(), nonce)
        };
        let (first, second) = (ask(), ask());
        assert_eq!(first, second, "{user}: another salt each time");
        let (salt, iterations) = first.0.split_once(",i=").unwrap();
        seen.push((salt.to_owned(), salt.len(), iterations.to_owned(), first.1));
    }
    let (salts, shapes): (Vec<_>, Vec<_>) = seen
        .into_iter()
        .map(|(salt, length, iterations, nonce)| (salt, (length, iterations, nonce)))
        .unzip();
    assert!(shapes.windows(2).all(|two| two[0] == two[1]), "{shapes:?}");
    assert!(salts.windows(2).all(|two| two[0] != two[1]), "{salts:?}");
}

/// The log tells what the client is not told.
#[test]
fn each_cause_is_in_the_log() {
    let site = Site::new();
    site.execute("CREATE ROLE ghost LOGIN PASSWORD 'open sesame'");
    let ghost = user_line("ghost", &site.verifier("ghost"));
    site.execute("DROP ROLE ghost");
    let list = user_line("anna", &site.verifier("anna")) + &ghost;
    let file = site.write("userlist.txt", &list);
    let proxy = site
        .setup(&format!("auth_file = \"{}\"", file.display()))
        .start();
    let cause = |user: &str, password: &str| {
        let position = proxy.log().position();
        let told = refusal(&proxy, user, password);
        let line = proxy.wait_log(position, |line| line.is("connection refused"));
        assert_eq!(line.get("user"), user);
        (told, line.get("reason").to_owned())
    };
    let (told, cause_of) = cause("bert", PASSWORD);
    assert_eq!(told, password_failed("bert"));
    assert_eq!(
        cause_of,
        "password authentication failed: auth_file has no such user, or no password for it"
    );
    // The file knows it and the server does not.
    let (told, cause_of) = cause("ghost", PASSWORD);
    assert_eq!(told.0, "28P01");
    assert_eq!(
        cause_of,
        "no login by what the client has proved: it holds another verifier of the user, by \
         salt or iterations, or has no such user"
    );
    // So is one whose password has expired, which the file does not tell.
    site.execute("ALTER ROLE anna VALID UNTIL '2001-01-01'");
    let (told, _) = cause("anna", PASSWORD);
    assert_eq!(told.0, "28P01");
}

fn reload(proxy: &Proxy) -> bool {
    let position = proxy.log().position();
    proxy.signal(Signal::HUP);
    let line = proxy.wait_log(position, |line| {
        line.is("configuration reloaded") || line.is("reload failed, nothing changed")
    });
    line.is("configuration reloaded")
}

#[test]
fn the_file_is_read_again_and_an_error_changes_nothing() {
    let site = Site::new();
    let file = site.write("userlist.txt", &user_line("bert", &site.verifier("bert")));
    let proxy = site
        .setup(&format!("auth_file = \"{}\"", file.display()))
        .start();
    assert!(try_connect(&proxy, "anna", PASSWORD).is_err());
    let good = site.write_users(&["anna", "bert"]);
    let text = fs::read_to_string(&good).unwrap();
    assert!(reload(&proxy));
    connect(&proxy, "anna");
    let md5 = user_line("anna", "md5c4ca4238a0b923820dcc509a6f75849b");
    for (bad, expected) in [
        (
            md5.as_str(),
            "line 3: an md5 hash cannot be used with SCRAM",
        ),
        ("anna\n", "line 3: expected \"user\" \"password\""),
    ] {
        let position = proxy.log().position();
        site.write("userlist.txt", &format!("; all of them\n\n{bad}"));
        assert!(!reload(&proxy));
        let line = proxy.wait_log(position, |line| line.is("reload failed, nothing changed"));
        let reason = line.get("reason");
        assert!(reason.contains(expected), "{reason}");
        connect(&proxy, "anna");
    }
    site.write("userlist.txt", &text);
    fs::set_permissions(&good, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(!reload(&proxy));
    connect(&proxy, "anna");
    site.write("userlist.txt", "");
    assert!(reload(&proxy));
    assert_eq!(refusal(&proxy, "anna", PASSWORD), password_failed("anna"));
}

/// The password itself does wherever the user has it, whatever the salt.
#[test]
fn a_password_in_clear_does_as_well() {
    let site = Site::new();
    let file = site.write("userlist.txt", &user_line("anna", PASSWORD));
    let proxy = site
        .setup(&format!("auth_file = \"{}\"", file.display()))
        .start();
    assert_eq!(refusal(&proxy, "anna", "sesame"), password_failed("anna"));
    let mut client = connect(&proxy, "anna");
    proxy.migrate().assert_all_moved(1);
    site.execute(&format!("ALTER ROLE anna PASSWORD '{PASSWORD}'"));
    proxy.migrate().assert_all_moved(1);
    assert_eq!(who(&mut client), "anna");
}
