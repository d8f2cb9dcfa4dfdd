//! What a server keeps of a password, and what it is derived from.

use std::fmt;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::pkcs5::pbkdf2_hmac;
use openssl::sha::sha256;
use zeroize::Zeroizing;

use super::{DIGEST_BYTES, Key, LibraryFailed, decode_digest, hmac, prepare};

/// PostgreSQL's (scram-common.h, `SCRAM_SHA_256_DEFAULT_ITERATIONS`).
pub(crate) const DEFAULT_ITERATIONS: u32 = 4096;
/// PostgreSQL's (scram-common.h, `SCRAM_DEFAULT_SALT_LEN`).
pub(crate) const SALT_BYTES: usize = 16;

/// A verifier as `pg_authid` has it.
#[derive(PartialEq, Eq)]
pub(crate) struct Verifier {
    /// Of its PBKDF2.
    pub iterations: u32,
    /// Of its PBKDF2.
    pub salt: Vec<u8>,
    pub(super) stored_key: Key,
    pub(super) server_key: Key,
}

/// Without what is secret.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({} iterations)", self.iterations)
    }
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$4096:salt$StoredKey:ServerKey`.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?;
        let (how, keys) = rest.split_once('$')?;
        let (iterations, salt) = how.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let is_number = iterations.bytes().all(|byte| byte.is_ascii_digit());
        let iterations: i32 = iterations.parse().ok().filter(|_| is_number)?;
        let salt = STANDARD.decode(salt).ok()?;
        Some(Self {
            iterations: u32::try_from(iterations).ok().filter(|&i| i > 0)?,
            salt: Some(salt).filter(|salt| !salt.is_empty())?,
            stored_key: decode_digest(stored_key.as_bytes())?,
            server_key: decode_digest(server_key.as_bytes())?,
        })
    }

    /// The verifier of a password, and the ClientKey that it stands for.
    ///
    /// # Errors
    /// OpenSSL's.
    pub(super) fn derive_both(
        password: &str,
        salt: &[u8],
        iterations: u32,
    ) -> Result<(Self, Key), LibraryFailed> {
        let password = prepare(password);
        let mut salted = Key::default();
        let rounds = usize::try_from(iterations).map_err(|_| LibraryFailed)?;
        let sha256_digest = MessageDigest::sha256();
        pbkdf2_hmac(
            password.as_bytes(),
            salt,
            rounds,
            sha256_digest,
            &mut salted[..],
        )?;
        let client_key = hmac(&salted[..], &[b"Client Key"])?;
        let verifier = Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: Key(Box::new(sha256(&client_key[..]))),
            server_key: hmac(&salted[..], &[b"Server Key"])?,
        };
        Ok((verifier, client_key))
    }

    /// The same without the key.
    ///
    /// # Errors
    /// OpenSSL's.
    pub(super) fn derive(
        password: &str,
        salt: &[u8],
        iterations: u32,
    ) -> Result<Self, LibraryFailed> {
        Self::derive_both(password, salt, iterations).map(|(verifier, _)| verifier)
    }

    /// Whether `client_key` is the one that it stands for.
    pub(super) fn is_of(&self, client_key: &[u8; DIGEST_BYTES]) -> bool {
        memcmp::eq(&sha256(client_key), &self.stored_key[..])
    }
}

const PREFIX: &str = "SCRAM-SHA-256$";

/// What is known of a user's password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// Its verifier.
    Verifier(Arc<Verifier>),
    /// Itself.
    Password(Arc<Password>),
}

/// A password in clear.
pub(crate) struct Password {
    text: Zeroizing<String>,
    /// What was derived from it first: a stranger makes nobody derive it again and again.
    derived: OnceLock<Arc<Verifier>>,
}

impl Password {
    /// Itself.
    pub(crate) fn new(text: &str) -> Self {
        Self {
            text: Zeroizing::new(text.to_owned()),
            derived: OnceLock::new(),
        }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Its verifier.
    ///
    /// # Errors
    /// OpenSSL's.
    pub(crate) fn verifier(
        &self,
        salt: &[u8],
        iterations: u32,
    ) -> Result<Arc<Verifier>, LibraryFailed> {
        let is_it = |it: &&Arc<Verifier>| it.salt == salt && it.iterations == iterations;
        if let Some(derived) = self.derived.get().filter(is_it) {
            return Ok(Arc::clone(derived));
        }
        let derived = Arc::new(Verifier::derive(&self.text, salt, iterations)?);
        let _ = self.derived.set(Arc::clone(&derived));
        Ok(derived)
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Password {}

/// Without what is secret.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verifier(_) => "a verifier",
            Self::Password(_) => "a password",
        })
    }
}

/// Why a text is no credential that SCRAM can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadCredential {
    /// PostgreSQL takes an empty password for none.
    #[error("the password is empty")]
    Empty,
    /// The hash of a password, from which no SCRAM key can be had.
    #[error("an md5 hash cannot be used with SCRAM")]
    Md5,
    /// It begins as one.
    #[error("the SCRAM-SHA-256 verifier is malformed")]
    Malformed,
}

impl Credential {
    /// What a password column holds, told apart as PostgreSQL does it (crypt.c,
    /// `get_password_type`).
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn parse(text: &str) -> Result<Self, BadCredential> {
        const MD5_DIGITS: usize = 32;
        let is_md5 = text.strip_prefix("md5").is_some_and(|digits| {
            digits.len() == MD5_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        });
        if text.is_empty() {
            Err(BadCredential::Empty)
        } else if is_md5 {
            Err(BadCredential::Md5)
        } else if text.starts_with(PREFIX) {
            let verifier = Verifier::parse(text).ok_or(BadCredential::Malformed)?;
            Ok(Self::Verifier(Arc::new(verifier)))
        } else {
            Ok(Self::Password(Arc::new(Password::new(text))))
        }
    }
}
