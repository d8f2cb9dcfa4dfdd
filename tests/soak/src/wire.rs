//! A client's end of the PostgreSQL protocol that trusts nothing it reads: a
//! message out of place is an error with a text, never a panic.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

use crate::board::Pulse;

/// Bounds a read that nothing answers, far beyond what the watchdog allows.
const READ_LIMIT: Duration = Duration::from_secs(120);
/// Larger messages than any answer here has.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Type of a parameter that is text.
const TEXT_OID: u32 = 25;

/// Why a connection is of no use any more.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The server, or the proxy in its place, ended the session with a FATAL
    /// ErrorResponse and the orderly end of the connection.
    Fatal { code: String, text: String },
    /// The connection ended without one; `inside` a message or between two.
    Cut { how: String, inside: bool },
    /// Something came that must not come.
    Wrong(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fatal { code, text } => write!(f, "FATAL {code} {text}"),
            Self::Cut { how, inside: true } => write!(f, "{how} inside a message"),
            Self::Cut { how, inside: false } => write!(f, "{how} without a word"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, Trouble>;

/// Fails because of an answer that must not be.
pub(crate) fn wrong<T>(text: impl Into<String>) -> Result<T> {
    Err(Trouble::Wrong(text.into()))
}

/// One message.
pub(crate) struct Message {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

/// One row's values as text.
pub(crate) type Row = Vec<Option<String>>;

/// All that came up to a ReadyForQuery, asynchronous messages left out.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// The messages' type bytes in their order.
    pub(crate) tags: String,
    pub(crate) rows: Vec<Row>,
    /// CopyData, joined.
    pub(crate) copied: Vec<u8>,
    /// Tags of CommandComplete.
    pub(crate) commands: Vec<String>,
    /// SQLSTATE and text of an ErrorResponse.
    pub(crate) error: Option<(String, String)>,
    /// The status of ReadyForQuery.
    pub(crate) status: char,
}

impl Answer {
    /// Fails unless the answer consists of these messages and ends in `status`.
    pub(crate) fn must_be(&self, tags: &str, status: char, what: &str) -> Result<()> {
        if self.tags == tags && self.status == status {
            return Ok(());
        }
        wrong(format!("{what}: not {tags}{status} but {}", self.shown()))
    }

    /// Fails unless it has this one row and nothing else.
    pub(crate) fn must_have(&self, row: &[&str], what: &str) -> Result<()> {
        let found = self
            .rows
            .first()
            .map(|row| row.iter().map(Option::as_deref));
        let same = found.is_some_and(|found| found.eq(row.iter().map(|value| Some(*value))));
        if self.rows.len() == 1 && same {
            return Ok(());
        }
        wrong(format!("{what}: not {row:?} but {}", self.shown()))
    }

    /// Shortened, for an error's text.
    pub(crate) fn shown(&self) -> String {
        let mut text = format!("{self:?}");
        if let Some((end, _)) = text.char_indices().nth(400) {
            text.truncate(end);
        }
        text
    }
}

/// A connection through the proxy.
pub(crate) struct Wire {
    stream: TcpStream,
    received: BytesMut,
    pulse: Arc<Pulse>,
    /// Where the proxy sees this client.
    pub(crate) local: SocketAddr,
    /// Process id and secret for a cancel.
    pub(crate) key: (i32, i32),
    /// What the server has told by ParameterStatus, the latest of each.
    pub(crate) parameters: BTreeMap<String, String>,
}

impl Wire {
    /// Connects, without a word yet.
    pub(crate) fn dial(proxy: SocketAddr, pulse: &Arc<Pulse>) -> Result<Self> {
        pulse.note("connecting");
        let failed = |error: std::io::Error| Trouble::Wrong(format!("cannot connect: {error}"));
        let stream = TcpStream::connect(proxy).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(READ_LIMIT)).map_err(failed)?;
        stream.set_write_timeout(Some(READ_LIMIT)).map_err(failed)?;
        let local = stream.local_addr().map_err(failed)?;
        pulse.connected(local);
        Ok(Self {
            stream,
            received: BytesMut::new(),
            pulse: Arc::clone(pulse),
            local,
            key: (0, 0),
            parameters: BTreeMap::new(),
        })
    }

    /// Logs in, up to the first ReadyForQuery.
    pub(crate) fn login(&mut self, user: &str) -> Result<()> {
        self.pulse.note("the login");
        let parameters = [("user", user), ("database", "defaultdb")];
        self.send(|buffer| frontend::startup_message(parameters, buffer))?;
        loop {
            let message = self.message()?;
            let number = |at: usize| {
                let bytes = message.body.get(at..at + 4)?;
                Some(i32::from_be_bytes(bytes.try_into().ok()?))
            };
            match message.tag {
                b'R' if number(0) == Some(0) => {}
                b'K' => match (number(0), number(4)) {
                    (Some(pid), Some(secret)) => self.key = (pid, secret),
                    _ => return wrong("a short BackendKeyData"),
                },
                b'Z' => return Ok(()),
                _ => return wrong(format!("at the login: {}", message.shown())),
            }
        }
    }

    /// Sends what `build` puts into a buffer, in one write.
    pub(crate) fn send<E: std::fmt::Debug>(
        &mut self,
        build: impl FnOnce(&mut BytesMut) -> std::result::Result<(), E>,
    ) -> Result<()> {
        let mut buffer = BytesMut::new();
        match build(&mut buffer) {
            Ok(()) => self.send_bytes(&buffer),
            Err(error) => wrong(format!("cannot build a message: {error:?}")),
        }
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.write_all(bytes) {
            // Why it is gone may have come before: the next read tells.
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => wrong(format!("cannot send: {error}")),
            Ok(()) => Ok(()),
        }
    }

    /// The next message that is not asynchronous. FATAL is an error.
    pub(crate) fn message(&mut self) -> Result<Message> {
        loop {
            let message = self.next()?;
            match message.tag {
                b'S' | b'N' | b'A' => self.note(&message),
                b'E' if message.field(b'V') == "FATAL" => {
                    let (code, text) = (message.field(b'C'), message.field(b'M'));
                    return match self.next() {
                        Err(Trouble::Cut { inside: false, .. }) => {
                            Err(Trouble::Fatal { code, text })
                        }
                        Err(other) => wrong(format!("behind FATAL {code}: {other}")),
                        Ok(more) => wrong(format!("behind FATAL {code}: {}", more.shown())),
                    };
                }
                _ => return Ok(message),
            }
        }
    }

    /// Takes a message that may come at any time.
    fn note(&mut self, message: &Message) {
        let mut strings = message.body.split(|byte| *byte == 0).map(lossy);
        if let (b'S', Some(name), Some(value)) = (message.tag, strings.next(), strings.next()) {
            self.parameters.insert(name, value);
        }
    }

    /// Everything up to the next ReadyForQuery.
    pub(crate) fn answer(&mut self) -> Result<Answer> {
        let mut answer = Answer::default();
        loop {
            let message = self.message()?;
            if message.tag == b'Z' {
                self.pulse.note("the next answer");
                answer.status = message
                    .body
                    .first()
                    .map_or('?', |status| char::from(*status));
                return Ok(answer);
            }
            // A COPY or a result is one sign, however many rows it has.
            let tag = char::from(message.tag);
            if !(matches!(tag, 'd' | 'D') && answer.tags.ends_with(tag)) {
                answer.tags.push(tag);
            }
            match message.tag {
                b'D' => answer.rows.push(message.row()?),
                b'd' => answer.copied.extend_from_slice(&message.body),
                b'C' => answer.commands.push(message.text()),
                b'E' => answer.error = Some((message.field(b'C'), message.field(b'M'))),
                _ => {}
            }
        }
    }

    /// The answer, if it begins within `time`.
    pub(crate) fn answer_within(&mut self, time: Duration) -> Result<Option<Answer>> {
        let deadline = Instant::now() + time;
        while self.received.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.comes(left.max(Duration::from_millis(1)))? {
                return Ok(None);
            }
            // What comes unasked is no answer.
            match self.fill(1) {
                Ok(()) if matches!(self.received.first(), Some(b'S' | b'N' | b'A')) => {
                    let message = self.next()?;
                    self.note(&message);
                }
                _ => break,
            }
        }
        self.answer().map(Some)
    }

    /// Whether something comes, the end included, within `time`.
    fn comes(&mut self, time: Duration) -> Result<bool> {
        let failed = |error| Trouble::Wrong(format!("cannot set a limit: {error}"));
        self.stream.set_read_timeout(Some(time)).map_err(failed)?;
        let come = match self.stream.peek(&mut [0]) {
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            Ok(_) => true,
        };
        self.stream
            .set_read_timeout(Some(READ_LIMIT))
            .map_err(failed)?;
        Ok(come)
    }

    /// A simple query and its answer.
    pub(crate) fn query(&mut self, sql: &str) -> Result<Answer> {
        self.pulse.note(sql.to_owned());
        self.send(|buffer| frontend::query(sql, buffer))?;
        self.answer()
    }

    /// A simple query that must give this one value, and leave that status.
    pub(crate) fn ask(&mut self, sql: &str, value: &str, status: char) -> Result<()> {
        let answer = self.query(sql)?;
        answer.must_be("TDC", status, sql)?;
        answer.must_have(&[value], sql)
    }

    /// A simple query without rows that must succeed.
    pub(crate) fn run(&mut self, sql: &str, status: char) -> Result<()> {
        self.query(sql)?.must_be("C", status, sql)
    }

    /// Ends the session in the protocol's way; the server must say no more.
    pub(crate) fn terminate(mut self) -> Result<()> {
        self.pulse.note("the end after Terminate");
        self.send(|buffer| {
            frontend::terminate(buffer);
            Ok::<_, std::io::Error>(())
        })?;
        match self.next() {
            Err(Trouble::Cut { inside: false, .. }) => Ok(()),
            Err(other) => Err(other),
            // What the session's loss and this farewell crossed on the way.
            Ok(message) if message.tag == b'E' => Err(Trouble::Fatal {
                code: message.field(b'C'),
                text: message.field(b'M'),
            }),
            Ok(message) => wrong(format!("behind Terminate: {}", message.shown())),
        }
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        // Where it fails the close is an ordinary one, as good an exit.
        let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }

    fn next(&mut self) -> Result<Message> {
        self.fill(5)?;
        let (tag, length) = match self.received.as_ref() {
            [tag, a, b, c, d, ..] => (*tag, u32::from_be_bytes([*a, *b, *c, *d])),
            _ => return wrong("a header is shorter than a header"),
        };
        let body = usize::try_from(length).unwrap_or(usize::MAX).checked_sub(4);
        let Some(body) = body.filter(|body| *body <= MAX_BODY_BYTES) else {
            return wrong(format!("length {length} of message {:?}", char::from(tag)));
        };
        self.fill(5 + body)?;
        let mut bytes = self.received.split_to(5 + body);
        let body = bytes.split_off(5).to_vec();
        Ok(Message { tag, body })
    }

    fn fill(&mut self, wanted: usize) -> Result<()> {
        let mut chunk = [0; 16 * 1024];
        while self.received.len() < wanted {
            let how = match self.stream.read(&mut chunk) {
                Ok(0) => "closed".to_owned(),
                Ok(count) => {
                    self.received
                        .extend_from_slice(chunk.get(..count).unwrap_or_default());
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if is_gone(&error) => error.to_string(),
                Err(error) => return wrong(format!("cannot read: {error}")),
            };
            let inside = !self.received.is_empty();
            return Err(Trouble::Cut { how, inside });
        }
        Ok(())
    }
}

/// Sends a CancelRequest and waits for the end of its connection.
pub(crate) fn cancel(proxy: SocketAddr, key: (i32, i32)) -> Result<()> {
    let mut wire = Wire::dial(proxy, &Arc::default())?;
    wire.send(|buffer| {
        frontend::cancel_request(key.0, key.1, buffer);
        Ok::<_, std::io::Error>(())
    })?;
    match wire.next() {
        Err(Trouble::Cut { .. }) => Ok(()),
        Err(other) => Err(other),
        // Beside strangers there may be no place for it at this moment.
        Ok(message) if message.tag == b'E' && message.shown().contains("C53300") => {
            Err(Trouble::Fatal {
                code: "53300".to_owned(),
                text: message.shown(),
            })
        }
        Ok(message) => wrong(format!("a cancel was answered: {}", message.shown())),
    }
}

/// Parse, without a name or with one; all parameters are text.
pub(crate) fn parse(buffer: &mut BytesMut, name: &str, sql: &str) -> std::io::Result<()> {
    let parameters = sql.matches('$').count();
    frontend::parse(name, sql, std::iter::repeat_n(TEXT_OID, parameters), buffer)
}

/// Bind to the unnamed portal, in text both ways.
pub(crate) fn bind(
    buffer: &mut BytesMut,
    statement: &str,
    values: &[&str],
) -> std::result::Result<(), String> {
    let value = |value: &&str, buffer: &mut BytesMut| {
        buffer.extend_from_slice(value.as_bytes());
        Ok(IsNull::No)
    };
    match frontend::bind("", statement, [], values, value, [], buffer) {
        Ok(()) => Ok(()),
        Err(_) => Err("a value is too long".to_owned()),
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
    )
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Message {
    /// A field of an ErrorResponse, empty if it is absent.
    fn field(&self, code: u8) -> String {
        let mut fields = self.body.split(|byte| *byte == 0);
        let found = fields.find_map(|field| match field.split_first() {
            Some((first, text)) if *first == code => Some(lossy(text)),
            _ => None,
        });
        found.unwrap_or_default()
    }

    /// The body as one string.
    fn text(&self) -> String {
        lossy(self.body.strip_suffix(&[0]).unwrap_or(&self.body))
    }

    fn row(&self) -> Result<Row> {
        let read = || -> Option<Row> {
            let (count, mut rest) = self.body.split_first_chunk()?;
            let mut row = Row::new();
            for _ in 0..u16::from_be_bytes(*count) {
                let (length, after) = rest.split_first_chunk()?;
                rest = after;
                row.push(match usize::try_from(i32::from_be_bytes(*length)) {
                    Ok(length) => {
                        let (value, after) = rest.split_at_checked(length)?;
                        rest = after;
                        Some(lossy(value))
                    }
                    Err(_) => None,
                });
            }
            rest.is_empty().then_some(row)
        };
        match read() {
            Some(row) => Ok(row),
            None => wrong(format!("a broken row: {}", self.shown())),
        }
    }

    pub(crate) fn shown(&self) -> String {
        let start = self
            .body
            .get(..self.body.len().min(200))
            .unwrap_or_default();
        format!("{:?} {}", char::from(self.tag), start.escape_ascii())
    }
}
