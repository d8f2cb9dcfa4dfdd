//! One end of a connection that follows a script: sends bytes, expects messages.
//!
//! Works over anything that reads, writes and can give up a read in time; the
//! scripted client and the scripted server are both made of it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::message::{self, BackendKey, Message};
use super::{poll_kernel, soon};

/// A stream over a socket.
pub(crate) trait Channel: Read + Write {
    /// The socket below everything.
    fn socket(&self) -> &TcpStream;

    /// Ends the sending direction only, as the protocol of the stream does it.
    fn finish_sending(&mut self);
}

impl Channel for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }

    fn finish_sending(&mut self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Message(Message),
    /// The peer closed the connection between two messages.
    End,
    /// The connection was reset.
    Reset,
    /// Nothing whole came in time.
    Nothing,
}

pub(crate) struct Wire<S = TcpStream> {
    stream: S,
    received: BytesMut,
}

/// What a server told a client at login.
#[derive(Debug, Clone, Default)]
pub(crate) struct Greeting {
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) key: Option<BackendKey>,
}

impl Wire<TcpStream> {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        // Every write is a segment of its own, so that a script can split messages.
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// Connects and logs in as `user` without a password.
    pub(crate) fn login(address: SocketAddr, user: &str) -> Self {
        let mut wire = Self::connect(address);
        wire.start(&[("user", user), ("database", "defaultdb")]);
        wire
    }

    /// Waits until the other end has taken everything that was sent.
    pub(crate) fn wait_drained(&self) {
        let here = self.stream.local_addr().unwrap();
        let there = self.stream.peer_addr().unwrap();
        poll_kernel(
            || unread_bytes(there, here) == Some(0),
            || format!("{there} leaves unread what {here} sent"),
        );
    }

    /// Sends `bytes` in two segments, the second only after the other end has
    /// taken the first.
    pub(crate) fn send_split(&mut self, bytes: &[u8], at: usize) {
        let (first, second) = bytes.split_at(at);
        self.send(first);
        self.wait_drained();
        self.send(second);
    }
}

/// How much of what `remote` sent waits unread at `local`, as the kernel tells.
fn unread_bytes(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        if columns.get(1..3)? != [kernel_address(local)?, kernel_address(remote)?] {
            return None;
        }
        let (_, unread) = columns.get(4)?.split_once(':')?;
        u64::from_str_radix(unread, 16).ok()
    })
}

/// An IPv4 address as /proc/net/tcp writes it.
fn kernel_address(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    let ip = u32::from_ne_bytes(address.ip().octets());
    Some(format!("{ip:08X}:{:04X}", address.port()))
}

