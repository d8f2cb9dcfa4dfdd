//! What a message costs the allocator: nothing, once its session has its buffers.
//!
//! A program of its own, since it counts every allocation of its process: the proxy with
//! a whole session, as its configuration starts it, and the two ends of that session,
//! which speak over buffers that they have from the start.  OpenSSL's own memory is not
//! the allocator's and not counted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test says that something is wrong by panicking"
)]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use openssl::ssl::SslVersion;
use postgres_protocol::message::frontend;
use sqlproxy::internal::{Config, Server, TlsContexts, install_signals};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use certs::{Files, authority};
use message::{
    authentication, built, command_complete, data_row, frame, query, ready, row_description,
    startup,
};

#[path = "tls/certs.rs"]
#[allow(dead_code, reason = "the tests of TLS need more of it")]
mod certs;
#[path = "support/message.rs"]
#[allow(dead_code, reason = "other tests need more of it")]
mod message;
#[path = "tls/peer.rs"]
#[allow(dead_code, reason = "the tests of TLS need more of it")]
mod peer;

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Until each buffer has the size that this kind of message needs.
const WARM_UP: usize = 200;
/// Requests and answers that are counted.
const EXCHANGES: usize = 1_000;
/// A direction that the machine lets wait for a second gives its buffers back, and takes
/// them again: then once more.  What allocates with each message does so each time.
const ATTEMPTS: usize = 5;
/// More than any buffer holds.
const LARGE_BYTES: usize = 150_000;

/// What is sent one way and then the other.
type Exchange = (Vec<u8>, Vec<u8>);

/// What a session does again and again.
fn turns() -> Vec<(&'static str, Vec<Exchange>)> {
    let complete = |status| [command_complete("SELECT 1"), ready(status)].concat();
    let row = [data_row(&[Some("1")]), complete(b'I')].concat();
    let rows = |bytes: usize| {
        let one = data_row(&[Some(
            "a row of some seventy bytes, as a table of accounts has them",
        )]);
        [
            row_description(&["column"]),
            one.repeat(bytes / one.len()),
            complete(b'I'),
        ]
        .concat()
    };
    let bind = |statement: &str| {
        built(|buffer| {
            frontend::bind(
                "",
                statement,
                [],
                [],
                |(): (), _| unreachable!(),
                [],
                buffer,
            )
            .map_err(|_| std::io::Error::other("bind"))?;
            frontend::execute("", 0, buffer)?;
            frontend::sync(buffer);
            Ok(())
        })
    };
    let parse = built(|buffer| frontend::parse("", "SELECT 1", [], buffer));
    let (parsed, bound) = (frame(b'1', &[]), frame(b'2', &[]));
    let copied = [
        frame(b'd', &[b'x'; 8_000]).repeat(LARGE_BYTES / 8_000),
        frame(b'c', &[]),
    ];
    let simple = (
        query("SELECT 1"),
        [row_description(&["a"]), row.clone()].concat(),
    );
    vec![
        ("simple", vec![simple.clone()]),
        (
            "prepared",
            vec![(bind("named"), [bound.clone(), row.clone()].concat())],
        ),
        (
            "extended",
            vec![([parse, bind("")].concat(), [parsed, bound, row].concat())],
        ),
        (
            "a transaction",
            vec![
                (query("BEGIN"), complete(b'T')),
                simple.clone(),
                (query("COMMIT"), complete(b'I')),
            ],
        ),
        (
            "answers that just fit the smallest buffer",
            (950..=998)
                .map(|bytes| {
                    let row = frame(b'D', &vec![0; bytes]);
                    (query("SELECT"), [row, complete(b'I')].concat())
                })
                .collect(),
        ),
        ("large answers", vec![(query("SELECT"), rows(LARGE_BYTES))]),
        (
            "large and small answers",
            vec![(query("SELECT"), rows(5_000)), simple],
        ),
        (
            "a large request",
            vec![(query(&"x".repeat(LARGE_BYTES)), complete(b'I'))],
        ),
        (
            "COPY from the client",
            vec![
                (query("COPY"), frame(b'G', &[0, 0, 0])),
                (copied.concat(), complete(b'I')),
            ],
        ),
    ]
}

/// What the server is to expect and to answer.
type Script = Arc<Mutex<Vec<Exchange>>>;

