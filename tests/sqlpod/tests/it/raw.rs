//! A client that sends and reads messages as they are, and a tenant.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use sqlpod::{Config, Pod};
use tempfile::TempDir;

/// Longest wait for anything; a loaded machine needs a fraction of it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A database for pods to share, removed with all that is in it.
pub(crate) struct Tenant(TempDir);

impl Tenant {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn config(&self, name: &str) -> Config {
        Config::new(name, self.0.path().join("tenant.db"))
    }

    pub(crate) fn pod(&self, name: &str) -> Pod {
        Pod::start(self.config(name)).unwrap()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) tag: char,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// The strings of a RowDescription's columns.
    pub(crate) fn names(&self) -> Vec<String> {
        assert_eq!(self.tag, 'T', "{self:?}");
        let mut rest = &self.body[2..];
        let mut names = Vec::new();
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == 0).unwrap();
            names.push(String::from_utf8(rest[..end].to_vec()).unwrap());
            rest = &rest[end + 19..];
        }
        names
    }

    /// The OIDs of a RowDescription's columns.
    pub(crate) fn oids(&self) -> Vec<u32> {
        assert_eq!(self.tag, 'T', "{self:?}");
        let mut rest = &self.body[2..];
        let mut oids = Vec::new();
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == 0).unwrap();
            oids.push(u32::from_be_bytes(
                rest[end + 7..end + 11].try_into().unwrap(),
            ));
            rest = &rest[end + 19..];
        }
        oids
    }

    /// The values of a DataRow in text format.
    pub(crate) fn values(&self) -> Vec<Option<String>> {
        assert_eq!(self.tag, 'D', "{self:?}");
        let mut rest = &self.body[2..];
        let mut values = Vec::new();
        while !rest.is_empty() {
            let length = i32::from_be_bytes(rest[..4].try_into().unwrap());
            rest = &rest[4..];
            values.push(usize::try_from(length).ok().map(|length| {
                let (value, tail) = rest.split_at(length);
                rest = tail;
                String::from_utf8(value.to_vec()).unwrap()
            }));
        }
        values
    }

    /// The body as text up to its zero.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body)
            .trim_end_matches('\0')
            .to_owned()
    }

    /// SQLSTATE and text of an ErrorResponse or NoticeResponse.
    pub(crate) fn error(&self) -> (String, String) {
        assert!(matches!(self.tag, 'E' | 'N'), "{self:?}");
        let field = |name: u8| {
            let mut fields = self.body.split(|byte| *byte == 0);
            let found = fields.find(|field| field.first() == Some(&name)).unwrap();
            String::from_utf8(found[1..].to_vec()).unwrap()
        };
        (field(b'C'), field(b'M'))
    }
}

pub(crate) fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| message.tag).collect()
}

pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    /// What came between the startup packet and ReadyForQuery.
    pub(crate) greeting: Vec<Message>,
}

