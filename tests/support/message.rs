//! Messages of the PostgreSQL protocol, whole or broken on purpose.
//!
//! What a proper client sends is built by `postgres_protocol::message::frontend`;
//! here stand the server's messages and those that no library would send.

use bytes::BytesMut;

/// One message with its type byte.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.body[..self.body.len().min(200)];
        write!(f, "{:?} {}", self.tag as char, shown.escape_ascii())
    }
}

impl Message {
    /// The message as it goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        frame(self.tag, &self.body)
    }

    /// The values of a DataRow, as text.
    pub(crate) fn values(&self) -> Vec<Option<String>> {
        assert_eq!(self.tag, b'D', "{self:?}");
        let (count, mut rest) = self.body.split_at(2);
        let count = u16::from_be_bytes(count.try_into().unwrap());
        (0..count)
            .map(|_| {
                let (length, after) = rest.split_at(4);
                rest = after;
                let length = i32::from_be_bytes(length.try_into().unwrap());
                let length = usize::try_from(length).ok()?;
                let (value, after) = rest.split_at(length);
                rest = after;
                Some(String::from_utf8(value.to_vec()).unwrap())
            })
            .collect()
    }

    /// A field of an ErrorResponse or NoticeResponse, empty if it is absent.
    pub(crate) fn field(&self, code: char) -> String {
        assert!(matches!(self.tag, b'E' | b'N'), "{self:?}");
        self.body
            .split(|byte| *byte == 0)
            .filter_map(|field| std::str::from_utf8(field).ok())
            .find_map(|field| field.strip_prefix(code))
            .unwrap_or_default()
            .to_owned()
    }

    /// The strings of the body up to its end, as in ParameterStatus.
    pub(crate) fn strings(&self) -> Vec<String> {
        let text = String::from_utf8(self.body.clone()).unwrap();
        text.trim_end_matches('\0')
            .split('\0')
            .map(str::to_owned)
            .collect()
    }
}

/// A message with a true length field.
pub(crate) fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    let mut bytes = vec![tag];
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A packet without a type byte, as they are before authentication.
pub(crate) fn packet(code: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap();
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Protocol 3.0 as the startup packet has it.
pub(crate) const VERSION_3_0: i32 = 3 << 16;
/// Protocol 3.2.
pub(crate) const VERSION_3_2: i32 = (3 << 16) | 2;
/// Code of CancelRequest.
pub(crate) const CANCEL_REQUEST: i32 = (1234 << 16) | 5678;
/// Code of SSLRequest.
pub(crate) const SSL_REQUEST: i32 = (1234 << 16) | 5679;
/// Code of GSSENCRequest.
pub(crate) const GSSENC_REQUEST: i32 = (1234 << 16) | 5680;

pub(crate) fn startup(version: i32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in parameters {
        cstring(&mut body, name);
        cstring(&mut body, value);
    }
    body.push(0);
    packet(version, &body)
}

pub(crate) fn cancel_request(key: &BackendKey) -> Vec<u8> {
    packet(CANCEL_REQUEST, &key.0)
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    built(|buffer| postgres_protocol::message::frontend::query(sql, buffer))
}

pub(crate) fn terminate() -> Vec<u8> {
    frame(b'X', &[])
}

pub(crate) fn password(text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    cstring(&mut body, text);
    frame(b'p', &body)
}

/// The bytes of a `postgres_protocol` message.
pub(crate) fn built(build: impl FnOnce(&mut BytesMut) -> std::io::Result<()>) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    build(&mut buffer).unwrap();
    buffer.to_vec()
}

/// Process id and secret, the body of BackendKeyData and of CancelRequest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct BackendKey(pub(crate) Vec<u8>);

pub(crate) fn backend_key_data(key: &BackendKey) -> Vec<u8> {
    frame(b'K', &key.0)
}

/// Any authentication request; 0 is AuthenticationOk.
pub(crate) fn authentication(code: i32, data: &[u8]) -> Vec<u8> {
    let mut body = code.to_be_bytes().to_vec();
    body.extend(data);
    frame(b'R', &body)
}

pub(crate) fn parameter_status(name: &str, value: &str) -> Vec<u8> {
    let mut body = Vec::new();
    cstring(&mut body, name);
    cstring(&mut body, value);
    frame(b'S', &body)
}

/// ReadyForQuery with the status `I`, `T` or `E`.
pub(crate) fn ready(status: u8) -> Vec<u8> {
    frame(b'Z', &[status])
}

/// A RowDescription of text columns.
pub(crate) fn row_description(names: &[&str]) -> Vec<u8> {
    const TEXT_OID: u32 = 25;
    let mut body = u16::try_from(names.len()).unwrap().to_be_bytes().to_vec();
    for name in names {
        cstring(&mut body, name);
        body.extend([0; 6]);
        body.extend(TEXT_OID.to_be_bytes());
        body.extend((-1_i16).to_be_bytes());
        body.extend((-1_i32).to_be_bytes());
        body.extend([0; 2]);
    }
    frame(b'T', &body)
}

pub(crate) fn data_row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        match value {
            Some(value) => {
                body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
                body.extend(value.as_bytes());
            }
            None => body.extend((-1_i32).to_be_bytes()),
        }
    }
    frame(b'D', &body)
}

pub(crate) fn command_complete(tag: &str) -> Vec<u8> {
    let mut body = Vec::new();
    cstring(&mut body, tag);
    frame(b'C', &body)
}

pub(crate) fn error_response(severity: &str, sqlstate: &str, text: &str) -> Vec<u8> {
    frame(b'E', &report(severity, sqlstate, text))
}

pub(crate) fn notice_response(sqlstate: &str, text: &str) -> Vec<u8> {
    frame(b'N', &report("NOTICE", sqlstate, text))
}

fn report(severity: &str, sqlstate: &str, text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (code, value) in [
        (b'S', severity),
        (b'V', severity),
        (b'C', sqlstate),
        (b'M', text),
    ] {
        body.push(code);
        cstring(&mut body, value);
    }
    body.push(0);
    body
}

/// A whole answer to a query: one row, its tag and ReadyForQuery.
pub(crate) fn one_row(names: &[&str], values: &[Option<&str>], tag: &str) -> Vec<u8> {
    [
        row_description(names),
        data_row(values),
        command_complete(tag),
        ready(b'I'),
    ]
    .concat()
}

fn cstring(buffer: &mut Vec<u8>, text: &str) {
    buffer.extend(text.as_bytes());
    buffer.push(0);
}
