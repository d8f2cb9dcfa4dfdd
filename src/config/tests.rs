//! Good files and what they mean; bad files and the exact words about them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed expectation is the test's failure"
)]

use super::*;
use crate::dialect::LoginMethod;

const BACKEND: &str = "[[backend]]\nname = \"pod-a\"\naddress = \"127.0.0.1:26301\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("conf/proxy.conf"), text)
}

fn address(host: &str, port: u16) -> Address {
    Address {
        host: host.to_owned(),
        port,
    }
}

#[test]
fn one_backend_is_enough_and_the_rest_has_defaults() {
    let config = parse(BACKEND).unwrap();
    assert_eq!(
        config,
        Config {
            listen: vec![address("127.0.0.1", 26257)],
            admin_listen: None,
            control_socket: None,
            max_connections: 5000,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            shutdown: Shutdown {
                delay: Duration::ZERO,
                sessions: OnShutdown::End,
                rate: 0,
                grace: Duration::from_secs(30),
            },
            reuse_port: false,
            tcp_user_timeout: Duration::from_secs(60),
            health_interval: Duration::from_secs(2),
            health_fall: 3,
            idle_timeout: Duration::ZERO,
            dialect: Dialect::CockroachDb,
            login: Login::default(),
            custom_settings: Vec::new(),
            client_tls: None,
            server_tls: ServerTls {
                sslmode: SslMode::Prefer,
                ca_file: None,
                cert_file: None,
                key_file: None,
            },
            limits: Limits::default(),
            log: Log {
                format: LogFormat::Text,
                level: ::log::LevelFilter::Info,
                connections: true,
            },
            migration: Migration {
                timeout: Duration::from_secs(15),
                wait: Duration::from_secs(60),
                workers: 32,
                max_state_size: 16 * 1024 * 1024,
                hold: Duration::ZERO,
                capture: Capture::Off,
                rate: 0,
                end_after: Duration::ZERO,
            },
            peers: Peers::default(),
            backends: vec![BackendConfig {
                name: "pod-a".to_owned(),
                address: address("127.0.0.1", 26301),
                state: BackendState::Active,
                health_url: None,
            }],
        }
    );
}

/// Each with another value than its default.
const EVERY_KEY: &str = r#"
listen = ["0.0.0.0:0", "[::1]:5432"]
admin_listen = "localhost:8081"
control_socket = "run/control.sock"
max_connections = 1_000
handshake_timeout = "500ms"
connect_timeout = "2m"
shutdown_grace = "0s"
drain_delay = "5s"
on_shutdown = "wait"
reuse_port = true
peer_id = 7
tcp_user_timeout = "0s"
health_interval = "500ms"
health_fall = 7
idle_timeout = "1h"
dialect = "postgresql"
custom_settings = ["app.tenant"]
[client_tls]
mode = "require"
cert_file = "server.crt"
key_file = "/etc/keys/server.key"
client_ca_file = "../ca.crt"
[server_tls]
sslmode = "verify-full"
ca_file = "ca.crt"
cert_file = "client.crt"
key_file = "client.key"
[limits]
per_user = 20
per_database = 30
allow = ["10.0.0.0/8", "::1"]
deny = ["10.9.0.0/16"]
proxy_protocol = ["10.8.0.1"]
[shutdown]
rate = 50
[log]
format = "json"
level = "debug"
connections = false
[migration]
timeout = "1m 30s"
wait = "0s"
workers = 1024
max_state_size = "512KiB"
hold = "30s"
capture = "idle"
rate = 50
end_after = "10m"
[login]
method = "scram"
file = "passwords"
auth_user = "proxy"
auth_dbname = "shop"
auth_query = "SELECT * FROM proxy.look_up($1)"
[[peer]]
id = 16383
address = "proxy-b:26258"
[[backend]]
name = "a"
address = "db_1.example.org.:1"
state = "draining"
health_url = "https://db:8080/health?ready=1"
[[backend]]
name = "b"
address = "[fe80::1%eth0]:65535"
"#;