impl Raw {
    /// A connection on which nothing was sent yet.
    pub(crate) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self {
            stream,
            greeting: Vec::new(),
        }
    }

    /// Logs in as this user, up to ReadyForQuery or an error.
    pub(crate) fn login(address: SocketAddr, params: &[(&str, &str)]) -> io::Result<Self> {
        let mut raw = Self::open(address);
        raw.startup(3 << 16, params)?;
        raw.greeting = raw.until_ready()?;
        Ok(raw)
    }

    pub(crate) fn alice(pod: &Pod) -> Self {
        let raw = Self::login(pod.address(), &[("user", "alice"), ("database", "d")]).unwrap();
        assert_eq!(
            raw.greeting.last().unwrap().body,
            b"I",
            "{:?}",
            raw.greeting
        );
        raw
    }

    pub(crate) fn startup(&mut self, version: u32, params: &[(&str, &str)]) -> io::Result<()> {
        let mut body = version.to_be_bytes().to_vec();
        for (name, value) in params {
            body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap();
        self.stream
            .write_all(&[&length.to_be_bytes()[..], &body].concat())
    }

    pub(crate) fn send(&mut self, tag: char, body: &[u8]) {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        let message = [&[u8::try_from(tag).unwrap()][..], &length, body].concat();
        self.stream.write_all(&message).unwrap();
    }

    pub(crate) fn read(&mut self) -> io::Result<Message> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes(head[1..].try_into().unwrap());
        if !head[0].is_ascii_alphanumeric() || !(4..0x1000_0000).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no message"));
        }
        let mut body = vec![0; length as usize - 4];
        self.stream.read_exact(&mut body)?;
        Ok(Message {
            tag: char::from(head[0]),
            body,
        })
    }

    /// Reads up to ReadyForQuery, which is the last, or a FATAL error.
    pub(crate) fn until_ready(&mut self) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            let message = self.read()?;
            let fatal = message.tag == 'E' && message.body.starts_with(b"SFATAL");
            let last = message.tag == 'Z' || fatal;
            messages.push(message);
            if last {
                return Ok(messages);
            }
        }
    }

    pub(crate) fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send('Q', format!("{sql}\0").as_bytes());
        self.until_ready().unwrap()
    }

    /// The only value of a query's only row.
    pub(crate) fn value(&mut self, sql: &str) -> String {
        let answer = self.query(sql);
        assert_eq!(tags(&answer), "TDCZ", "{answer:?}");
        answer[1].values()[0].clone().unwrap()
    }

    /// SQLSTATE and text of a query that fails.
    pub(crate) fn refused(&mut self, sql: &str) -> (String, String) {
        let answer = self.query(sql);
        answer
            .iter()
            .find(|message| message.tag == 'E')
            .expect("an error")
            .error()
    }

    pub(crate) fn parse(&mut self, name: &str, sql: &str) {
        self.send('P', format!("{name}\0{sql}\0\0\0").as_bytes());
    }

    /// Binds parameters in text format.
    pub(crate) fn bind(&mut self, portal: &str, name: &str, params: &[&str]) {
        let mut body = format!("{portal}\0{name}\0\0\0").into_bytes();
        body.extend_from_slice(&u16::try_from(params.len()).unwrap().to_be_bytes());
        for param in params {
            body.extend_from_slice(&u32::try_from(param.len()).unwrap().to_be_bytes());
            body.extend_from_slice(param.as_bytes());
        }
        body.extend_from_slice(&[0, 0]);
        self.send('B', &body);
    }

    pub(crate) fn execute(&mut self, portal: &str, limit: u32) {
        self.send(
            'E',
            &[portal.as_bytes(), &[0], &limit.to_be_bytes()].concat(),
        );
    }

    pub(crate) fn sync(&mut self) -> Vec<Message> {
        self.send('S', &[]);
        self.until_ready().unwrap()
    }

    /// A startup parameter's value as reported in the login.
    pub(crate) fn reported(&self, name: &str) -> Option<String> {
        let statuses = self.greeting.iter().filter(|message| message.tag == 'S');
        statuses.map(Message::text).find_map(|status| {
            let (key, value) = status.split_once('\0')?;
            (key == name).then(|| value.to_owned())
        })
    }

    /// Process id and secret.
    pub(crate) fn key(&self) -> Vec<u8> {
        let found = self.greeting.iter().find(|message| message.tag == 'K');
        found.unwrap().body.clone()
    }
}

/// Sends a CancelRequest, and waits until it was acted on.
pub(crate) fn cancel(address: SocketAddr, key: &[u8]) {
    let mut raw = Raw::open(address);
    let head = [16_u32.to_be_bytes(), 80_877_102_u32.to_be_bytes()].concat();
    raw.stream.write_all(&[&head, key].concat()).unwrap();
    assert_eq!(raw.stream.read(&mut [0]).unwrap(), 0);
}
