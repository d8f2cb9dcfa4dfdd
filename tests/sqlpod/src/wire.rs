//! Messages of the PostgreSQL protocol, read and written over any byte stream.
//!
//! Knows nothing of SQL or of faults. What is sent is buffered until `flush`.

use std::ffi::CStr;
use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use openssl::ssl::{HandshakeError, SslAcceptor, SslStream};

use crate::error::{Failure, PgError};

/// Largest message taken from a client; PostgreSQL's own limit is 1 GiB - 1
/// (`PQ_LARGE_MESSAGE_LIMIT`).
const MAX_MESSAGE_BYTES: usize = 0x3fff_ffff;
/// Largest startup packet (`MAX_STARTUP_PACKET_LENGTH` in PostgreSQL).
const MAX_STARTUP_BYTES: usize = 10_000;
/// Output is sent on its own accord once it exceeds this many bytes.
const FLUSH_BYTES: usize = 32 * 1024;
/// Memory for a message is taken in steps, as its bytes arrive.
const READ_STEP_BYTES: usize = 64 * 1024;

/// What a session talks through.
pub(crate) trait Stream: Read + Write + Send {
    /// Tells the peer that no more will come, where that takes a message.
    fn end(&mut self);
}

impl Stream for Plain {
    fn end(&mut self) {}
}

impl Stream for SslStream<Plain> {
    fn end(&mut self) {
        // An error means that the connection had ended before.
        let _ = self.shutdown();
    }
}

/// A TCP connection whose socket others may shut down.
pub(crate) struct Plain(pub(crate) Arc<TcpStream>);

impl Read for Plain {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buf)
    }
}

impl Write for Plain {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self.0).write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One client's connection, message by message.
pub(crate) struct Wire {
    stream: BufReader<Box<dyn Stream>>,
    tls: bool,
    out: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream: BufReader::new(stream),
            tls: false,
            out: Vec::new(),
        }
    }

    /// Goes on over TLS on the same socket. What has been sent in clear behind the
    /// request for it is an error: it would be taken for decrypted.
    pub(crate) fn start_tls(
        &mut self,
        acceptor: &SslAcceptor,
        socket: Arc<TcpStream>,
    ) -> Result<(), Failure> {
        if !self.stream.buffer().is_empty() {
            return Err(PgError::protocol("data behind a request for TLS").into());
        }
        let accepted = acceptor.accept(Plain(socket));
        let stream = accepted.map_err(|error| match error {
            HandshakeError::SetupFailure(error) => error.into(),
            HandshakeError::Failure(mid) | HandshakeError::WouldBlock(mid) => mid
                .into_error()
                .into_io_error()
                .unwrap_or_else(io::Error::other),
        })?;
        self.stream = BufReader::new(Box::new(stream));
        self.tls = true;
        Ok(())
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }

    /// Tells the peer that no more will come.
    pub(crate) fn end(&mut self) {
        self.stream.get_mut().end();
    }

    /// Reads a startup packet: its code and the rest.
    pub(crate) fn read_startup(&mut self) -> Result<(u32, Vec<u8>), Failure> {
        let length = self.read_u32()?;
        let code = self.read_u32()?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match length.checked_sub(8) {
            Some(rest) if length <= MAX_STARTUP_BYTES => Ok((code, self.read_body(rest)?)),
            _ => Err(PgError::protocol("invalid length of startup packet").into()),
        }
    }

    /// Reads one message: its tag and body.
    pub(crate) fn read(&mut self) -> Result<(u8, Vec<u8>), Failure> {
        let mut tag = [0];
        self.stream.read_exact(&mut tag)?;
        let length = usize::try_from(self.read_u32()?).unwrap_or(usize::MAX);
        match length.checked_sub(4) {
            Some(rest) if rest <= MAX_MESSAGE_BYTES => {
                Ok((u8::from_be_bytes(tag), self.read_body(rest)?))
            }
            _ => Err(PgError::protocol("invalid message length").into()),
        }
    }

    fn read_u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.stream.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn read_body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut body = Vec::with_capacity(length.min(READ_STEP_BYTES));
        let limit = u64::try_from(length).unwrap_or(u64::MAX);
        (&mut self.stream).take(limit).read_to_end(&mut body)?;
        if body.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(body)
    }

    /// Queues a finished message, or raw bytes.
    pub(crate) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.out.extend_from_slice(message);
        if self.out.len() >= FLUSH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes everything queued.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let result = self.stream.get_mut().write_all(&self.out);
        self.out.clear();
        self.out.shrink_to(FLUSH_BYTES);
        result
    }
}

