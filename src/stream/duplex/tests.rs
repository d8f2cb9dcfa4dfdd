#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says that something is wrong by panicking"
)]

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::super::transport::IDLE_BYTES;
use super::*;
use crate::socket::ReadDeadline;

const ANSWER_BYTES: usize = 10_000;

/// A library without secrets: bytes pass as they are, and each `?` demands an
/// answer.
struct Clear(Transport);

impl Engine for Clear {
    fn decrypt(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(&mut into[..1])?;
        if into[0] == b'?' {
            self.0.outgoing().extend_from_slice(&[b'!'; ANSWER_BYTES]);
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(count)
    }
    fn encrypt(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn pending(&self) -> usize {
        0
    }
    fn close_notify(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn transport(&mut self) -> &mut Transport {
        &mut self.0
    }
    fn server_certificate(&self) -> Option<Vec<u8>> {
        None
    }
}

fn connect() -> (Duplex, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let (socket, _) = listener.accept().unwrap();
    let socket = Arc::new(Socket::new(socket, ReadDeadline::new().unwrap()).unwrap());
    let transport = Transport::new(Arc::clone(&socket), Instant::now());
    (Duplex::new(socket, Box::new(Clear(transport))), peer)
}

fn until_data() -> Wait {
    Wait::Until(Instant::now() + Duration::from_secs(30))
}

#[test]
fn an_answer_waits_for_the_writer_under_way() {
    let (duplex, mut peer) = connect();
    duplex.core.lock().writing = true;
    peer.write_all(b"?x").unwrap();
    let mut buffer = Vec::with_capacity(10);
    duplex.read(&mut buffer, until_data()).unwrap();
    assert_eq!(buffer, b"x");
    let unsent = duplex.core.lock().engine.transport().outgoing().len();
    assert_eq!(unsent, ANSWER_BYTES);
    // The writer's end, and the answer is behind its records.
    duplex.core.lock().writing = false;
    duplex.write_all(b"w", None).unwrap();
    let mut sent = [0; ANSWER_BYTES + 1];
    peer.read_exact(&mut sent).unwrap();
    assert_eq!((sent[0], sent[ANSWER_BYTES]), (b'!', b'w'));
}

#[test]
fn the_reader_answers_where_nobody_writes() {
    let (duplex, mut peer) = connect();
    peer.write_all(b"?x").unwrap();
    duplex
        .read(&mut Vec::with_capacity(10), until_data())
        .unwrap();
    let mut sent = [0; ANSWER_BYTES];
    peer.read_exact(&mut sent).unwrap();
}

#[test]
fn a_peer_that_demands_answers_without_reading_them_is_left() {
    let (duplex, mut peer) = connect();
    // Each receive brings more demands than the kernel holds answers in the end.
    let demands = std::thread::spawn(move || while peer.write_all(&[b'?'; 1000]).is_ok() {});
    let error = duplex
        .read(&mut Vec::with_capacity(10), until_data())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    // Closing with bytes unread resets the connection: the peer's write ends.
    drop(duplex);
    demands.join().unwrap();
}

#[test]
fn room_for_outgoing_records_is_given_back() {
    let (duplex, peer) = connect();
    let room = || duplex.core.lock().engine.transport().outgoing().capacity();
    duplex.write_all(&[1; 50_000], None).unwrap();
    assert!(room() >= 50_000, "a long write allocates each time");
    for _ in 0..SMALL_WRITES {
        duplex.write_all(b"small", None).unwrap();
        assert!(room() >= 50_000, "a program's next long answer allocates");
    }
    duplex.write_all(b"small", None).unwrap();
    assert!(room() <= IDLE_OUTGOING_BYTES, "{} bytes stay", room());
    duplex.write_all(&[1; 50_000], None).unwrap();
    duplex.release_write_buffer();
    assert!(room() <= IDLE_OUTGOING_BYTES, "{} bytes stay", room());
    drop(peer);
}

#[test]
fn room_for_incoming_records_follows_what_comes() {
    let (duplex, mut peer) = connect();
    let room = || duplex.core.lock().engine.transport().incoming_capacity();
    let read = |wait| duplex.read(&mut Vec::with_capacity(100_000), wait).unwrap();
    // Enough for three reads of growing size; all of it is in the kernel before
    // the first, or a read might come up short.
    peer.write_all(&[1; 100_000]).unwrap();
    peer.write_all(b"?").unwrap();
    let mut received = 0;
    let mut largest = 0;
    while received < 100_000 {
        match read(until_data()) {
            Received::Bytes(count) => received += count,
            other => panic!("{other:?}"),
        }
        largest = largest.max(room());
    }
    assert_eq!(largest, 64 * 1024);
    let _reader = duplex.socket().read_deadline().register_reader();
    let idle = Wait::Interruptible {
        idle: Some(Duration::from_millis(1)),
    };
    assert_eq!(read(idle), Received::Idle);
    assert!(room() <= IDLE_BYTES, "{} bytes stay", room());
}
