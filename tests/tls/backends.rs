//! Every sslmode of the server leg before servers of every kind.  One that does
//! not do is passed over, with one line that says why.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use openssl::ssl::SslAcceptor;

use super::certs::{Certificate, Files, authority, ec_key};
use super::peer::server;
use super::rig::{PLAIN_INSIDE, TLS_INSIDE, before_postgres, psql, secure};
use crate::support::message;
use crate::support::pods::Pods;
use crate::support::postgres::Cluster;
use crate::support::proxy::{Outcome, Setup};
use crate::support::server::Server;
use crate::support::soon;
use crate::support::wire::{Channel, Received, Wire};

/// What a [`pod`] answers every query with.
const OVER_TLS: &str = "over TLS";
const IN_CLEAR: &str = "in clear";

/// Starts a server that takes TLS and plain clients and tells each what it is.
fn pod(certificate: &Certificate) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = server(certificate, None);
    // Ends with the test process: nothing tells a blocked accept to go.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let acceptor = acceptor.clone();
            std::thread::spawn(move || meet(stream.unwrap(), &acceptor));
        }
    });
    address
}

fn meet(stream: TcpStream, acceptor: &SslAcceptor) -> Option<()> {
    let tcp = stream.try_clone().unwrap();
    let mut plain = Wire::over(stream);
    let (code, _) = plain.receive_packet()?;
    if code == message::SSL_REQUEST {
        plain.send(b"S");
        // The proxy breaks off where it does not like the certificate.
        let mut wire = Wire::over(acceptor.accept(tcp).ok()?);
        wire.receive_packet()?;
        tell(wire, OVER_TLS);
    } else {
        tell(plain, IN_CLEAR);
    }
    Some(())
}