/// Builds one message.
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn new(tag: u8) -> Self {
        Self(vec![tag, 0, 0, 0, 0])
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(crate) fn i16(self, value: i16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn i32(self, value: i32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A count as the protocol's Int16; the caller keeps it below 32768.
    pub(crate) fn count(self, value: usize) -> Self {
        self.i16(i16::try_from(value).unwrap_or(i16::MAX))
    }

    /// A string with its closing zero.
    pub(crate) fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes()).u8(0)
    }

    /// A column's value: length and bytes, or -1 for NULL.
    pub(crate) fn field(self, value: Option<&[u8]>) -> Self {
        match value {
            Some(bytes) => self
                .i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX))
                .bytes(bytes),
            None => self.i32(-1),
        }
    }

    /// Fills in the length.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len().saturating_sub(1)).unwrap_or(u32::MAX);
        for (slot, byte) in self.0.iter_mut().skip(1).zip(length.to_be_bytes()) {
            *slot = byte;
        }
        self.0
    }
}

/// ErrorResponse.
pub(crate) fn error_response(error: &PgError) -> Vec<u8> {
    let severity = if error.fatal { "FATAL" } else { "ERROR" };
    report(b'E', severity, &error.code, &error.message)
}

/// NoticeResponse.
pub(crate) fn notice_response(message: &str) -> Vec<u8> {
    report(b'N', "NOTICE", "00000", message)
}

fn report(tag: u8, severity: &str, code: &str, message: &str) -> Vec<u8> {
    let mut response = Message::new(tag);
    for (field, value) in [
        (b'S', severity),
        (b'V', severity),
        (b'C', code),
        (b'M', message),
    ] {
        response = response.u8(field).text(value);
    }
    response.u8(0).finish()
}

/// ParameterStatus.
pub(crate) fn parameter_status(name: &str, value: &str) -> Vec<u8> {
    Message::new(b'S').text(name).text(value).finish()
}

/// CommandComplete.
pub(crate) fn command_complete(tag: &str) -> Vec<u8> {
    Message::new(b'C').text(tag).finish()
}

/// A message without a body.
pub(crate) fn empty(tag: u8) -> Vec<u8> {
    Message::new(tag).finish()
}

/// Takes a message body apart; every step may find it too short.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], PgError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or_else(malformed)?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], PgError> {
        self.bytes(N)?.try_into().map_err(|_| malformed())
    }

    pub(crate) fn u8(&mut self) -> Result<u8, PgError> {
        self.array().map(u8::from_be_bytes)
    }

    pub(crate) fn i16(&mut self) -> Result<i16, PgError> {
        self.array().map(i16::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, PgError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, PgError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn count(&mut self) -> Result<usize, PgError> {
        self.array()
            .map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    }

    /// A value with its length; `None` for NULL.
    pub(crate) fn field(&mut self) -> Result<Option<&'a [u8]>, PgError> {
        match usize::try_from(self.i32()?) {
            Ok(length) => self.bytes(length).map(Some),
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, PgError> {
        let text = CStr::from_bytes_until_nul(self.0)
            .map_err(|_| malformed())?
            .to_bytes();
        self.bytes(text.len() + 1)?;
        utf8(text)
    }
}

/// The bytes as text, or the error PostgreSQL has for it.
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, PgError> {
    std::str::from_utf8(bytes)
        .map_err(|_| PgError::new("22021", "invalid byte sequence for encoding \"UTF8\""))
}

fn malformed() -> PgError {
    PgError::protocol("insufficient data left in message")
}