/// Lets one client in, and plays `script` from its start as often as it is asked.
fn serve(mut stream: impl Read + Write, script: &Script) {
    let mut buffer = vec![0; LARGE_BYTES];
    stream.read_exact(&mut buffer[..4]).unwrap();
    let length = u32::from_be_bytes(buffer[..4].try_into().unwrap()) as usize;
    stream.read_exact(&mut buffer[..length - 4]).unwrap();
    let welcome = [authentication(0, &[]), ready(b'I')].concat();
    stream.write_all(&welcome).unwrap();
    loop {
        let mut step = 0;
        loop {
            // What is expected is known when it begins to come.
            let Ok(mut received @ 1..) = stream.read(&mut buffer) else {
                return;
            };
            let script = script.lock().unwrap();
            let (request, answer) = &script[step];
            while received < request.len() {
                received += stream.read(&mut buffer).unwrap();
            }
            stream.write_all(answer).unwrap();
            step += 1;
            if step == script.len() {
                break;
            }
        }
    }
}

fn play(stream: &mut (impl Read + Write), buffer: &mut [u8], script: &[Exchange]) {
    for (request, answer) in script {
        stream.write_all(request).unwrap();
        let mut left = answer.len();
        while left > 0 {
            let room = left.min(buffer.len());
            left -= stream.read(&mut buffer[..room]).unwrap();
        }
    }
}

/// Logs in, and counts; `case` says what kind of session it is.
fn count(case: &str, mut stream: impl Read + Write, script: &Script) {
    stream
        .write_all(&startup(message::VERSION_3_0, &[("user", "maria")]))
        .unwrap();
    let mut buffer = vec![0; LARGE_BYTES];
    let welcome = [authentication(0, &[]), ready(b'I')].concat();
    stream.read_exact(&mut buffer[..welcome.len()]).unwrap();
    for (kind, turn) in turns() {
        *script.lock().unwrap() = turn.clone();
        let mut play_often = |exchanges| {
            for _ in 0..exchanges / turn.len() {
                play(&mut stream, &mut buffer, &turn);
            }
        };
        play_often(WARM_UP);
        let mut counts = Vec::new();
        while counts.last() != Some(&0) {
            assert!(
                counts.len() < ATTEMPTS,
                "{case}, {kind}: {counts:?} allocations in {EXCHANGES} exchanges each"
            );
            let region = Region::new(COUNTED);
            play_often(EXCHANGES);
            let change = region.change();
            counts.push(change.allocations + change.reallocations);
        }
    }
}

/// The proxy before `server`, and where it listens.
fn start(files: &Files, server: SocketAddr, sections: &str) -> (Server, SocketAddr) {
    // Free when this line ends, and taken again by the proxy.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let text = format!(
        "listen = \"{address}\"\nhealth_interval = \"0s\"\n{sections}\n\
         [[backend]]\nname = \"pod\"\naddress = \"{server}\"\n"
    );
    let file = files.write("proxy.conf", text);
    let config = Config::load(&file).unwrap();
    let tls = TlsContexts::load(config.client_tls.as_ref(), &config.server_tls).unwrap();
    (Server::start(config, tls, &file).unwrap(), address)
}

#[test]
fn nothing_is_allocated_once_a_session_has_its_buffers() {
    let script = Script::default();
    let files = Files::new();
    let signals = install_signals().unwrap();
    // Until the process ends.
    let run = |proxy: Server| {
        let signals = signals.clone();
        thread::spawn(move || proxy.run(&signals));
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();

    let (proxy, address) = start(&files, server, "[server_tls]\nsslmode = \"disable\"");
    run(proxy);
    thread::scope(|scope| {
        scope.spawn(|| serve(listener.accept().unwrap().0, &script));
        count("plain", TcpStream::connect(address).unwrap(), &script);
    });

    let own = authority("test").issue("localhost");
    let (cert, key) = (files.cert("cert", &own), files.key("key", &own));
    let sections = format!(
        "[client_tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n\
         [server_tls]\nsslmode = \"require\"",
        cert.display(),
        key.display()
    );
    let (proxy, address) = start(&files, server, &sections);
    run(proxy);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut tcp = listener.accept().unwrap().0;
            tcp.read_exact(&mut [0; 8]).unwrap();
            tcp.write_all(b"S").unwrap();
            serve(peer::server(&own, None).accept(tcp).unwrap(), &script);
        });
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.write_all(&message::packet(message::SSL_REQUEST, &[]))
            .unwrap();
        tcp.read_exact(&mut [0]).unwrap();
        let client = peer::careless_client(SslVersion::TLS1_3);
        count("TLS", client.connect("localhost", tcp).unwrap(), &script);
    });
}