fn tell<S: Channel>(mut wire: Wire<S>, answer: &str) {
    wire.send(&[message::authentication(0, &[]), message::ready(b'I')].concat());
    while let Received::Message(message) = wire.receive_by(soon()) {
        match message.tag {
            b'Q' => wire.send(&message::one_row(&["leg"], &[Some(answer)], "SELECT 1")),
            _ => return,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Plain,
    Tls,
    /// It is the next one's turn; the reason contains this.
    Not(&'static str),
}
use Expected::{Not, Plain, Tls};

#[test]
fn each_sslmode_takes_what_it_may_and_passes_over_the_rest() {
    let ours = authority("ours");
    let files = Files::new();
    let ca = format!("ca_file = \"{}\"", files.cert("ca.crt", &ours).display());
    let right = pod(&ours.issue("127.0.0.1"));
    let wrong_name = pod(&ours.issue("elsewhere.example"));
    let foreign = pod(&authority("foreign").issue("127.0.0.1"));
    let expired = pod(&ours.issue_with("127.0.0.1", ec_key(), (-2, -1), false));
    let refusing = Server::start(|mut end| {
        end.welcome();
        end.wire.expect(b'Q');
        end.wire
            .send(&message::one_row(&["leg"], &[Some(IN_CLEAR)], "SELECT 1"));
        end.next();
    });
    let servers = [right, wrong_name, foreign, expired, refusing.address()];
    let chain = Not("unable to get local issuer certificate");
    let late = Not("certificate has expired");
    let name = Not("IP address mismatch");
    let no = Not("the server refuses TLS");
    let cases = [
        ("disable", "", [Plain; 5]),
        ("prefer", "", [Tls, Tls, Tls, Tls, Plain]),
        // As libpq: what does not convince is connected to in clear.
        ("prefer", &ca, [Tls, Tls, Plain, Plain, Plain]),
        ("require", "", [Tls, Tls, Tls, Tls, no]),
        ("require", &ca, [Tls, Tls, chain, late, no]),
        ("verify-ca", &ca, [Tls, Tls, chain, late, no]),
        ("verify-full", &ca, [Tls, name, chain, late, no]),
    ];
    for (mode, ca, expected) in cases {
        for (server, expected) in servers.into_iter().zip(expected) {
            let section = format!("[server_tls]\nsslmode = \"{mode}\"\n{ca}");
            let context = format!("{mode} {ca} before {server} should be {expected:?}");
            let proxy = Setup::new(&[server, right]).section(&section).start();
            let mut client = proxy.login("maria");
            let leg = client.value("SELECT leg");
            let opened = proxy.wait_log(0, |line| line.is("session opened"));
            let lines = proxy.log().since(0);
            let complaints: Vec<_> = lines
                .iter()
                .filter(|line| line.is("backend unreachable"))
                .collect();
            let warnings = lines.iter().filter(|line| {
                line.level == "WARN" && line.raw.contains("backend is spoken to without TLS")
            });
            let unexpected = mode == "prefer" && !ca.is_empty() && expected == Plain;
            assert_eq!(warnings.count(), usize::from(unexpected), "{context}");
            match expected {
                Plain | Tls => {
                    let expected = if expected == Tls { OVER_TLS } else { IN_CLEAR };
                    assert_eq!(leg, expected, "{context}");
                    assert_eq!(opened.get("backend"), "pod-0", "{context}");
                    assert_eq!(complaints, [] as [&_; 0], "{context}");
                }
                Not(why) => {
                    assert_eq!(leg, OVER_TLS, "{context}");
                    assert_eq!(opened.get("backend"), "pod-1", "{context}");
                    assert_eq!(complaints.len(), 1, "{context}: {complaints:?}");
                    assert_eq!(complaints[0].get("backend"), "pod-0", "{context}");
                    assert!(
                        complaints[0].get("reason").contains(why),
                        "{context}: {complaints:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_name_is_checked_as_configured() {
    let ours = authority("ours");
    let files = Files::new();
    let ca = files.cert("ca.crt", &ours);
    // Both addresses are the same; only the one by name fits the certificate.
    let server = pod(&ours.issue("localhost"));
    let section = format!(
        "[server_tls]\nsslmode = \"verify-full\"\nca_file = \"{}\"",
        ca.display()
    );
    let text = Setup::new(&[server, server]).section(&section).text();
    let (first, second) = text.rsplit_once("address = \"127.0.0.1:").unwrap();
    let proxy =
        crate::support::proxy::Proxy::start(&format!("{first}address = \"localhost:{second}"));
    let mut client = proxy.login("maria");
    assert_eq!(client.value("SELECT leg"), OVER_TLS);
    let opened = proxy.wait_log(0, |line| line.is("session opened"));
    assert_eq!(opened.get("backend"), "pod-1");
    let line = proxy.wait_log(0, |line| line.is("backend unreachable"));
    assert!(
        line.get("reason").contains("IP address mismatch"),
        "{}",
        line.raw
    );
}

#[test]
fn a_server_that_hangs_in_the_handshake_is_passed_over() {
    // The kernel takes connections, and nobody answers.
    let hole = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let right = pod(&authority("ours").issue("127.0.0.1"));
    let proxy = Setup::new(&[hole.local_addr().unwrap(), right])
        .top("connect_timeout = \"300ms\"")
        .section("[server_tls]\nsslmode = \"require\"")
        .start();
    let mut client = proxy.login("maria");
    assert_eq!(client.value("SELECT leg"), OVER_TLS);
    let line = proxy.wait_log(0, |line| line.is("backend unreachable"));
    assert_eq!(line.get("backend"), "pod-0");
    assert!(line.get("reason").contains("timeout"), "{}", line.raw);
}

#[test]
fn postgresql_with_and_without_ssl_behind_each_sslmode() {
    let (with, without) = (secure(), Cluster::shared());
    let files = Files::new();
    let ca = files.cert("ca.crt", &with.authority);
    let ca = format!("ca_file = \"{}\"", ca.display());
    let cases = [
        ("disable", "", PLAIN_INSIDE, "pod-0"),
        ("prefer", "", PLAIN_INSIDE, "pod-0"),
        ("require", "", TLS_INSIDE, "pod-1"),
        ("verify-ca", &ca, TLS_INSIDE, "pod-1"),
        ("verify-full", &ca, TLS_INSIDE, "pod-1"),
    ];
    let addresses = [without.address(), with.cluster.address()];
    for (mode, ca, inside, backend) in cases {
        let section = format!("[server_tls]\nsslmode = \"{mode}\"\n{ca}");
        let setup = before_postgres(&addresses).section(&section);
        let proxy = setup.start();
        let came = psql(&proxy, "sslmode=disable");
        assert!(
            came.succeeded && came.output.contains(inside),
            "{mode}: {came:?}"
        );
        let opened = proxy.wait_log(0, |line| line.is("session opened"));
        assert_eq!(opened.get("backend"), backend, "{mode}");
        // With only the other one there is TLS wherever it is not switched off.
        let proxy = before_postgres(&addresses[1..]).section(&section).start();
        let came = psql(&proxy, "sslmode=disable");
        let inside = if mode == "disable" {
            PLAIN_INSIDE
        } else {
            TLS_INSIDE
        };
        assert!(
            came.succeeded && came.output.contains(inside),
            "{mode}: {came:?}"
        );
    }
}

#[test]
fn a_client_hears_why_no_server_will_do() {
    let proxy = before_postgres(&[Cluster::shared().address()])
        .section("[server_tls]\nsslmode = \"require\"")
        .start();
    let came = psql(&proxy, "sslmode=disable");
    assert!(!came.succeeded);
    assert!(
        came.errors
            .contains("the server refuses TLS, which sslmode demands"),
        "{came:?}"
    );
}

/// What it says from then on would go over the wire in clear.
#[test]
fn a_session_with_tls_moves_to_no_server_without() {
    let ours = authority("ours");
    let directory = Files::new();
    let certificate = ours.issue("127.0.0.1");
    let (cert, key) = (
        directory.cert("pod.crt", &certificate),
        directory.key("pod.key", &certificate),
    );
    let pods = Pods::start_with(1, |config| config.tls(&cert, &key));
    let clear = Server::echoing();
    let proxy = Setup::new(&[pods.addresses()[0], clear.address()]).start();
    let mut client = proxy.login("maria");
    let round = proxy.migrate();
    let transfer = round.only();
    assert_eq!(transfer.outcome, Outcome::Recoverable);
    assert!(
        transfer
            .reason()
            .contains("it has no TLS, which the session has where it is"),
        "{}",
        transfer.reason()
    );
    assert_eq!(client.value("SELECT sqlpod_name()"), "pod-0");
}
