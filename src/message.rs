//! The PostgreSQL protocol's messages: their names, and the few that the proxy
//! writes or looks into itself.
//!
//! Source: PostgreSQL documentation, "Frontend/Backend Protocol", section
//! "Message Formats".  Nothing here reads or writes a socket; see `frame`.

use crate::error::{SqlState, shown};

/// Type byte of a message that a client sends (frontend message).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrontendTag(pub u8);

impl FrontendTag {
    /// Query (simple protocol): answered by one ReadyForQuery.
    pub const QUERY: Self = Self(b'Q');
    /// Parse (extended protocol).
    pub const PARSE: Self = Self(b'P');
    /// Bind (extended protocol).
    pub const BIND: Self = Self(b'B');
    /// Describe (extended protocol).
    pub const DESCRIBE: Self = Self(b'D');
    /// Execute (extended protocol).
    pub const EXECUTE: Self = Self(b'E');
    /// Close (extended protocol).
    pub const CLOSE: Self = Self(b'C');
    /// Flush (extended protocol): asks for pending answers, has none of its own.
    pub const FLUSH: Self = Self(b'H');
    /// Sync (extended protocol): answered by one ReadyForQuery.
    pub const SYNC: Self = Self(b'S');
    /// FunctionCall: answered by one ReadyForQuery.
    pub const FUNCTION_CALL: Self = Self(b'F');
    /// CopyData.
    pub const COPY_DATA: Self = Self(b'd');
    /// CopyDone: ends a COPY FROM STDIN.
    pub const COPY_DONE: Self = Self(b'c');
    /// CopyFail: ends a COPY FROM STDIN with an error.
    pub const COPY_FAIL: Self = Self(b'f');
    /// PasswordMessage, SASLInitialResponse, SASLResponse, GSSResponse.
    pub const PASSWORD: Self = Self(b'p');
    /// Terminate.
    pub const TERMINATE: Self = Self(b'X');
}

/// Type byte of a message that a server sends (backend message).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackendTag(pub u8);

impl BackendTag {
    /// Authentication request, all kinds.
    pub const AUTHENTICATION: Self = Self(b'R');
    /// BackendKeyData: process id and secret for CancelRequest.
    pub const BACKEND_KEY_DATA: Self = Self(b'K');
    /// BindComplete.
    pub const BIND_COMPLETE: Self = Self(b'2');
    /// CloseComplete.
    pub const CLOSE_COMPLETE: Self = Self(b'3');
    /// CommandComplete.
    pub const COMMAND_COMPLETE: Self = Self(b'C');
    /// CopyData.
    pub const COPY_DATA: Self = Self(b'd');
    /// CopyDone.
    pub const COPY_DONE: Self = Self(b'c');
    /// CopyInResponse: the server waits for CopyData.
    pub const COPY_IN_RESPONSE: Self = Self(b'G');
    /// CopyOutResponse.
    pub const COPY_OUT_RESPONSE: Self = Self(b'H');
    /// CopyBothResponse (streaming replication).
    pub const COPY_BOTH_RESPONSE: Self = Self(b'W');
    /// DataRow.
    pub const DATA_ROW: Self = Self(b'D');
    /// EmptyQueryResponse.
    pub const EMPTY_QUERY_RESPONSE: Self = Self(b'I');
    /// ErrorResponse.
    pub const ERROR_RESPONSE: Self = Self(b'E');
    /// FunctionCallResponse.
    pub const FUNCTION_CALL_RESPONSE: Self = Self(b'V');
    /// NegotiateProtocolVersion.
    pub const NEGOTIATE_PROTOCOL_VERSION: Self = Self(b'v');
    /// NoData.
    pub const NO_DATA: Self = Self(b'n');
    /// NoticeResponse; may come at any time.
    pub const NOTICE_RESPONSE: Self = Self(b'N');
    /// NotificationResponse; may come at any time.
    pub const NOTIFICATION_RESPONSE: Self = Self(b'A');
    /// ParameterDescription.
    pub const PARAMETER_DESCRIPTION: Self = Self(b't');
    /// ParameterStatus; may come at any time.
    pub const PARAMETER_STATUS: Self = Self(b'S');
    /// ParseComplete.
    pub const PARSE_COMPLETE: Self = Self(b'1');
    /// PortalSuspended.
    pub const PORTAL_SUSPENDED: Self = Self(b's');
    /// ReadyForQuery; carries the transaction status.
    pub const READY_FOR_QUERY: Self = Self(b'Z');
    /// RowDescription.
    pub const ROW_DESCRIPTION: Self = Self(b'T');

    /// True for the three messages a server may send at any time, unasked
    /// (protocol document, "Asynchronous Operations").
    #[must_use]
    pub const fn is_asynchronous(self) -> bool {
        matches!(
            self,
            Self::NOTICE_RESPONSE | Self::NOTIFICATION_RESPONSE | Self::PARAMETER_STATUS
        )
    }
}

/// Transaction status in a ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    /// `I`: not in a transaction block.
    Idle,
    /// `T`: in a transaction block.
    InTransaction,
    /// `E`: in a failed transaction block.
    Failed,
}

impl TransactionStatus {
    /// The status that the byte of a ReadyForQuery stands for; `None` for an
    /// unknown byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }
}

/// The zero-terminated string at the start of `bytes`, and what follows it.
#[must_use]
pub(crate) fn split_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// The first four bytes of a BackendKeyData's body, and of a NotificationResponse's.
pub(crate) type ProcessId = [u8; 4];

/// The process id in a cancel key.
#[must_use]
pub(crate) fn process_id(key: &[u8]) -> Option<ProcessId> {
    key.first_chunk().copied()
}

