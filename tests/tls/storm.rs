//! Transfers under busy TLS sessions, and what TLS has to carry at most.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use openssl::ssl::SslVersion;

use super::certs::{Files, authority};
use super::peer::{Pattern, careless_client, pump, server};
use super::rig::{Site, TlsWire, tls_connect, tls_login};
use crate::support::message;
use crate::support::pods::Pods;
use crate::support::proxy::{Proxy, Setup, StopOnDrop};
use crate::support::wire::Wire;

const SESSIONS: usize = 20;
const ROUNDS: usize = 20;
/// Each way.
const TOTAL_BYTES: usize = 100 << 20;

/// Rows of one COPY, each so long that the whole fills many records.
const COPY_ROWS: usize = 40;
const COPY_VALUE_BYTES: usize = 2_000;

/// Asks and checks until `stop`: one after the other, several at once in both
/// protocols, and COPY in both directions.
fn trade(proxy: &Proxy, number: usize, ready: &Barrier, stop: &AtomicBool) {
    let version = match number % 2 {
        0 => SslVersion::TLS1_2,
        _ => SslVersion::TLS1_3,
    };
    let mut client = tls_connect(proxy.address(), &careless_client(version));
    let user = format!("trader-{number}");
    client.start(&[("user", &user), ("database", "defaultdb")]);
    proxy.wait_log(0, |line| {
        line.is("session opened") && line.get("user") == user
    });
    let setting = format!("trader {number}");
    client.rows(&format!("SET application_name = '{setting}'"));
    client.rows(&format!(
        "CREATE TABLE goods_{number} (step INT, goods STRING)"
    ));
    client.rows(&format!("PREPARE own AS SELECT '{number}-' || $1::TEXT"));
    ready.wait();
    let mut step = 0;
    while !stop.load(Ordering::Relaxed) {
        step += 1;
        let own = |step: usize| format!("EXECUTE own('{step}')");
        assert_eq!(client.value(&own(step)), format!("{number}-{step}"));
        assert_eq!(client.value("SHOW application_name"), setting);
        pipeline(&mut client, number, step);
        let queries = [message::query(&own(step)), message::query(&own(step + 1))];
        client.send(&queries.concat());
        for step in [step, step + 1] {
            let answer = client.receive_through(b'Z');
            let expected = Some(format!("{number}-{step}"));
            assert_eq!(answer[1].values(), [expected], "{answer:?}");
        }
        // One writer at a time: what all did at every step would be a queue.
        if step % 5 == 1 {
            copy(&mut client, number, step);
        }
    }
    client.send(&message::terminate());
    client.expect_end();
}

/// Three Parse, Bind, Execute and one Sync, the second of which fails.
fn pipeline(client: &mut TlsWire, number: usize, step: usize) {
    let sql = |what: usize| format!("SELECT '{number}-{step}-{what}'");
    let texts = [sql(1), "SELECT nothing FROM nowhere".to_owned(), sql(3)];
    let mut bytes = Vec::new();
    for text in &texts {
        bytes.extend(message::built(|buffer| {
            use postgres_protocol::message::frontend;
            frontend::parse("", text, [], buffer)?;
            frontend::bind("", "", [], [], |(): (), _| unreachable!(), [], buffer)
                .map_err(|_| std::io::Error::other("bind"))?;
            frontend::execute("", 0, buffer)
        }));
    }
    bytes.extend(message::frame(b'S', &[]));
    client.send(&bytes);
    let answer = client.receive_through(b'Z');
    let tags: String = answer.iter().map(|message| message.tag as char).collect();
    assert_eq!(tags, "12DCEZ", "{answer:?}");
    assert_eq!(answer[2].values(), [Some(format!("{number}-{step}-1"))]);
}

/// Rows into the client's own table and out again.
fn copy(client: &mut TlsWire, number: usize, step: usize) {
    let line = |row: usize| {
        let value = format!("{number}-{step}-{row}-");
        let value = value.repeat(COPY_VALUE_BYTES / value.len());
        format!("{row}\t{value}\n")
    };
    client.rows(&format!("DELETE FROM goods_{number}"));
    client.send(&message::query(&format!("COPY goods_{number} FROM STDIN")));
    client.expect(b'G');
    for row in 0..COPY_ROWS {
        client.send(&message::frame(b'd', line(row).as_bytes()));
    }
    client.send(&message::frame(b'c', &[]));
    let answer = client.receive_through(b'Z');
    let tag = format!("COPY {COPY_ROWS}");
    assert_eq!(answer[0].strings(), [tag.as_str()], "{answer:?}");
    let select = format!("COPY (SELECT * FROM goods_{number} ORDER BY step) TO STDOUT");
    let answer = client.query(&select);
    let rows: Vec<_> = answer
        .iter()
        .filter(|message| message.tag == b'd')
        .collect();
    assert_eq!(rows.len(), COPY_ROWS, "{answer:?}");
    for (row, message) in rows.into_iter().enumerate() {
        assert!(message.body == line(row).as_bytes(), "{message:?}");
    }
}

