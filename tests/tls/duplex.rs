//! One TLS stream, read by one thread while another writes.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use openssl::ssl::SslVersion;
use rustix::net::{RecvFlags, recv};
use sqlproxy::internal::Stream;
use sqlproxy::internal::{ReadDeadline, Reader, Received, Wait};

use super::certs::Files;
use super::peer::{
    EVERY_LEG_AND_VERSION, Leg, PATIENCE, Pattern, client_context, connect, in_thread, pump, soon,
};
use crate::support::poll_kernel;

const FOREVER: Wait = Wait::Interruptible { idle: None };

/// For reads of this thread that a deadline may have to end.
fn register(stream: &Stream) -> Reader {
    stream.socket().read_deadline().register_reader()
}

fn plain(tcp: TcpStream) -> TcpStream {
    tcp
}

/// Writes `total` bytes of a pattern in pieces of every size.
fn write_pattern(stream: &Stream, total: usize, seed: u32) {
    let pattern = Pattern::new(seed);
    let mut sent = 0;
    while sent < total {
        let size = 1 + (sent * 31) % 100_000;
        let piece = pattern.at(sent, size.min(total - sent));
        stream.write_all(piece, None).unwrap();
        sent += piece.len();
    }
}

/// Reads `total` bytes of a pattern; at each suspension says so and waits to be
/// resumed.
fn read_pattern(
    stream: &Stream,
    total: usize,
    seed: u32,
    suspended: &SyncSender<()>,
    resumed: &Receiver<()>,
) {
    let _reader = register(stream);
    let pattern = Pattern::new(seed);
    let mut received = 0;
    let mut buffer = Vec::with_capacity(40_000);
    while received < total {
        buffer.clear();
        match stream.read(&mut buffer, FOREVER).unwrap() {
            Received::Bytes(count) => {
                assert_eq!(count, buffer.len());
                pattern.check(received, &buffer);
                received += count;
            }
            Received::DeadlinePast => {
                suspended.send(()).unwrap();
                resumed.recv().unwrap();
            }
            other => panic!("{other:?} after {received}"),
        }
    }
}

#[test]
fn carries_100_mib_each_way_at_once_while_suspended_again_and_again() {
    const TOTAL: usize = 100 * 1024 * 1024;
    // Without a bound the reader gets on by luck only, for minutes at worst.
    const SUSPENSIONS: usize = 20_000;
    for case in EVERY_LEG_AND_VERSION {
        let deadline = ReadDeadline::new().unwrap();
        let (stream, mut peer) = connect(case, &deadline, plain);
        let peer = in_thread(move || pump(&mut peer, TOTAL, &Pattern::new(1), &Pattern::new(2)));
        let writer = in_thread({
            let stream = Arc::clone(&stream);
            move || write_pattern(&stream, TOTAL, 2)
        });
        let (suspended, has_suspended) = sync_channel(0);
        let (resume, resumed) = sync_channel(0);
        let reader = in_thread(move || read_pattern(&stream, TOTAL, 1, &suspended, &resumed));
        let mut suspensions = 0;
        while suspensions < SUSPENSIONS {
            deadline.expire();
            // An error means that the reader has all it wants.
            if has_suspended.recv().is_err() {
                break;
            }
            deadline.clear();
            suspensions += 1;
            resume.send(()).unwrap();
        }
        reader.join().unwrap();
        writer.join().unwrap();
        peer.join().unwrap();
        assert!(
            suspensions > 100,
            "{case:?}: only {suspensions} suspensions"
        );
    }
}

