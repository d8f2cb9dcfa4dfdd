//! Who gets through a handshake, and that each step of one ends in time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use openssl::ssl::{NameType, SslConnector, SslMethod, SslVerifyMode, SslVersion};
use sqlproxy::internal::Stream;
use sqlproxy::internal::{
    ClientTlsContext, Negotiated, ServerTlsContext, SslMode, same_certificate,
};
use sqlproxy::internal::{ReadDeadline, Received, Wait};

use super::certs::{Certificate, Files, authority, ec_key};
use super::peer::{careless_client, client_context, in_thread, server, sockets, soon};

fn client_with(builder: impl FnOnce(&mut openssl::ssl::SslConnectorBuilder)) -> SslConnector {
    let mut client = SslConnector::builder(SslMethod::tls()).unwrap();
    client.set_verify(SslVerifyMode::NONE);
    builder(&mut client);
    client.build()
}

/// Lets `client` shake hands with the client leg and say a word.
fn accept(context: &ClientTlsContext, client: SslConnector, direct: bool) -> io::Result<Stream> {
    let (socket, tcp) = sockets(&ReadDeadline::new().unwrap());
    let client = in_thread(move || {
        // The proxy's verdict counts, which a client of TLS 1.3 hears late.
        if let Ok(mut tls) = client.connect("localhost", tcp) {
            let _ = tls.write_all(b"hello");
            let _ = tls.read(&mut [0]);
        }
    });
    let accepted = context.accept(socket, soon(), direct);
    if let Ok(stream) = &accepted {
        let mut word = Vec::with_capacity(5);
        stream.read(&mut word, Wait::Until(soon())).unwrap();
        assert_eq!(word, b"hello");
        stream.shutdown();
    }
    client.join().unwrap();
    accepted
}

#[test]
fn direct_tls_needs_the_protocols_name() {
    let context = client_context();
    let cases: [(&[u8], bool, Option<&str>); 6] = [
        (b"\x0apostgresql", true, None),
        (b"\x08http/1.1\x0apostgresql", true, None),
        (b"", true, Some("without ALPN")),
        (b"\x08http/1.1", true, Some("application protocol")),
        (b"", false, None),
        (b"\x08http/1.1", false, Some("application protocol")),
    ];
    for (offer, direct, refusal) in cases {
        let client = client_with(|client| {
            if !offer.is_empty() {
                client.set_alpn_protos(offer).unwrap();
            }
        });
        let error = accept(&context, client, direct).err();
        let text = error.map(|error| error.to_string());
        match (refusal, text) {
            (None, None) => {}
            (Some(refusal), Some(text)) => assert!(text.contains(refusal), "{text}"),
            (refusal, text) => panic!("{offer:?}: {text:?} instead of {refusal:?}"),
        }
    }
}

#[test]
fn only_clients_of_the_authority_get_in_where_one_is_set() {
    let files = Files::new();
    let ca = authority("clients");
    let own = authority("test").issue("localhost");
    let context = ClientTlsContext::load(
        &files.cert("cert", &own),
        &files.key("key", &own),
        Some(&files.cert("ca", &ca)),
    )
    .unwrap();
    let expired = ca.issue_with("alice", ec_key(), (-20, -10), false);
    let cases = [
        ("its own", Some(ca.issue("alice")), None),
        ("none", None, Some("peer did not return a certificate")),
        (
            "foreign",
            Some(authority("else").issue("alice")),
            Some("certificate verify failed"),
        ),
        (
            "same name",
            Some(authority("clients").issue("alice")),
            Some("certificate verify failed"),
        ),
        ("expired", Some(expired), Some("certificate has expired")),
    ];
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        for (name, certificate, refusal) in &cases {
            let client = client_with(|client| {
                client.set_max_proto_version(Some(version)).unwrap();
                if let Some(certificate) = certificate {
                    client.set_certificate(&certificate.cert).unwrap();
                    client.set_private_key(&certificate.key).unwrap();
                }
            });
            match (accept(&context, client, false), refusal) {
                (Ok(_), None) => {}
                (Err(error), Some(refusal)) => {
                    assert!(error.to_string().contains(refusal), "{name}: {error}");
                    assert_eq!(error.kind(), ErrorKind::InvalidData);
                }
                (result, _) => panic!("{name}: {result:?}"),
            }
        }
    }
}