#[test]
fn every_key_is_read() {
    let expected = Config {
        listen: vec![address("0.0.0.0", 0), address("::1", 5432)],
        admin_listen: Some(address("localhost", 8081)),
        control_socket: Some("conf/run/control.sock".into()),
        max_connections: 1000,
        handshake_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_secs(120),
        shutdown: Shutdown {
            delay: Duration::from_secs(5),
            sessions: OnShutdown::Wait,
            rate: 50,
            grace: Duration::ZERO,
        },
        reuse_port: true,
        tcp_user_timeout: Duration::ZERO,
        health_interval: Duration::from_millis(500),
        health_fall: 7,
        idle_timeout: Duration::from_secs(3600),
        dialect: Dialect::PostgreSql,
        login: Login {
            method: Some(LoginMethod::Scram),
            passfile: Some("conf/passwords".into()),
            users: Some(UserSource::Query(AuthQuery {
                user: "proxy".to_owned(),
                database: "shop".to_owned(),
                text: "SELECT * FROM proxy.look_up($1)".to_owned(),
            })),
        },
        custom_settings: vec!["app.tenant".to_owned()],
        client_tls: Some(ClientTls {
            mode: ClientTlsMode::Require,
            cert_file: "conf/server.crt".into(),
            key_file: "/etc/keys/server.key".into(),
            client_ca_file: Some("conf/../ca.crt".into()),
        }),
        server_tls: ServerTls {
            sslmode: SslMode::VerifyFull,
            ca_file: Some("conf/ca.crt".into()),
            cert_file: Some("conf/client.crt".into()),
            key_file: Some("conf/client.key".into()),
        },
        limits: Limits {
            per_user: Some(20),
            per_database: Some(30),
            allow: vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
            deny: vec!["10.9.0.0/16".parse().unwrap()],
            proxy_protocol: vec!["10.8.0.1/32".parse().unwrap()],
        },
        log: Log {
            format: LogFormat::Json,
            level: ::log::LevelFilter::Debug,
            connections: false,
        },
        migration: Migration {
            timeout: Duration::from_secs(90),
            wait: Duration::ZERO,
            workers: 1024,
            max_state_size: 512 * 1024,
            hold: Duration::from_secs(30),
            capture: Capture::Idle,
            rate: 50,
            end_after: Duration::from_secs(600),
        },
        peers: Peers {
            own: Some(7),
            peers: vec![PeerConfig {
                id: 16_383,
                address: address("proxy-b", 26258),
            }],
        },
        backends: vec![
            BackendConfig {
                name: "a".to_owned(),
                address: address("db_1.example.org.", 1),
                state: BackendState::Draining,
                health_url: Some("https://db:8080/health?ready=1".to_owned()),
            },
            BackendConfig {
                name: "b".to_owned(),
                address: address("fe80::1%eth0", 65535),
                state: BackendState::Active,
                health_url: None,
            },
        ],
    };
    assert_eq!(parse(EVERY_KEY).unwrap(), expected);
}

#[test]
fn an_address_is_shown_as_it_was_written() {
    for text in ["127.0.0.1:0", "[::1]:5432", "db-1.example.org:26257"] {
        assert_eq!(Address::parse(text).unwrap().to_string(), text);
    }
}

#[test]
fn the_default_file_has_no_directory() {
    let text = format!("[server_tls]\nca_file = \"ca.crt\"\n{BACKEND}");
    let config = Config::parse(Path::new("proxy.conf"), &text).unwrap();
    assert_eq!(config.server_tls.ca_file, Some("ca.crt".into()));
}

