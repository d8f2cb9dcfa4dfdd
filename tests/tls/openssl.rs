//! The openssl command as the client: versions, STARTTLS, direct TLS, ALPN.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::certs::authority;
use super::rig::Site;
use crate::support::message;
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::Server;

fn start(server: &Server, site: &Site) -> Proxy {
    start_with(server, site, "")
}

fn start_with(server: &Server, site: &Site, settings: &str) -> Proxy {
    Setup::new(&[server.address()])
        .section(&site.client_tls("require", settings))
        .start()
}

/// How a run of `openssl s_client` came out.
#[derive(Debug)]
struct Came {
    /// What came out of the connection; some other text before it.
    received: Vec<u8>,
    errors: String,
}

impl Came {
    fn holds(&self, wanted: &[u8]) -> bool {
        self.received
            .windows(wanted.len())
            .any(|part| part == wanted)
    }
}

/// Sends a whole session, from its startup packet to Terminate, and takes what
/// comes back.
fn s_client(proxy: &Proxy, options: &[&str]) -> Came {
    run(proxy, &[&["-quiet"], options].concat())
}

fn run(proxy: &Proxy, options: &[&str]) -> Came {
    let mut child = Command::new("openssl")
        .args(["s_client", "-verify_quiet", "-connect"])
        .arg(proxy.address().to_string())
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    let session = [
        message::startup(message::VERSION_3_0, &[("user", "maria")]),
        message::query("SELECT 'by openssl'"),
        message::terminate(),
    ];
    // It may have gone already, where the proxy refuses it.
    let mut input = child.stdin.take().unwrap();
    let _ = input.write_all(&session.concat());
    let output = child.wait_with_output().unwrap();
    drop(input);
    Came {
        received: output.stdout,
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A simple query's answer, as the echoing server gives it.
fn answer() -> Vec<u8> {
    message::data_row(&[Some("SELECT 'by openssl'")])
}

#[test]
fn takes_tls_1_2_and_1_3_and_nothing_older() {
    let (server, site) = (Server::echoing(), Site::new());
    let proxy = start(&server, &site);
    for (options, works) in [
        (&["-tls1_3"] as &[_], true),
        (&["-tls1_2"], true),
        // Without the cipher list this openssl would not even try.
        (&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], false),
        (&["-tls1", "-cipher", "ALL:@SECLEVEL=0"], false),
    ] {
        let came = s_client(&proxy, &[options, &["-starttls", "postgres"]].concat());
        assert_eq!(came.holds(&answer()), works, "{options:?}: {came:?}");
        if !works {
            assert!(
                came.errors.contains("alert protocol version"),
                "{options:?}: {came:?}"
            );
        }
    }
    server.join();
}

#[test]
fn direct_tls_needs_alpn() {
    let (server, site) = (Server::echoing(), Site::new());
    let proxy = start(&server, &site);
    for (options, works) in [
        (&["-alpn", "postgresql"] as &[_], true),
        (&["-alpn", "postgresql", "-tls1_2"], true),
        // libpq offers one; who offers more means it as well.
        (&["-alpn", "h2,postgresql"], true),
        (&["-alpn", "h2"], false),
        (&["-alpn", "h2", "-tls1_2"], false),
        (&[], false),
        (&["-tls1_2"], false),
    ] {
        let position = proxy.log().position();
        let came = s_client(&proxy, options);
        assert_eq!(came.holds(&answer()), works, "{options:?}: {came:?}");
        let closed = proxy.wait_log(position, |line| line.event.contains("closed"));
        let expected = if works {
            "session closed"
        } else {
            "connection closed before a session"
        };
        assert!(closed.is(expected), "{options:?}: {}", closed.raw);
    }
    server.join();
}

#[test]
fn the_certificate_is_shown_and_checked() {
    let (server, site) = (Server::echoing(), Site::new());
    let proxy = start(&server, &site);
    let root = site.root.to_str().unwrap();
    let options = [
        "-starttls",
        "postgres",
        "-verify_return_error",
        "-CAfile",
        root,
    ];
    let came = s_client(
        &proxy,
        &[&options as &[_], &["-verify_hostname", "localhost"]].concat(),
    );
    assert!(came.holds(&answer()), "{came:?}");
    let came = s_client(
        &proxy,
        &[&options as &[_], &["-verify_hostname", "pods.example"]].concat(),
    );
    assert!(
        !came.holds(&answer()) && came.errors.contains("ostname mismatch"),
        "{came:?}"
    );
}

/// Whether the session that `file` keeps is taken up again, if there is one; what comes of
/// it replaces it.
fn is_resumed(proxy: &Proxy, options: &[&str], file: &Path) -> bool {
    let name = file.to_str().unwrap();
    let mut options = [&["-ign_eof", "-starttls", "postgres"], options].concat();
    if file.exists() {
        options.extend(["-sess_in", name]);
    }
    options.extend(["-sess_out", name]);
    let came = run(proxy, &options);
    assert!(came.holds(&answer()), "{came:?}");
    assert!(
        came.holds(b"Reused, TLS") != came.holds(b"New, TLS"),
        "{came:?}"
    );
    came.holds(b"Reused, TLS")
}

#[test]
fn a_session_is_resumed_by_its_ticket_until_the_next_reload() {
    let (server, site) = (Server::echoing(), Site::new());
    let proxy = start(&server, &site);
    for version in ["-tls1_3", "-tls1_2"] {
        let file = site.files.path(&version[1..]);
        let resumed = || is_resumed(&proxy, &[version], &file);
        assert_eq!(
            [resumed(), resumed(), resumed()],
            [false, true, true],
            "{version}"
        );
        let position = proxy.log().position();
        proxy.signal(Signal::HUP);
        proxy.wait_log(position, |line| line.is("configuration reloaded"));
        assert_eq!([resumed(), resumed()], [false, true], "{version}");
    }
}

#[test]
fn who_has_to_show_a_certificate_shows_it_each_time() {
    let (server, site) = (Server::echoing(), Site::new());
    let clients = authority("clients");
    let (ca, client) = (
        site.files.cert("clients.crt", &clients),
        clients.issue("maria"),
    );
    let proxy = start_with(&server, &site, &format!("client_ca_file = {ca:?}\n"));
    let (cert, key) = (
        site.files.cert("maria.crt", &client),
        site.files.key("maria.key", &client),
    );
    let shown = [
        "-cert",
        cert.to_str().unwrap(),
        "-key",
        key.to_str().unwrap(),
    ];
    for version in ["-tls1_3", "-tls1_2"] {
        let file = site.files.path(&version[1..]);
        let options = [&[version], &shown as &[_]].concat();
        for _ in 0..2 {
            assert!(!is_resumed(&proxy, &options, &file), "{version}");
        }
    }
}