impl<S: Channel> Wire<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self {
            stream,
            received: BytesMut::new(),
        }
    }

    /// The stream, for what is below messages.
    pub(crate) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The socket, for what is below the stream.
    pub(crate) fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }

    /// Closes with a reset instead of an orderly end.
    pub(crate) fn reset(self) {
        rustix::net::sockopt::set_socket_linger(self.socket(), Some(Duration::ZERO)).unwrap();
    }

    /// Ends the sending direction only.
    pub(crate) fn finish_sending(&mut self) {
        self.stream.finish_sending();
    }

    /// The stream, when all that came has been taken.
    pub(crate) fn into_stream(self) -> S {
        assert!(self.received.is_empty(), "{:?}", self.received);
        self.stream
    }

    /// # Panics
    /// If the other end no longer takes anything; [`Self::try_send`] does not.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// The next message, in time.
    pub(crate) fn receive(&mut self) -> Message {
        match self.receive_by(soon()) {
            Received::Message(message) => message,
            other => panic!("instead of a message: {other:?}"),
        }
    }

    pub(crate) fn receive_by(&mut self, deadline: Instant) -> Received {
        if let Err(end) = self.fill(5, deadline) {
            return end;
        }
        let length = u32::from_be_bytes(self.received[1..5].try_into().unwrap());
        let total = 1 + usize::try_from(length).unwrap();
        if let Err(end) = self.fill(total, deadline) {
            return end;
        }
        let bytes = self.received.split_to(total);
        Received::Message(Message {
            tag: bytes[0],
            body: bytes[5..].to_vec(),
        })
    }

    /// The next packet that has no type byte: its code and body.  `None` if
    /// the peer went away instead.
    pub(crate) fn receive_packet(&mut self) -> Option<(i32, Vec<u8>)> {
        self.fill(4, soon()).ok()?;
        let length = u32::from_be_bytes(self.received[..4].try_into().unwrap());
        let total = usize::try_from(length).unwrap();
        self.fill(total, soon()).ok()?;
        let packet = self.received.split_to(total);
        let code = i32::from_be_bytes(packet[4..8].try_into().unwrap());
        Some((code, packet[8..].to_vec()))
    }

    /// The next byte on its own, as SSLRequest is answered.
    pub(crate) fn receive_byte(&mut self) -> u8 {
        self.receive_one_byte().expect("a byte")
    }

    /// The next byte, or `None` at the connection's end.
    pub(crate) fn receive_one_byte(&mut self) -> Option<u8> {
        self.fill(1, soon()).ok()?;
        Some(self.received.split_to(1)[0])
    }

    fn fill(&mut self, wanted: usize, deadline: Instant) -> Result<(), Received> {
        let mut chunk = [0; 64 * 1024];
        while self.received.len() < wanted {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(Received::Nothing);
            };
            // The option takes no zero: that would mean for ever.
            let limit = left.max(Duration::from_millis(1));
            self.socket().set_read_timeout(Some(limit)).unwrap();
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    assert!(
                        self.received.is_empty(),
                        "ended inside a message: {}",
                        self.received.escape_ascii()
                    );
                    return Err(Received::End);
                }
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset => return Err(Received::Reset),
                    _ => panic!("read failed: {error}"),
                },
            }
        }
        Ok(())
    }

    /// The next message, which must have `tag`.
    pub(crate) fn expect(&mut self, tag: u8) -> Message {
        let message = self.receive();
        assert_eq!(message.tag as char, tag as char, "{message:?}");
        message
    }

    /// An ErrorResponse with that severity and SQLSTATE.
    pub(crate) fn expect_error(&mut self, severity: &str, sqlstate: &str) -> Message {
        let error = self.expect(b'E');
        assert_eq!(error.field('V'), severity, "{error:?}");
        assert_eq!(error.field('C'), sqlstate, "{error:?}");
        error
    }

    /// The orderly end of the connection.
    pub(crate) fn expect_end(&mut self) {
        let end = self.receive_by(soon());
        assert_eq!(end, Received::End);
    }

    /// The end of the connection, orderly or by reset: what a peer sees that
    /// still had something to say.
    pub(crate) fn expect_gone(&mut self) {
        let end = self.receive_by(soon());
        assert!(matches!(end, Received::End | Received::Reset), "{end:?}");
    }

    /// All messages up to the next one with `tag`, that one included.
    pub(crate) fn receive_through(&mut self, tag: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.receive();
            let last = message.tag == tag;
            messages.push(message);
            if last {
                return messages;
            }
        }
    }

    /// Logs in where no password is asked for.
    pub(crate) fn start(&mut self, parameters: &[(&str, &str)]) -> Greeting {
        self.send(&message::startup(message::VERSION_3_0, parameters));
        assert_eq!(self.expect(b'R').body, [0; 4], "AuthenticationOk");
        self.receive_greeting()
    }

    /// What follows AuthenticationOk up to ReadyForQuery.
    pub(crate) fn receive_greeting(&mut self) -> Greeting {
        let mut greeting = Greeting::default();
        for message in self.receive_through(b'Z') {
            match message.tag {
                b'S' => {
                    let strings = message.strings();
                    let value = strings.get(1).cloned().unwrap_or_default();
                    greeting.parameters.insert(strings[0].clone(), value);
                }
                b'K' => greeting.key = Some(BackendKey(message.body)),
                b'N' | b'Z' => {}
                _ => panic!("in a greeting: {message:?}"),
            }
        }
        greeting
    }

    /// A simple query and its whole answer up to ReadyForQuery.
    pub(crate) fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send(&message::query(sql));
        self.receive_through(b'Z')
    }

    /// The rows of a simple query that must not fail.
    pub(crate) fn rows(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        let answer = self.query(sql);
        let error = answer.iter().find(|message| message.tag == b'E');
        assert_eq!(error, None, "{sql}");
        let rows = answer.iter().filter(|message| message.tag == b'D');
        rows.map(Message::values).collect()
    }

    /// The one value of a simple query.
    pub(crate) fn value(&mut self, sql: &str) -> String {
        let rows = self.rows(sql);
        match rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone().unwrap(),
            _ => panic!("{sql} gave {rows:?}"),
        }
    }
}