/// A peer's socket that hands its bytes over in pieces and interferes after
/// each.
struct Pieces {
    tcp: TcpStream,
    after_each: Option<Box<dyn FnMut() + Send>>,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.tcp.read(into)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(after_each) = &mut self.after_each else {
            return self.tcp.write(bytes);
        };
        let count = self.tcp.write(&bytes[..bytes.len().min(997)])?;
        after_each();
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn loses_no_byte_when_suspended_inside_records() {
    const TOTAL: usize = 3_000_000;
    for case in EVERY_LEG_AND_VERSION {
        let deadline = ReadDeadline::new().unwrap();
        let (stream, mut peer) = connect(case, &deadline, |tcp| Pieces {
            tcp,
            after_each: None,
        });
        let (suspended, has_suspended) = sync_channel(0);
        let (resume, resumed) = sync_channel(0);
        let reader = in_thread(move || {
            read_pattern(&stream, TOTAL, 3, &suspended, &resumed);
            suspended
        });
        peer.get_mut().after_each = Some(Box::new(move || {
            deadline.expire();
            // The reader may have all it wants after the last piece.
            if has_suspended.recv_timeout(PATIENCE).is_ok() {
                deadline.clear();
                resume.send(()).unwrap();
            }
        }));
        let pattern = Pattern::new(3);
        let mut sent = 0;
        while sent < TOTAL {
            let rest = (TOTAL - sent).min(16 * 1024);
            sent += peer.write(pattern.at(sent, rest)).unwrap();
        }
        reader.join().unwrap();
    }
}

#[test]
fn returns_what_is_decrypted_to_whoever_reads_next() {
    for case in EVERY_LEG_AND_VERSION {
        let deadline = ReadDeadline::new().unwrap();
        let (stream, mut peer) = connect(case, &deadline, plain);
        let pattern = Pattern::new(4);
        peer.write_all(pattern.at(0, 16_000)).unwrap();
        let waits = [
            Wait::Until(soon()),
            Wait::Data,
            FOREVER,
            Wait::Interruptible {
                idle: Some(PATIENCE),
            },
        ];
        let mut received = 0;
        for wait in waits.into_iter().cycle().take(160) {
            let stream = Arc::clone(&stream);
            let bytes = in_thread(move || {
                let _reader = register(&stream);
                let mut buffer = Vec::with_capacity(100);
                stream.read(&mut buffer, wait).unwrap();
                buffer
            });
            let bytes = bytes.join().unwrap();
            pattern.check(received, &bytes);
            received += bytes.len();
            // From here on the socket has nothing: the rest must not need it.
            deadline.expire();
        }
        assert_eq!(received, 16_000, "{case:?}");
        let _reader = register(&stream);
        let read = stream.read(&mut Vec::with_capacity(1), FOREVER);
        assert_eq!(read.unwrap(), Received::DeadlinePast);
    }
}

#[test]
fn waits_no_longer_than_it_is_told() {
    let deadline = ReadDeadline::new().unwrap();
    let (stream, _peer) = connect((Leg::Client, SslVersion::TLS1_3), &deadline, plain);
    let _reader = register(&stream);
    let mut buffer = Vec::with_capacity(1);
    let idle = Wait::Interruptible {
        idle: Some(Duration::from_millis(1)),
    };
    assert_eq!(stream.read(&mut buffer, idle).unwrap(), Received::Idle);
    let now = Wait::Until(Instant::now());
    let error = stream.read(&mut buffer, now).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[test]
fn tells_a_close_from_a_truncation() {
    for case in EVERY_LEG_AND_VERSION {
        for notified in [true, false] {
            let (stream, mut peer) = connect(case, &ReadDeadline::new().unwrap(), plain);
            let _reader = register(&stream);
            peer.write_all(b"last words").unwrap();
            if notified {
                peer.shutdown().unwrap();
            }
            peer.get_ref().shutdown(Shutdown::Write).unwrap();
            let mut buffer = Vec::with_capacity(100);
            while buffer.len() < 10 {
                stream.read(&mut buffer, FOREVER).unwrap();
            }
            assert_eq!(buffer, b"last words");
            for _ in 0..2 {
                match stream.read(&mut buffer, FOREVER) {
                    Ok(read) => assert!(notified && read == Received::Eof, "{case:?}"),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{case:?}");
                        assert!(!notified, "{case:?}: a notified close is no truncation");
                    }
                }
            }
            // The peer's end leaves ours open.
            stream.write_all(b"answer", None).unwrap();
            stream.close_write();
            let refused = stream.write_all(b"more", None).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
            let mut answer = [0; 6];
            peer.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"answer");
            let end = peer.ssl_read(&mut answer).unwrap_err();
            assert_eq!(end.code(), openssl::ssl::ErrorCode::ZERO_RETURN, "{case:?}");
        }
    }
}

/// Writes until the peer's and our buffers are full, and says so; ends when the
/// connection does.
fn fill(stream: &Arc<Stream>) {
    let block = vec![0; 1 << 20];
    let full = loop {
        let moment = Instant::now() + Duration::from_millis(300);
        match stream.write_all(&block, Some(moment)) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::TimedOut);
}

