//! The startup packet and its three relatives, which come before any tag
//! (protocol document, "Start-up", "Canceling Requests in Progress", "SSL
//! Session Encryption").

use std::collections::HashMap;

use crate::error::{Error, Peer, Refusal};
use crate::message::{BackendTag, put_cstr, put_message, put_sized, split_cstr};

/// PostgreSQL refuses longer ones (pqcomm.h, `MAX_STARTUP_PACKET_LENGTH`).
pub(crate) const MAX_STARTUP_BYTES: usize = 10_000;

/// The newest minor version of protocol 3 that the proxy speaks itself.  Its one change
/// is the length of cancel keys, which are the proxy's own on each side.
const NEWEST_MINOR: u16 = 2;
/// How the names of the protocol's own options begin.
const OPTION_PREFIX: &[u8] = b"_pq_.";

/// The longest secret of a cancel key (protocol 3.2).
const MAX_CANCEL_SECRET_BYTES: usize = 256;

/// Request code in a CancelRequest's place of the version.
const CANCEL_REQUEST: u32 = 80_877_102;

/// Request code of an SSLRequest.
const SSL_REQUEST: u32 = 80_877_103;

/// An SSLRequest as it goes over the wire.
pub(crate) const SSL_REQUEST_PACKET: [u8; 8] = {
    let [a, b, c, d] = SSL_REQUEST.to_be_bytes();
    [0, 0, 0, 8, a, b, c, d]
};

const READING: &str = "reading the startup packet";

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Startup {
    /// A session is asked for.
    Session(StartupPacket),
    /// A CancelRequest with this key: process id and secret as on the wire.
    Cancel(Vec<u8>),
    /// SSLRequest.
    Ssl,
    /// GSSENCRequest.
    GssEncryption,
}

/// A StartupMessage.
#[derive(Clone, PartialEq, Eq)]
pub struct StartupPacket {
    /// Minor version of protocol 3.
    pub minor: u16,
    /// Names and values in their order; a name may come twice, and the server
    /// takes the last.
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for StartupPacket {
    // Values may hold secrets: a token, `options` with a password in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self
            .parameters
            .iter()
            .map(|(name, _)| String::from_utf8_lossy(name))
            .collect();
        f.debug_struct("StartupPacket")
            .field("minor", &self.minor)
            .field("parameters", &names)
            .finish()
    }
}

impl Startup {
    /// Reads a packet's body, the length field left away.
    ///
    /// # Errors
    /// With the SQLSTATE that PostgreSQL gives: 08P01 for a malformed packet,
    /// 0A000 for a protocol the proxy does not speak.
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        const GSSENC_REQUEST: u32 = 80_877_104;
        let Some((code, rest)) = body.split_first_chunk::<4>() else {
            return Err(malformed("shorter than its version field"));
        };
        match u32::from_be_bytes(*code) {
            CANCEL_REQUEST if rest.len() > 4 && rest.len() <= 4 + MAX_CANCEL_SECRET_BYTES => {
                Ok(Self::Cancel(rest.to_vec()))
            }
            CANCEL_REQUEST => Err(malformed("a CancelRequest of the wrong length")),
            SSL_REQUEST if rest.is_empty() => Ok(Self::Ssl),
            GSSENC_REQUEST if rest.is_empty() => Ok(Self::GssEncryption),
            SSL_REQUEST | GSSENC_REQUEST => {
                Err(malformed("an encryption request of the wrong length"))
            }
            version => match (version >> 16, (version & 0xffff) as u16) {
                (3, minor) => StartupPacket::parse(minor, rest).map(Self::Session),
                (major, minor) => Err(Refusal::ProtocolVersion { major, minor }.into()),
            },
        }
    }
}

impl StartupPacket {
    fn parse(minor: u16, mut rest: &[u8]) -> Result<Self, Error> {
        let mut parameters = Vec::new();
        loop {
            let Some((name, after)) = split_cstr(rest) else {
                return Err(malformed("no terminator behind its parameters"));
            };
            if name.is_empty() {
                if !after.is_empty() {
                    return Err(malformed("bytes behind its terminator"));
                }
                return Ok(Self { minor, parameters });
            }
            let Some((value, after)) = split_cstr(after) else {
                return Err(malformed("a parameter without a value"));
            };
            parameters.push((name.to_vec(), value.to_vec()));
            rest = after;
        }
    }