/// Each text stands in front of a good backend, so its own fault is the only one.
#[test]
fn a_bad_key_is_named_with_its_line() {
    let integer = "expected an integer from 1 to 1000000, found";
    let port = "expected \"host:port\" with a port from 0 to 65535, found";
    let timeout = "expected a duration from 1ms to 24h like \"15s\", found";
    let period = "expected a duration from 0s to 24h like \"15s\", found";
    let size = "expected a size from 1KiB to 512MiB like \"16MiB\", found";
    let table: &[(&str, &str)] = &[
        (
            "\n\nmax_connections = \"many\"",
            &format!("3: max_connections: {integer} \"many\""),
        ),
        (
            "max_connections = 0",
            &format!("1: max_connections: {integer} 0"),
        ),
        (
            "max_connections = -5",
            &format!("1: max_connections: {integer} -5"),
        ),
        (
            "max_connections = 1000001",
            &format!("1: max_connections: {integer} 1000001"),
        ),
        (
            "max_connections = 99999999999999999999999",
            &format!("1: max_connections: {integer} 99999999999999999999999"),
        ),
        (
            "max_connections = 1.5",
            &format!("1: max_connections: {integer} 1.5"),
        ),
        (
            "max_connections = true",
            &format!("1: max_connections: {integer} true"),
        ),
        (
            "max_connections = 2026-11-23",
            &format!("1: max_connections: {integer} 2026-11-23"),
        ),
        (
            "max_connections = [1]",
            &format!("1: max_connections: {integer} a list"),
        ),
        (
            "listen = \"26257\"",
            &format!("1: listen: {port} \"26257\""),
        ),
        (
            "listen = \":26257\"",
            &format!("1: listen: {port} \":26257\""),
        ),
        (
            "listen = \"::1:26257\"",
            &format!("1: listen: {port} \"::1:26257\""),
        ),
        (
            "listen = \"[::1:26257\"",
            &format!("1: listen: {port} \"[::1:26257\""),
        ),
        (
            "listen = \"[::x]:26257\"",
            &format!("1: listen: {port} \"[::x]:26257\""),
        ),
        (
            "listen = \"[fe80::1%]:26257\"",
            &format!("1: listen: {port} \"[fe80::1%]:26257\""),
        ),
        (
            "listen = \"a:65536\"",
            &format!("1: listen: {port} \"a:65536\""),
        ),
        ("listen = \"a:+1\"", &format!("1: listen: {port} \"a:+1\"")),
        ("listen = \"a:\"", &format!("1: listen: {port} \"a:\"")),
        (
            "listen = \"a b:1\"",
            &format!("1: listen: {port} \"a b:1\""),
        ),
        (
            "listen = \"a..b:1\"",
            &format!("1: listen: {port} \"a..b:1\""),
        ),
        (
            "listen = \"127.0.0.256:1\"",
            &format!("1: listen: {port} \"127.0.0.256:1\""),
        ),
        (
            "listen = \"a\\nb:1\"",
            &format!("1: listen: {port} \"a\\nb:1\""),
        ),
        (
            "listen = [\n\"a:1\",\n\"b\"]",
            &format!("3: listen: {port} \"b\""),
        ),
        ("listen = []", &format!("1: listen: {port} an empty list")),
        (
            "admin_listen = [\"a:1\"]",
            &format!("1: admin_listen: {port} a list"),
        ),
        (
            "listen = [\"a:1\", \"a:1\"]",
            "1: listen: a:1 is listened on twice",
        ),
        (
            "listen = \"a:1\"\nadmin_listen = \"a:1\"",
            "2: admin_listen: a:1 is listened on twice",
        ),
        (
            "handshake_timeout = 10",
            &format!("1: handshake_timeout: {timeout} 10"),
        ),
        (
            "handshake_timeout = \"0s\"",
            &format!("1: handshake_timeout: {timeout} \"0s\""),
        ),
        (
            "handshake_timeout = \"10\"",
            &format!("1: handshake_timeout: {timeout} \"10\""),
        ),
        (
            "handshake_timeout = \"-1s\"",
            &format!("1: handshake_timeout: {timeout} \"-1s\""),
        ),
        (
            "connect_timeout = \"2M\"",
            &format!("1: connect_timeout: {timeout} \"2M\""),
        ),
        (
            "shutdown_grace = \"25h\"",
            &format!("1: shutdown_grace: {period} \"25h\""),
        ),
        (
            "shutdown_grace = \"soon\"",
            &format!("1: shutdown_grace: {period} \"soon\""),
        ),
        (
            "dialect = \"postgresql\"\ncustom_settings = [\"app.tenant\", \"tenant\"]",
            "2: custom_settings: expected a setting's name with a dot, such as \"app.tenant\", found \"tenant\"",
        ),
        (
            "[login]\nmethod = \"passfile\"",
            "1: login.file: expected the passwords' file, which method = \"passfile\" needs, found nothing",
        ),
        (
            "[login]\nmethod = \"trust\"\nfile = \"x\"",
            "3: login.file: only method = \"passfile\" or \"scram\" reads one",
        ),
        (
            "[login]\nmethod = \"cert\"",
            "2: login.method: \"cert\" needs the proxy's own certificate: cert_file and key_file in [server_tls]",
        ),
        (
            "[server_tls]\ncert_file = \"a\"\nkey_file = \"b\"\n[login]\nmethod = \"cert\"",
            "5: login.method: \"cert\" needs TLS: sslmode = \"require\" or stricter in [server_tls]",
        ),
        (
            "[login]\nmethod = \"hope\"",
            "2: login.method: expected one of \"trust\", \"cert\", \"passfile\", \"scram\", found \"hope\"",
        ),
        (
            "[login]\n",
            "1: login.method: expected how the proxy logs in: \"trust\", \"cert\", \"passfile\" or \"scram\", found nothing",
        ),
        (
            "[login]\nmethod = \"scram\"\nauth_file = \"x\"",
            "2: login.method: \"scram\" needs dialect = \"postgresql\"",
        ),
        (
            "dialect = \"postgresql\"\n[login]\nmethod = \"scram\"",
            "2: login.auth_file: expected the users' file, or auth_user and a query instead, which method = \"scram\" needs, found nothing",
        ),
        (
            "dialect = \"postgresql\"\n[login]\nmethod = \"scram\"\nauth_file = \"x\"\nauth_user = \"y\"",
            "5: login.auth_user: auth_file is there as well",
        ),
        (
            "dialect = \"postgresql\"\n[login]\nmethod = \"scram\"\nauth_file = \"x\"\nfile = \"y\"",
            "5: login.file: beside auth_file nobody needs a password of it",
        ),
        (
            "dialect = \"postgresql\"\n[login]\nmethod = \"scram\"\nauth_file = \"x\"\nauth_query = \"SELECT $1\"",
            "5: login.auth_query: expected auth_user beside it",
        ),
        (
            "dialect = \"postgresql\"\n[login]\nmethod = \"scram\"\nauth_dbname = \"x\"",
            "4: login.auth_dbname: expected auth_user beside it",
        ),
        (
            "dialect = \"postgresql\"\n[login]\nmethod = \"scram\"\nauth_user = \"x\"\nauth_query = \"SELECT 1\"",
            "5: login.auth_query: expected a query with $1, the user's name, found \"SELECT 1\"",
        ),
        (
            "[login]\nmethod = \"scram\"\nauth_user = \"\"",
            "3: login.auth_user: expected a user's name, found \"\"",
        ),
        (
            "[login]\nmethod = \"trust\"\nauth_file = \"x\"",
            "3: login.auth_file: only method = \"scram\" asks clients who they are",
        ),
        (
            "[login]\nmethod = \"trust\"\nauth_user = \"x\"",
            "3: login.auth_user: only method = \"scram\" asks clients who they are",
        ),
        (
            "dialect = \"mysql\"",
            "1: dialect: expected one of \"cockroachdb\", \"postgresql\", found \"mysql\"",
        ),
        (
            "lisen = \"a:1\"",
            "1: unknown key \"lisen\"; did you mean \"listen\"?",
        ),
        (
            "\nport = 1",
            "2: unknown key \"port\"; expected one of \"listen\", \"admin_listen\", \"control_socket\", \"max_connections\", \"handshake_timeout\", \"connect_timeout\", \"shutdown_grace\", \"drain_delay\", \"on_shutdown\", \"reuse_port\", \"tcp_user_timeout\", \"health_interval\", \"health_fall\", \"idle_timeout\", \"dialect\", \"custom_settings\", \"client_tls\", \"server_tls\", \"migration\", \"limits\", \"log\", \"login\", \"shutdown\", \"peer_id\", \"peer\", \"backend\"",
        ),
        (
            "migration = 3",
            "1: migration: expected a [migration] section, found 3",
        ),
        (
            "[migration]\n\nworker = 3",
            "3: unknown key \"worker\"; did you mean \"workers\"?",
        ),
        (
            "[migration]\nworkers = 1025",
            "2: migration.workers: expected an integer from 1 to 1024, found 1025",
        ),
        (
            "[migration]\ntimeout = \"0s\"",
            &format!("2: migration.timeout: {timeout} \"0s\""),
        ),
        (
            "[migration]\nwait = 60",
            &format!("2: migration.wait: {period} 60"),
        ),
        (
            "[migration]\nmax_state_size = \"16\"",
            &format!("2: migration.max_state_size: {size} \"16\""),
        ),
        (
            "[migration]\ncapture = \"idle\"",
            "2: migration.capture: \"idle\" needs hold: how long a session may wait for its server",
        ),
        (
            "[[backend]]\nname = \"a\"\naddress = \"a:1\"\nhealth_url = \"ftp://a/\"",
            "4: backend.health_url: expected an address like \"http://host:8080/health?ready=1\", without a password, found \"ftp://a/\"",
        ),
        (
            "[limits]\nallow = [\"10.0.0.0/33\"]",
            "2: limits.allow: expected a network such as \"10.0.0.0/8\", found \"10.0.0.0/33\"",
        ),
        (
            "[migration]\nhold = \"11m\"",
            "2: migration.hold: expected at most 10m, which is how long a session's revival token lives",
        ),
        (
            "[migration]\nmax_state_size = \"1GiB\"",
            &format!("2: migration.max_state_size: {size} \"1GiB\""),
        ),
        (
            "[migration]\nmax_state_size = \"big\"",
            &format!("2: migration.max_state_size: {size} \"big\""),
        ),
        (
            "\n[client_tls]\nkey_file = \"k\"",
            "2: client_tls.cert_file: expected the file of the proxy's certificate, found nothing",
        ),
        (
            "[client_tls]\ncert_file = \"c\"",
            "1: client_tls.key_file: expected the file of the private key to cert_file, found nothing",
        ),
        (
            "[client_tls]\ncert_file = \"c\"\nkey_file = \"k\"\nclient_ca_file = \"ca\"",
            "4: client_tls.client_ca_file: expected mode = \"require\" beside it, since mode = \"allow\" lets clients in without TLS and so without a certificate",
        ),
        (
            "[client_tls]\nclient_ca_file = \"ca\"\nmode = \"allow\"\ncert_file = \"c\"\nkey_file = \"k\"",
            "2: client_tls.client_ca_file: expected mode = \"require\" beside it, since mode = \"allow\" lets clients in without TLS and so without a certificate",
        ),
        (
            "[client_tls]\nmode = \"yes\"",
            "2: client_tls.mode: expected one of \"allow\", \"require\", found \"yes\"",
        ),
        (
            "[client_tls]\ncert_file = \"\"",
            "2: client_tls.cert_file: expected the path of a file, found \"\"",
        ),
        (
            "[server_tls]\ncert_file = \"c\"",
            "1: server_tls.key_file: expected the file of the private key to cert_file, found nothing",
        ),
        (
            "[server_tls]\nkey_file = \"k\"",
            "1: server_tls.cert_file: expected the file of the certificate to key_file, found nothing",
        ),
        (
            "[server_tls]\nsslmode = \"allow\"",
            "2: server_tls.sslmode: expected one of \"disable\", \"prefer\", \"require\", \"verify-ca\", \"verify-full\", found \"allow\"",
        ),
        (
            "[[backend]]\naddress = \"a:1\"",
            "1: backend.name: expected a name of 1 to 63 printable ASCII characters, found nothing",
        ),
        (
            "[[backend]]\nname = \"a b\"\naddress = \"a:1\"",
            "2: backend.name: expected a name of 1 to 63 printable ASCII characters, found \"a b\"",
        ),
        (
            "\n[[backend]]\nname = \"a\"",
            "2: backend.address: expected \"host:port\", found nothing",
        ),
        (
            "[[backend]]\nname = \"a\"\naddress = \"a:0\"",
            "3: backend.address: expected \"host:port\" with a port from 1 to 65535, found \"a:0\"",
        ),
        (
            "[[backend]]\nname = \"a\"\naddress = \"a:1\"\nstate = \"down\"",
            "4: backend.state: expected one of \"active\", \"draining\", found \"down\"",
        ),
        (
            "[[backend]]\nname = \"pod-a\"\naddress = \"a:1\"\n",
            "6: backend.name: expected a unique name, found \"pod-a\" again",
        ),
        (
            "[[backend]]\nnam = \"a\"",
            "2: unknown key \"nam\"; did you mean \"name\"?",
        ),
    ];
    for (text, expected) in table {
        let error = parse(&format!("{text}\n{BACKEND}")).expect_err(text);
        assert_eq!(error.to_string(), format!("conf/proxy.conf:{expected}"));
    }
}

