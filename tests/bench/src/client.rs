//! A client that does no more than it must, so that its own cost is small: for idle
//! connections and for bulk.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use demo::{Result, failed, postgresql};

/// What psql reads and sends at a time is less; this one shall not be what is measured.
const READ_BYTES: usize = 256 * 1024;
/// As psql sends COPY data.
const COPY_BYTES: usize = 8 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

const AUTHENTICATION: u8 = b'R';
const COPY_DATA: u8 = b'd';
const COPY_DONE: u8 = b'c';
const COPY_IN_RESPONSE: u8 = b'G';
const ERROR_RESPONSE: u8 = b'E';
const QUERY: u8 = b'Q';
const READY_FOR_QUERY: u8 = b'Z';

/// One connection after its login.
pub(crate) struct Client {
    stream: TcpStream,
    /// Bytes of a message that are still to come.
    inside: usize,
    /// A header that a read has cut.
    begun: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self {
            stream,
            inside: 0,
            begun: Vec::new(),
        };
        let parameters = format!("user\0{}\0database\0postgres\0\0", postgresql::USER);
        let length = u32::try_from(parameters.len() + 8)?;
        let packet = [
            &length.to_be_bytes()[..],
            &0x0003_0000_u32.to_be_bytes(),
            parameters.as_bytes(),
        ];
        client.stream.write_all(&packet.concat())?;
        client.read_to(READY_FOR_QUERY)?;
        Ok(client)
    }

    /// Runs `sql`; how many bytes it answered.
    pub(crate) fn query(&mut self, sql: &str) -> Result<u64> {
        let body = format!("{sql}\0");
        self.stream.write_all(&message(QUERY, body.as_bytes())?)?;
        self.read_to(READY_FOR_QUERY)
    }

    /// Sends `bytes` of rows, whole rows, to a COPY that `sql` begins; how many bytes went.
    pub(crate) fn copy_in(&mut self, sql: &str, row: &[u8], bytes: u64) -> Result<u64> {
        let body = format!("{sql}\0");
        self.stream.write_all(&message(QUERY, body.as_bytes())?)?;
        self.read_to(COPY_IN_RESPONSE)?;
        let data = message(COPY_DATA, &row.repeat(COPY_BYTES / row.len()))?;
        let mut sent = 0;
        while sent < bytes {
            self.stream.write_all(&data)?;
            sent += u64::try_from(data.len())?;
        }
        self.stream.write_all(&message(COPY_DONE, &[])?)?;
        self.read_to(READY_FOR_QUERY)?;
        Ok(sent)
    }

    /// Reads up to the read that ends with a message of that type; how many bytes came.
    fn read_to(&mut self, wanted: u8) -> Result<u64> {
        let mut buffer = vec![0; READ_BYTES];
        let mut bytes = 0;
        let mut last = AUTHENTICATION;
        while last != wanted || self.inside > 0 || !self.begun.is_empty() {
            let count = match self.stream.read(&mut buffer) {
                // Whoever asks for the end is listened to between two messages.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                count => count?,
            };
            if count == 0 {
                return failed("the connection has ended");
            }
            bytes += u64::try_from(count)?;
            let mut rest = buffer.get(..count).unwrap_or_default();
            while !rest.is_empty() {
                let body = self.inside.min(rest.len());
                self.inside -= body;
                rest = rest.get(body..).unwrap_or_default();
                if rest.is_empty() {
                    break;
                }
                let missing = (5 - self.begun.len()).min(rest.len());
                self.begun
                    .extend_from_slice(rest.get(..missing).unwrap_or_default());
                rest = rest.get(missing..).unwrap_or_default();
                if let [tag, a, b, c, d] = self.begun[..] {
                    let length = u32::from_be_bytes([a, b, c, d]);
                    self.inside = usize::try_from(length)?.saturating_sub(4);
                    self.begun.clear();
                    last = tag;
                    if tag == ERROR_RESPONSE {
                        return failed(format!("refused: {}", String::from_utf8_lossy(rest)));
                    }
                }
            }
        }
        Ok(bytes)
    }
}

fn message(tag: u8, body: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(body.len() + 4)?;
    Ok([&[tag], &length.to_be_bytes()[..], body].concat())
}