#[test]
fn busy_tls_sessions_move_round_after_round() {
    let (site, files) = (Site::new(), Files::new());
    let inside = authority("pods' authority");
    let own = inside.issue("127.0.0.1");
    let (cert, key) = (files.cert("pod.crt", &own), files.key("pod.key", &own));
    let ca = files.cert("ca.crt", &inside);
    let pods = Pods::start_with(2, |config| config.tls(&cert, &key));
    let proxy = Setup::new(&pods.addresses())
        .patient()
        .section(&site.client_tls("require", ""))
        .section(&format!(
            "[server_tls]\nsslmode = \"verify-full\"\nca_file = \"{}\"",
            ca.display()
        ))
        .start();
    let (ready, stop) = (Barrier::new(SESSIONS + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..SESSIONS)
            .map(|number| {
                let (proxy, ready, stop) = (&proxy, &ready, &stop);
                scope.spawn(move || trade(proxy, number, ready, stop))
            })
            .collect();
        let _stop = StopOnDrop(&stop);
        ready.wait();
        for _ in 0..ROUNDS {
            if clients.iter().any(thread::ScopedJoinHandle::is_finished) {
                break;
            }
            proxy.migrate().assert_all_moved(SESSIONS as u64);
        }
    });
    let lines = proxy.log().since(0);
    let bad = lines
        .iter()
        .find(|line| ["WARN", "ERROR"].contains(&line.level.as_str()));
    assert_eq!(bad, None);
}

/// CopyData messages of all sizes, from empty to larger than any buffer.
fn frames(seed: u32) -> Vec<u8> {
    let bytes = Pattern::new(seed);
    let (mut block, mut at) = (Vec::new(), 0);
    for size in [0, 1, 7, 100, 1_000, 8_187, 16_384, 60_001, 300_000, 3] {
        block.extend(message::frame(
            b'd',
            bytes.at(at, size.max(1)).get(..size).unwrap(),
        ));
        at += size;
    }
    block
}

/// Plays the server's part: one client, let in, then the storm.
fn flood(listener: &TcpListener, total: usize, met: &Receiver<()>) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    let mut plain = Wire::over(stream);
    assert_eq!(plain.receive_packet().unwrap().0, message::SSL_REQUEST);
    plain.send(b"S");
    let acceptor = server(&authority("server").issue("127.0.0.1"), None);
    let mut wire = Wire::over(acceptor.accept(plain.into_stream()).unwrap());
    wire.receive_packet().unwrap();
    wire.send(&[message::authentication(0, &[]), message::ready(b'I')].concat());
    wire.expect(b'Q');
    // CopyBothResponse: text, no columns.
    wire.send(&message::frame(b'W', &[0, 0, 0]));
    let mut stream = wire.into_stream();
    // So that nothing of what follows is read ahead by the other end's `Wire`.
    met.recv().unwrap();
    pump(
        &mut stream,
        total,
        &Pattern::of(frames(2)),
        &Pattern::of(frames(1)),
    );
    let mut wire = Wire::over(stream);
    wire.expect(b'c');
    let end = [
        message::frame(b'c', &[]),
        message::command_complete("COPY 0"),
        message::ready(b'I'),
    ];
    wire.send(&end.concat());
    wire.expect(b'X');
}

#[test]
fn carries_100_mib_each_way_at_once() {
    let site = Site::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = Setup::new(&[listener.local_addr().unwrap()])
        .section(&site.client_tls("require", ""))
        .section("[server_tls]\nsslmode = \"require\"")
        .start();
    let period = frames(1).len();
    let total = TOTAL_BYTES.next_multiple_of(period);
    let (meet, met) = channel();
    thread::scope(|scope| {
        let listener = &listener;
        scope.spawn(move || flood(listener, total, &met));
        let mut client = tls_login(proxy.address(), "maria");
        client.send(&message::query("START_REPLICATION"));
        client.expect(b'W');
        let mut stream = client.into_stream();
        meet.send(()).unwrap();
        pump(
            &mut stream,
            total,
            &Pattern::of(frames(1)),
            &Pattern::of(frames(2)),
        );
        let mut client = Wire::over(stream);
        client.send(&message::frame(b'c', &[]));
        client.expect(b'c');
        client.expect(b'C');
        client.expect(b'Z');
        client.send(&message::terminate());
        client.expect_end();
    });
}