#[test]
fn a_chain_is_shown_whole() {
    let files = Files::new();
    let root = authority("root");
    let middle = root.issue_with("middle", ec_key(), (-1, 30), true);
    let leaf = middle.issue("localhost");
    let chain = [leaf.cert.to_pem().unwrap(), middle.cert.to_pem().unwrap()].concat();
    let context =
        ClientTlsContext::load(&files.write("chain", chain), &files.key("key", &leaf), None)
            .unwrap();
    let ca = files.cert("root", &root);
    let client = client_with(|client| {
        client.set_ca_file(&ca).unwrap();
        client.set_verify(SslVerifyMode::PEER);
    });
    accept(&context, client, false).unwrap();
}

#[test]
fn what_is_sent_in_clear_is_no_handshake() {
    let (socket, mut tcp) = sockets(&ReadDeadline::new().unwrap());
    tcp.write_all(&[0, 0, 0, 16, 0, 3, 0, 0, b'u', 0, b'x', 0, 0, 0, 0, 0])
        .unwrap();
    let error = client_context().accept(socket, soon(), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    // And plain HTTP, which OpenSSL knows by sight.
    let (socket, mut tcp) = sockets(&ReadDeadline::new().unwrap());
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let error = client_context().accept(socket, soon(), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
}

#[test]
fn a_client_that_leaves_is_told_from_one_that_fails() {
    let (socket, tcp) = sockets(&ReadDeadline::new().unwrap());
    drop(tcp);
    let error = client_context().accept(socket, soon(), true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
}

/// How far a peer goes before it stalls.
#[derive(Debug, Clone, Copy)]
enum Stall {
    AtOnce,
    InsideRecord,
    AfterHello,
    /// A byte now and then, for ever.
    Trickle,
}

/// A ClientHello, or as much of one as a server has seen.
fn hello() -> Vec<u8> {
    let (socket, tcp) = sockets(&ReadDeadline::new().unwrap());
    let client = in_thread(move || {
        careless_client(SslVersion::TLS1_3)
            .connect("x", tcp)
            .is_ok()
    });
    let mut hello = Vec::with_capacity(4096);
    socket.read(&mut hello, Wait::Until(soon())).unwrap();
    drop(socket);
    client.join().unwrap();
    hello
}

#[test]
fn a_stalling_client_is_given_up_at_the_deadline() {
    let hello = hello();
    for stall in [
        Stall::AtOnce,
        Stall::InsideRecord,
        Stall::AfterHello,
        Stall::Trickle,
    ] {
        let (socket, mut tcp) = sockets(&ReadDeadline::new().unwrap());
        let (stop, stopped) = channel::<()>();
        let hello = hello.clone();
        let client = in_thread(move || {
            match stall {
                Stall::AtOnce => {}
                Stall::InsideRecord => tcp.write_all(&hello[..hello.len() / 2]).unwrap(),
                Stall::AfterHello => tcp.write_all(&hello).unwrap(),
                Stall::Trickle => trickle(&mut tcp, &hello, &stopped),
            }
            // Until the test is over.
            let _ = stopped.recv();
        });
        let start = Instant::now();
        let deadline = start + Duration::from_millis(200);
        let error = client_context().accept(socket, deadline, true).unwrap_err();
        let took = start.elapsed();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{stall:?}: {error}");
        assert!(
            (200..2_000).contains(&took.as_millis()),
            "{stall:?}: {took:?}"
        );
        drop(stop);
        client.join().unwrap();
    }
}

/// Sends a byte each 10 ms, until told to stop or there are no more.
fn trickle(tcp: &mut TcpStream, bytes: &[u8], stop: &std::sync::mpsc::Receiver<()>) {
    for byte in bytes {
        let paused = stop.recv_timeout(Duration::from_millis(10));
        if paused != Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            || tcp.write_all(&[*byte]).is_err()
        {
            break;
        }
    }
}

#[test]
fn a_stalling_server_is_given_up_at_the_deadline() {
    let context = ServerTlsContext::load(SslMode::Prefer, None, None).unwrap();
    for stall in [
        Stall::AtOnce,
        Stall::InsideRecord,
        Stall::AfterHello,
        Stall::Trickle,
    ] {
        let (socket, mut tcp) = sockets(&ReadDeadline::new().unwrap());
        let (stop, stopped) = channel::<()>();
        let server = in_thread(move || {
            tcp.read_exact(&mut [0; 8]).unwrap();
            // A handshake record that never comes to its end.
            let record = [[0x16, 3, 3, 1, 0, 2, 0, 0, 0xfc].as_slice(), &[3; 200]].concat();
            match stall {
                Stall::AtOnce => {}
                Stall::InsideRecord => tcp.write_all(b"S\x16\x03\x03\x01\x00\x02").unwrap(),
                Stall::AfterHello => {
                    tcp.write_all(b"S").unwrap();
                    tcp.read_exact(&mut [0; 100]).unwrap();
                }
                Stall::Trickle => {
                    tcp.write_all(b"S").unwrap();
                    trickle(&mut tcp, &record, &stopped);
                }
            }
            let _ = stopped.recv();
        });
        let start = Instant::now();
        let deadline = start + Duration::from_millis(200);
        let error = context.connect(socket, "pod", deadline).unwrap_err();
        let took = start.elapsed();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{stall:?}: {error}");
        assert!(
            (200..2_000).contains(&took.as_millis()),
            "{stall:?}: {took:?}"
        );
        drop(stop);
        server.join().unwrap();
    }
}

/// What a server does when asked for TLS.
#[derive(Clone, Copy)]
enum Server<'c> {
    Tls(&'c Certificate),
    Answers(&'static [u8]),
    /// `S`, then the end.
    Leaves,
}

/// Connects the server leg; on success says a word, and returns the name that
/// the server was asked for.
fn connect(
    context: &ServerTlsContext,
    behaviour: Server<'_>,
    host: &str,
) -> (io::Result<Negotiated>, Option<String>) {
    let (socket, mut tcp) = sockets(&ReadDeadline::new().unwrap());
    let acceptor = match behaviour {
        Server::Tls(certificate) => Some(server(certificate, None)),
        _ => None,
    };
    let answer = match behaviour {
        Server::Answers(answer) => answer,
        _ => b"S",
    };
    let peer = in_thread(move || {
        // SSLRequest first, but not where TLS is disabled.
        let mut request = [0; 8];
        tcp.read_exact(&mut request).unwrap();
        if request == *b"plain   " {
            return None;
        }
        assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47]);
        tcp.write_all(answer).unwrap();
        let Some(acceptor) = acceptor else {
            if answer == b"S" {
                // What stayed unread would make the end a reset.
                let _ = tcp.read(&mut [0; 4096]);
            }
            return None;
        };
        let mut tls = acceptor.accept(tcp).ok()?;
        let _ = tls.read(&mut [0; 8]);
        tls.ssl().servername(NameType::HOST_NAME).map(str::to_owned)
    });
    let connected = context.connect(socket, host, soon());
    if let Ok(Negotiated::Stream(stream)) = &connected {
        stream.write_all(b"plain   ", None).unwrap();
    }
    let name = peer.join().unwrap();
    (connected, name)
}

#[test]
fn each_sslmode_demands_what_libpq_demands() {
    let files = Files::new();
    let ca = authority("servers");
    let file = files.cert("ca", &ca);
    let with_ca = Some(file.as_path());
    let right = ca.issue("pod-a.example");
    let other = ca.issue("pod-b.example");
    let foreign = authority("else").issue("pod-a.example");
    let expired = ca.issue_with("pod-a.example", ec_key(), (-20, -10), false);
    let address = ca.issue("192.0.2.7");
    let six = ca.issue("2001:db8::7");
    let (tls, plain) = (Server::Tls, Server::Answers(b"N"));
    use SslMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
    let host = "pod-a.example";
    let no_ca: Option<&Path> = None;
    let cases = [
        (Disable, no_ca, tls(&right), host, "plain"),
        (Prefer, no_ca, plain, host, "plain"),
        (Prefer, no_ca, tls(&foreign), host, "tls"),
        (Prefer, with_ca, tls(&other), host, "tls"),
        (
            Prefer,
            with_ca,
            tls(&foreign),
            host,
            "retry plain: certificate verify failed",
        ),
        (
            Prefer,
            no_ca,
            Server::Answers(b"E"),
            host,
            "retry plain: answers the request for TLS with an error",
        ),
        (
            Prefer,
            no_ca,
            Server::Leaves,
            host,
            "retry plain: unexpected end of file",
        ),
        (Require, no_ca, plain, host, "the server refuses TLS"),
        (Require, no_ca, tls(&foreign), host, "tls"),
        (Require, no_ca, tls(&expired), host, "tls"),
        (
            Require,
            no_ca,
            Server::Answers(b"E"),
            host,
            "answers the request for TLS with an error",
        ),
        (
            Require,
            no_ca,
            Server::Answers(b"x"),
            host,
            "neither S nor N",
        ),
        (
            Require,
            no_ca,
            Server::Answers(b""),
            host,
            "unexpected end of file",
        ),
        (
            Require,
            no_ca,
            Server::Answers(b"SX0123456789"),
            host,
            "wrong version number",
        ),
        (
            Require,
            no_ca,
            Server::Leaves,
            host,
            "unexpected end of file",
        ),
        (Require, with_ca, tls(&other), host, "tls"),
        (
            Require,
            with_ca,
            tls(&foreign),
            host,
            "certificate verify failed",
        ),
        (VerifyCa, with_ca, plain, host, "the server refuses TLS"),
        (VerifyCa, with_ca, tls(&other), host, "tls"),
        (
            VerifyCa,
            with_ca,
            tls(&foreign),
            host,
            "unable to get local issuer certificate",
        ),
        (
            VerifyCa,
            with_ca,
            tls(&expired),
            host,
            "certificate has expired",
        ),
        (VerifyFull, with_ca, plain, host, "the server refuses TLS"),
        (VerifyFull, with_ca, tls(&right), host, "tls"),
        (VerifyFull, with_ca, tls(&other), host, "hostname mismatch"),
        (
            VerifyFull,
            with_ca,
            tls(&foreign),
            host,
            "certificate verify failed",
        ),
        (
            VerifyFull,
            with_ca,
            tls(&expired),
            host,
            "certificate has expired",
        ),
        (VerifyFull, with_ca, tls(&address), "192.0.2.7", "tls"),
        (
            VerifyFull,
            with_ca,
            tls(&address),
            "192.0.2.8",
            "IP address mismatch",
        ),
        (
            VerifyFull,
            with_ca,
            tls(&right),
            "192.0.2.7",
            "IP address mismatch",
        ),
        (VerifyFull, with_ca, tls(&six), "2001:db8::7", "tls"),
        (VerifyFull, with_ca, tls(&six), "[2001:db8::7]", "tls"),
        (
            VerifyFull,
            no_ca,
            tls(&right),
            host,
            "certificate verify failed",
        ),
    ];
    for (number, (mode, ca_file, behaviour, host, expected)) in cases.into_iter().enumerate() {
        let context = ServerTlsContext::load(mode, ca_file, None).unwrap();
        let (connected, name) = connect(&context, behaviour, host);
        let outcome = match connected {
            Ok(Negotiated::Stream(Stream::Plain(_))) => "plain".to_owned(),
            Ok(Negotiated::Stream(Stream::Tls(_))) => {
                let by_name = host.contains("pod").then(|| host.to_owned());
                assert_eq!(name, by_name, "case {number}: SNI");
                "tls".to_owned()
            }
            Ok(Negotiated::RetryPlain(error)) => format!("retry plain: {error}"),
            Err(error) => error.to_string(),
        };
        let retries = expected.strip_prefix("retry plain: ");
        assert_eq!(
            outcome.starts_with("retry plain"),
            retries.is_some(),
            "case {number}: {outcome}"
        );
        assert!(
            outcome.contains(retries.unwrap_or(expected)),
            "case {number}, {mode:?}: {outcome:?} instead of {expected:?}"
        );
    }
}

#[test]
fn the_proxy_shows_its_identity_to_a_server_that_asks() {
    let files = Files::new();
    let ca = authority("clients");
    let own = ca.issue("proxy");
    let (cert, key) = (files.cert("cert", &own), files.key("key", &own));
    let shown = authority("servers").issue("pod");
    let client_leg = ClientTlsContext::load(
        &files.cert("server", &shown),
        &files.key("server-key", &shown),
        Some(&files.cert("ca", &ca)),
    )
    .unwrap();
    for (identity, gets_in) in [(Some((cert.as_path(), key.as_path())), true), (None, false)] {
        let context = ServerTlsContext::load(SslMode::Require, None, identity).unwrap();
        let (socket, mut tcp) = sockets(&ReadDeadline::new().unwrap());
        let proxy = in_thread(move || context.connect(socket, "pod", soon()));
        tcp.read_exact(&mut [0; 8]).unwrap();
        tcp.write_all(b"S").unwrap();
        let deadline = ReadDeadline::new().unwrap();
        let socket = sqlproxy::internal::Socket::new(tcp, deadline).unwrap();
        let accepted = client_leg.accept(socket, soon(), false);
        assert_eq!(accepted.is_ok(), gets_in, "{accepted:?}");
        let _ = proxy.join().unwrap();
    }
}

#[test]
fn knows_whether_both_legs_show_the_same_certificate() {
    let files = Files::new();
    let ca = authority("servers");
    let (one, other) = (ca.issue("pod"), ca.issue("pod"));
    let client_leg =
        ClientTlsContext::load(&files.cert("cert", &one), &files.key("key", &one), None).unwrap();
    let (socket, tcp) = sockets(&ReadDeadline::new().unwrap());
    let client = in_thread(move || {
        careless_client(SslVersion::TLS1_3)
            .connect("pod", tcp)
            .is_ok()
    });
    let client_stream = client_leg.accept(socket, soon(), false).unwrap();
    assert!(client.join().unwrap());
    let context = ServerTlsContext::load(SslMode::Require, None, None).unwrap();
    for (certificate, same) in [(&one, true), (&other, false)] {
        let (connected, _) = connect(&context, Server::Tls(certificate), "pod");
        let Ok(Negotiated::Stream(server_stream)) = connected else {
            panic!("no stream");
        };
        assert_eq!(same_certificate(&client_stream, &server_stream), same);
    }
    let (socket, _tcp) = sockets(&ReadDeadline::new().unwrap());
    assert!(!same_certificate(&client_stream, &Stream::Plain(socket)));
    let (socket, _tcp) = sockets(&ReadDeadline::new().unwrap());
    let (one, two) = (Stream::Plain(socket), {
        let (socket, _tcp) = sockets(&ReadDeadline::new().unwrap());
        Stream::Plain(socket)
    });
    assert!(
        !same_certificate(&one, &two),
        "no certificate is not the same"
    );
}

#[test]
fn a_suspension_does_not_reach_a_handshake() {
    let deadline: Arc<ReadDeadline> = ReadDeadline::new().unwrap();
    deadline.expire();
    let (socket, tcp) = sockets(&deadline);
    let client = in_thread(move || {
        careless_client(SslVersion::TLS1_3)
            .connect("x", tcp)
            .is_ok()
    });
    let stream = client_context().accept(socket, soon(), false).unwrap();
    assert!(client.join().unwrap());
    let _reader = deadline.register_reader();
    let read = stream.read(
        &mut Vec::with_capacity(1),
        Wait::Interruptible { idle: None },
    );
    assert_eq!(read.unwrap(), Received::DeadlinePast);
}