#[test]
fn a_bad_document_is_named_with_its_line() {
    let table = [
        (
            "",
            "1: backend: expected at least one [[backend]] section, found nothing",
        ),
        (
            "dialect = \"postgresql\"\n\n",
            "2: backend: expected at least one [[backend]] section, found nothing",
        ),
        (
            "backend = []",
            "1: backend: expected at least one [[backend]] section, found nothing",
        ),
        (
            "[backend]\nname = \"a\"",
            "1: backend: expected [[backend]] sections, found a section",
        ),
        (
            "backend = [1]",
            "1: backend: expected [[backend]] sections, found 1",
        ),
    ];
    for (text, expected) in table {
        let error = parse(text).expect_err(text);
        assert_eq!(error.to_string(), format!("conf/proxy.conf:{expected}"));
    }
}

/// The words are the TOML crate's; the place and the single line are ours.
#[test]
fn broken_toml_is_one_line_with_its_place() {
    for (text, line) in [
        ("\nlisten =\n", 2),
        ("listen = \"a:1\"\nlisten = \"a:1\"\n", 2),
        ("listen = \"a:1\n", 1),
        ("[migration\nwait = 1", 1),
    ] {
        let message = parse(text).expect_err(text).to_string();
        let start = format!("conf/proxy.conf:{line}: not valid TOML: ");
        assert!(message.starts_with(&start), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("no/such/proxy.conf")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no/such/proxy.conf: cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn a_long_wrong_value_is_cut() {
    let text = format!("listen = \"{}\"\n{BACKEND}", "ä".repeat(100));
    let message = parse(&text).unwrap_err().to_string();
    assert!(
        message.ends_with(&format!("found \"{}…\"", "ä".repeat(60))),
        "{message}"
    );
}

/// The file that the project ships must work as it stands, and its TLS sections
/// once an operator takes the comment signs off.
#[test]
fn the_shipped_file_is_good_with_and_without_its_comments() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.conf"));
    let shipped = Config::load(path).unwrap();
    let ports: Vec<u16> = shipped.backends.iter().map(|b| b.address.port).collect();
    assert_eq!(shipped.listen, [address("127.0.0.1", 26257)]);
    assert_eq!(shipped.admin_listen, Some(address("127.0.0.1", 8081)));
    assert_eq!(ports, [26301, 26302]);
    assert_eq!(shipped.migration, Migration::default());

    let text = fs::read_to_string(path).unwrap();
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // A section, or a word and its value.
            Some(rest) if rest.starts_with('[') || rest.split(' ').nth(1) == Some("=") => rest,
            _ => line,
        })
        .collect();
    let full = Config::parse(path, &uncommented.join("\n")).unwrap();
    assert!(full.client_tls.is_some());
    assert_eq!(full.server_tls.sslmode, SslMode::VerifyFull);
    assert_eq!(full.login.method, Some(LoginMethod::Trust));
    assert_eq!(full.peers.own, Some(1));
}