#[test]
fn a_write_ends_at_its_deadline() {
    for case in EVERY_LEG_AND_VERSION {
        let (stream, _peer) = connect(case, &ReadDeadline::new().unwrap(), plain);
        fill(&stream);
        // Half a record is out: nothing may follow it.
        let refused = stream.write_all(b"more", None).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
    }
}

/// Until more has come than the session's ticket.
fn wait_for_a_record(peer: &TcpStream) {
    let mut bytes = [0; 8 * 1024];
    let (count, _) = recv(peer, &mut bytes, RecvFlags::PEEK | RecvFlags::WAITALL).unwrap();
    assert_eq!(count, bytes.len());
}

#[test]
fn a_blocked_writer_does_not_hold_up_the_reader() {
    for case in EVERY_LEG_AND_VERSION {
        let (stream, mut peer) = connect(case, &ReadDeadline::new().unwrap(), plain);
        // More than any socket buffer: once its first bytes have arrived, the
        // writer is in a write that cannot end before the peer reads.
        const TOTAL: usize = 64 * 1024 * 1024;
        let writer = in_thread({
            let stream = Arc::clone(&stream);
            move || stream.write_all(&vec![7; TOTAL], None)
        });
        wait_for_a_record(peer.get_ref());
        let (pattern, mut received) = (Pattern::new(6), 0);
        let mut buffer = Vec::with_capacity(10_000);
        while received < 1_000_000 {
            let piece = pattern.at(received, 5_000);
            peer.write_all(piece).unwrap();
            let mut left = piece.len();
            while left > 0 {
                buffer.clear();
                stream.read(&mut buffer, Wait::Until(soon())).unwrap();
                pattern.check(received, &buffer);
                received += buffer.len();
                left -= buffer.len();
            }
        }
        assert!(!writer.is_finished(), "nothing was blocked");
        // A close behind a write under way waits for it.
        stream.close_write();
        let mut received = 0;
        let mut buffer = vec![0; 100_000];
        let end = loop {
            match peer.ssl_read(&mut buffer) {
                Ok(count) => received += count,
                Err(end) => break end,
            }
        };
        assert_eq!(end.code(), openssl::ssl::ErrorCode::ZERO_RETURN);
        assert_eq!(received, TOTAL);
        writer.join().unwrap().unwrap();
    }
}

#[test]
fn shutdown_wakes_a_blocked_reader_and_a_blocked_writer() {
    let (stream, _peer) = connect(
        (Leg::Server, SslVersion::TLS1_3),
        &ReadDeadline::new().unwrap(),
        plain,
    );
    let reader = in_thread({
        let stream = Arc::clone(&stream);
        move || {
            let _reader = register(&stream);
            stream.read(&mut Vec::with_capacity(1), FOREVER)
        }
    });
    let (started, has_started) = sync_channel(1);
    let writer = in_thread({
        let stream = Arc::clone(&stream);
        move || {
            let block = vec![0; 1 << 20];
            started.send(()).unwrap();
            while stream.write_all(&block, None).is_ok() {}
        }
    });
    has_started.recv().unwrap();
    stream.shutdown();
    assert!(reader.join().unwrap().is_err());
    writer.join().unwrap();
}

#[test]
fn a_forged_record_is_an_error_and_answered_by_an_alert() {
    const ALERT: u8 = 0x15;
    let (stream, mut peer) = connect(
        (Leg::Client, SslVersion::TLS1_2),
        &ReadDeadline::new().unwrap(),
        plain,
    );
    let forged = [[0x17, 3, 3, 0, 40].as_slice(), &[9; 40]].concat();
    peer.get_mut().write_all(&forged).unwrap();
    let error = stream
        .read(&mut Vec::with_capacity(1), Wait::Until(soon()))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    let mut first = [0];
    peer.get_mut().read_exact(&mut first).unwrap();
    assert_eq!(first, [ALERT]);
}