    /// What a look at a backend begins with: enough for a server's first answer,
    /// whether that asks for a password or refuses the user.
    #[must_use]
    pub fn probe() -> Self {
        let parameters = [
            ("user", "sqlproxy"),
            ("application_name", "sqlproxy health"),
        ];
        Self {
            minor: 0,
            parameters: parameters
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
        }
    }

    /// The last value of a parameter.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let found = self.parameters.iter().rfind(|(known, _)| known == name);
        found.map(|(_, value)| value.as_slice())
    }

    /// The user's name, for the log.
    #[must_use]
    pub fn user(&self) -> String {
        String::from_utf8_lossy(self.get(b"user").unwrap_or_default()).into_owned()
    }

    /// The database's name, which is the user's where none is given.
    #[must_use]
    pub fn database(&self) -> String {
        let name = self.get(b"database").filter(|name| !name.is_empty());
        name.map_or_else(
            || self.user(),
            |name| String::from_utf8_lossy(name).into_owned(),
        )
    }

    /// Whether a parameter of that name is there, in upper, lower or mixed
    /// case: CockroachDB folds the names.
    #[must_use]
    pub fn has_ignoring_case(&self, name: &[u8]) -> bool {
        self.parameters
            .iter()
            .any(|(known, _)| known.eq_ignore_ascii_case(name))
    }

    /// A parameter's name that servers may read differently than the proxy does:
    /// with a byte outside ASCII, which CockroachDB folds by Unicode (U+212A, the
    /// Kelvin sign, becomes `k`), or equal to another one but for its case.
    #[must_use]
    pub fn ambiguous_name(&self) -> Option<&[u8]> {
        let mut folded: HashMap<Vec<u8>, &[u8]> = HashMap::new();
        self.parameters
            .iter()
            .map(|(name, _)| name.as_slice())
            .find(|name| {
                let first = *folded.entry(name.to_ascii_lowercase()).or_insert(name);
                !name.is_ascii() || first != *name
            })
    }

    /// Replaces every case variant of `name` by one value.
    pub fn set_ignoring_case(&mut self, name: &[u8], value: &[u8]) {
        self.parameters
            .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.parameters.push((name.to_vec(), value.to_vec()));
    }

    /// Takes away what the proxy does not speak of the protocol, for a login that it is
    /// the server of.  Gives the NegotiateProtocolVersion that the client has to hear then.
    #[must_use]
    pub(crate) fn negotiate(&mut self) -> Option<Vec<u8>> {
        let is_option = |(name, _): &(Vec<u8>, Vec<u8>)| name.starts_with(OPTION_PREFIX);
        let (options, parameters) = std::mem::take(&mut self.parameters)
            .into_iter()
            .partition::<Vec<_>, _>(is_option);
        self.parameters = parameters;
        if self.minor <= NEWEST_MINOR && options.is_empty() {
            return None;
        }
        self.minor = self.minor.min(NEWEST_MINOR);
        let mut message = Vec::new();
        put_message(
            &mut message,
            BackendTag::NEGOTIATE_PROTOCOL_VERSION.0,
            |out| {
                out.extend_from_slice(&3u16.to_be_bytes());
                out.extend_from_slice(&self.minor.to_be_bytes());
                let count = u32::try_from(options.len()).unwrap_or(u32::MAX);
                out.extend_from_slice(&count.to_be_bytes());
                for (name, _) in &options {
                    put_cstr(out, name);
                }
            },
        );
        Some(message)
    }

    /// The packet as it goes over the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_sized(&mut out, |out| {
            out.extend_from_slice(&3u16.to_be_bytes());
            out.extend_from_slice(&self.minor.to_be_bytes());
            for (name, value) in &self.parameters {
                put_cstr(out, name);
                put_cstr(out, value);
            }
            out.push(0);
        });
        out
    }
}

/// Whether a packet that begins so is a CancelRequest: length, then request code.
#[must_use]
pub(crate) fn is_cancel_request([_, _, _, _, code @ ..]: [u8; 8]) -> bool {
    u32::from_be_bytes(code) == CANCEL_REQUEST
}

/// A CancelRequest as it goes over the wire; `key` is process id and secret.
#[must_use]
pub fn cancel_request(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_sized(&mut out, |out| {
        out.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
        out.extend_from_slice(key);
    });
    out
}

fn malformed(what: &'static str) -> Error {
    Error::protocol(Peer::Client, READING, what)
}