#[test]
fn users_are_in_a_file_or_asked_for() {
    let login = |lines: &str| {
        let head = "dialect = \"postgresql\"\n[login]\nmethod = \"scram\"\n";
        parse(&format!("{head}{lines}\n{BACKEND}")).unwrap().login
    };
    let file = login("auth_file = \"userlist.txt\"");
    let expected = UserSource::File("conf/userlist.txt".into());
    assert_eq!((file.users, file.passfile), (Some(expected), None));
    let Some(UserSource::Query(query)) = login("auth_user = \"proxy\"").users else {
        panic!("no query");
    };
    assert_eq!(query.database, "postgres");
    // Nothing in it is looked for along a search_path.
    for name in ["pg_authid", "now()", "<", "="] {
        assert!(query.text.contains(&format!("pg_catalog.{name}")), "{name}");
    }
}

#[test]
fn a_reload_names_every_key_that_changed() {
    let (none, all) = (parse(BACKEND).unwrap(), parse(EVERY_KEY).unwrap());
    assert_eq!(all.changes(&all), [""; 0]);
    let changes = none.changes(&all);
    let reader = Reader::new(Path::new("proxy.conf"), EVERY_KEY);
    let document = reader.document().unwrap();
    for key in document.get_ref().keys() {
        let key = key.get_ref().as_ref();
        let section = format!("[{key}]");
        let is_it = |change: &String| *change == key || *change == section;
        assert!(
            key == "backend" || changes.iter().any(is_it),
            "{key} is not among {changes:?}"
        );
    }
    let backends = [
        "backend a added",
        "backend b added",
        "backend pod-a removed",
    ];
    assert_eq!(changes.get(changes.len() - 3..).unwrap(), backends);
}
