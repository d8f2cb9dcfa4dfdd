//! Names of the PostgreSQL protocol: message tags and transaction status.
//!
//! Source: PostgreSQL documentation, "Frontend/Backend Protocol", section
//! "Message Formats". Nothing here reads or writes; see `frame`.

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