/// A NotificationResponse of the process `own`, which serves the session, is made one
/// of the process `client`, which its client knows: drivers tell by it their own
/// notifications from others'.  `frame` begins with its header.
pub(crate) fn rewrite_notification(
    frame: &mut [u8],
    own: Option<ProcessId>,
    client: Option<ProcessId>,
) {
    const HEADER_BYTES: usize = 5;
    if let (Some(own), Some(client)) = (own, client)
        && frame.first() == Some(&BackendTag::NOTIFICATION_RESPONSE.0)
        && let Some(sender) = frame.get_mut(HEADER_BYTES..HEADER_BYTES + own.len())
        && *sender == own
    {
        sender.copy_from_slice(&client);
    }
}

/// Name and value of a ParameterStatus body.
#[must_use]
pub fn parameter_status(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = split_cstr(body)?;
    let (value, rest) = split_cstr(rest)?;
    rest.is_empty().then_some((name, value))
}

/// The fields of an ErrorResponse or NoticeResponse that the proxy looks at, as its
/// log may show them: each at most 128 characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorFields {
    /// `V`, else `S`: the severity, never translated where the server sends `V`
    /// (PostgreSQL 9.6 and later).
    pub severity: String,
    /// `C`: the SQLSTATE.
    pub sqlstate: String,
    /// `M`: the primary message.
    pub message: String,
}

/// Whether a server refuses a message with this ErrorResponse's SQLSTATE before it has
/// done anything for it, since it cannot read it: `protocol_violation`,
/// `character_not_in_repertoire` or `untranslatable_character` (PostgreSQL's pqformat.c and
/// mbutils.c).  Others may have the same.
#[must_use]
pub fn refuses_unread(mut body: &[u8]) -> bool {
    while let Some((&code, rest)) = body.split_first() {
        let Some((value, rest)) = split_cstr(rest) else {
            break;
        };
        if code == b'C' {
            return matches!(value, b"08P01" | b"22021" | b"22P05");
        }
        body = rest;
    }
    false
}

impl ErrorFields {
    /// Reads the body; what is missing or malformed stays empty.
    #[must_use]
    pub fn parse(mut body: &[u8]) -> Self {
        let mut fields = Self::default();
        while let Some((&code, rest)) = body.split_first() {
            let Some((value, rest)) = split_cstr(rest) else {
                break;
            };
            let text = || shown(&String::from_utf8_lossy(value));
            match code {
                b'V' => fields.severity = text(),
                b'S' if fields.severity.is_empty() => fields.severity = text(),
                b'C' => fields.sqlstate = text(),
                b'M' => fields.message = text(),
                _ => {}
            }
            body = rest;
        }
        fields
    }

    /// Whether the server ends the connection after this error.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

/// Appends a message: its tag, its length, and the body that `body` appends.
pub(crate) fn put_message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    put_sized(out, body);
}

/// Appends a length field and the body that it counts: a startup packet, or
/// what follows a tag.
pub(crate) fn put_sized(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    // All the proxy writes itself is far below 2 GiB; a length that is not
    // would be refused by the peer.
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends a zero-terminated string; what follows a zero in it is dropped.
pub(crate) fn put_cstr(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(text.iter().take_while(|&&byte| byte != 0));
    out.push(0);
}

/// A FATAL ErrorResponse.
#[must_use]
pub fn fatal_error(sqlstate: SqlState, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_message(&mut out, BackendTag::ERROR_RESPONSE.0, |out| {
        for (code, value) in [
            (b'S', "FATAL"),
            (b'V', "FATAL"),
            (b'C', sqlstate.0),
            (b'M', text),
        ] {
            out.push(code);
            put_cstr(out, value.as_bytes());
        }
        out.push(0);
    });
    out
}

/// A Query.
#[must_use]
pub(crate) fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(sql.len() + 6);
    put_message(&mut out, FrontendTag::QUERY.0, |out| {
        put_cstr(out, sql.as_bytes())
    });
    out
}

/// A ParameterStatus.
pub fn put_parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put_message(out, BackendTag::PARAMETER_STATUS.0, |out| {
        put_cstr(out, name);
        put_cstr(out, value);
    });
}

/// A Terminate.
pub(crate) const TERMINATE: [u8; 5] = [FrontendTag::TERMINATE.0, 0, 0, 0, 4];

/// Column names of a RowDescription body; `None` where it is malformed.
#[must_use]
pub fn row_description(body: &[u8]) -> Option<Vec<&[u8]>> {
    // Table OID, attribute number, type OID, type length, modifier, format.
    const FIELD_BYTES: usize = 4 + 2 + 4 + 2 + 4 + 2;
    let (count, mut rest) = split_count(body)?;
    let mut names = Vec::new();
    for _ in 0..count {
        let (name, fields) = split_cstr(rest)?;
        names.push(name);
        rest = fields.get(FIELD_BYTES..)?;
    }
    rest.is_empty().then_some(names)
}

/// Values of a DataRow body, `None` for NULL; `None` where it is malformed.
#[must_use]
pub fn data_row(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = split_count(body)?;
    let mut values = Vec::new();
    for _ in 0..count {
        let (value, after) = split_value(rest)?;
        values.push(value);
        rest = after;
    }
    rest.is_empty().then_some(values)
}

/// The value at the start of `body`, which is `None` for NULL, and what follows it.
pub(crate) fn split_value(body: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, after) = body.split_first_chunk::<4>()?;
    match i32::from_be_bytes(*length) {
        -1 => Some((None, after)),
        length => {
            let (value, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
            Some((Some(value), after))
        }
    }
}

/// The count at the start of `body`, and what follows it.
pub(crate) fn split_count(body: &[u8]) -> Option<(u16, &[u8])> {
    let (count, rest) = body.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*count), rest))
}