#[test]
fn an_alert_goes_out_behind_the_records_of_a_write_under_way() {
    let (stream, mut peer) = connect(
        (Leg::Client, SslVersion::TLS1_2),
        &ReadDeadline::new().unwrap(),
        plain,
    );
    let writer = in_thread({
        let stream = Arc::clone(&stream);
        move || stream.write_all(&vec![7; 64 * 1024 * 1024], None)
    });
    wait_for_a_record(peer.get_ref());
    let forged = [[0x17, 3, 3, 0, 40].as_slice(), &[9; 40]].concat();
    peer.get_mut().write_all(&forged).unwrap();
    let error = stream
        .read(&mut Vec::with_capacity(1), Wait::Until(soon()))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    let mut buffer = vec![0; 100_000];
    let end = loop {
        match peer.ssl_read(&mut buffer) {
            Ok(count) => assert!(buffer[..count].iter().all(|byte| *byte == 7)),
            Err(end) => break end,
        }
    };
    assert!(end.to_string().contains("alert bad record mac"), "{end}");
    assert!(writer.join().unwrap().is_err());
}

/// Runs `openssl s_client` against the client leg.
fn s_client(arguments: &[&str]) -> (Arc<Stream>, std::process::Child) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let child = Command::new("openssl")
        .args(["s_client", "-connect", &address])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the openssl command");
    let (socket, _) = listener.accept().unwrap();
    let socket = sqlproxy::internal::Socket::new(socket, ReadDeadline::new().unwrap()).unwrap();
    let stream = client_context().accept(socket, soon(), false).unwrap();
    (Arc::new(stream), child)
}

#[test]
fn key_updates_are_answered_while_the_other_thread_writes() {
    const UPDATES: usize = 50;
    let files = Files::new();
    let messages = files.write("messages", b"");
    let (stream, mut child) =
        s_client(&["-tls1_3", "-msg", "-msgfile", messages.to_str().unwrap()]);
    let mut output = child.stdout.take().unwrap();
    let output = in_thread(move || {
        let mut text = Vec::new();
        output.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    });
    let enough = Arc::new(AtomicBool::new(false));
    let writer = in_thread({
        let (stream, enough) = (Arc::clone(&stream), Arc::clone(&enough));
        move || {
            let mut rows = 0;
            while !enough.load(Ordering::Relaxed) {
                stream
                    .write_all(format!("row {rows}\n").repeat(100).as_bytes(), None)
                    .unwrap();
                rows += 1;
            }
            stream.close_write();
            rows
        }
    });
    let reader = in_thread(move || {
        let _reader = register(&stream);
        stream.read(&mut Vec::with_capacity(1), FOREVER)
    });
    let mut input = child.stdin.take().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    for _ in 0..UPDATES {
        input.write_all(b"K\n").unwrap();
        while said.next().unwrap().unwrap() != "KEYUPDATE" {}
    }
    // s_client writes each message down as it comes.
    let key_updates = |direction: &str| {
        let messages = std::fs::read_to_string(&messages).unwrap();
        let lines = messages.lines().filter(|line| line.starts_with(direction));
        lines.filter(|line| line.contains("KeyUpdate")).count()
    };
    poll_kernel(|| key_updates("<<<") > 0, || "no answer".to_owned());
    enough.store(true, Ordering::Relaxed);
    let rows = writer.join().unwrap();
    // At the end of its input s_client would leave: it is to leave at ours.
    let text = output.join().unwrap();
    drop(input);
    drop(said);
    child.wait().unwrap();
    let _ = reader.join().unwrap();
    let expected: String = (0..rows)
        .map(|row| format!("row {row}\n").repeat(100))
        .collect();
    let start = text.find("row 0\n").unwrap();
    assert!(
        text[start..].starts_with(&expected),
        "wrong or missing rows"
    );
    assert_eq!(key_updates(">>>"), UPDATES);
    // Two demands before our next record are one answer.
    let answers = key_updates("<<<");
    assert!((1..=UPDATES).contains(&answers), "{answers} answers");
}

#[test]
fn a_demand_to_renegotiate_is_declined_while_nobody_writes() {
    let (stream, mut child) = s_client(&["-tls1_2"]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"R\n").unwrap();
    let ended = stream.read(&mut Vec::with_capacity(1), Wait::Until(soon()));
    assert_ne!(
        ended.as_ref().err().map(io::Error::kind),
        Some(ErrorKind::TimedOut)
    );
    let text = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&text.stderr).into_owned();
    assert!(text.contains("no renegotiation"), "{text}");
}
