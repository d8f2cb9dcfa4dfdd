//! The client's side of an exchange, towards a server.
//!
//! `ClientExchange` → the server's challenge → the proof, and the `Expected` signature
//! by which the server shows that it holds the verifier.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::memcmp;

use super::{
    BOUND_HEADER, Key, LibraryFailed, Password, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, Verifier,
    attribute, decode_digest, draw_nonce, hmac, is_nonce, xor,
};

/// Rounds of PBKDF2 that a server may ask for where the proxy has the password: a
/// quarter of a second of one core, and more than anybody recommends.
const MAX_ITERATIONS: u32 = 1_000_000;

/// By what the proxy gives proofs for a user; as good as its password where the same
/// verifier is held.
pub(crate) enum Secret {
    /// What the user's own proof has told.
    Keys {
        /// Of the password.
        verifier: Arc<Verifier>,
        /// That it stands for.
        client_key: Key,
    },
    /// The password, from a file or a query.
    Password(Arc<Password>),
}

/// Without what is secret.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What is wrong with a server's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadServer {
    /// It is not what RFC 5802 says.
    #[error("a malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The keys are another verifier's.
    #[error("another verifier")]
    OtherVerifier,
    /// More work than it may ask for.
    #[error("more rounds than {MAX_ITERATIONS}")]
    TooManyIterations,
    /// It does not hold the verifier.
    #[error("its signature is wrong: it does not know the user's verifier")]
    WrongSignature,
    /// See [`LibraryFailed`].
    #[error(transparent)]
    Library(#[from] LibraryFailed),
}

/// Whether an exchange is bound to the server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Binding {
    /// There is none.
    Unable,
    /// There is one, and the server does not offer it.
    NotOffered,
    /// To the certificate of this digest.
    EndPoint(Vec<u8>),
}

impl Binding {
    /// Between what the server `offers` and the digest of the certificate that it has
    /// shown.
    pub(crate) fn new(offers: bool, end_point: Option<Vec<u8>>) -> Self {
        match end_point {
            None => Self::Unable,
            Some(_) if !offers => Self::NotOffered,
            Some(digest) => Self::EndPoint(digest),
        }
    }

    fn header(&self) -> &'static [u8] {
        match self {
            Self::Unable => b"n,,",
            Self::NotOffered => b"y,,",
            Self::EndPoint(_) => BOUND_HEADER,
        }
    }
}

/// An exchange that begins.
pub(crate) struct ClientExchange {
    binding: Binding,
    nonce: String,
}

impl ClientExchange {
    /// One of its own nonce.
    ///
    /// # Errors
    /// There is no randomness.
    pub(crate) fn new(binding: Binding) -> Result<Self, LibraryFailed> {
        let nonce = draw_nonce()?;
        Ok(Self { binding, nonce })
    }

    /// The mechanism to choose.
    #[must_use]
    pub(crate) fn mechanism(&self) -> &'static str {
        match self.binding {
            Binding::EndPoint(_) => SCRAM_SHA_256_PLUS,
            Binding::Unable | Binding::NotOffered => SCRAM_SHA_256,
        }
    }

    /// The server takes the name from the startup packet.
    fn bare(&self) -> Vec<u8> {
        format!("n=,r={}", self.nonce).into_bytes()
    }

    /// The client-first-message.
    #[must_use]
    pub(crate) fn first_message(&self) -> Vec<u8> {
        [self.binding.header(), &self.bare()].concat()
    }

    /// The client-final-message that answers `challenge`, and what the server has to show
    /// in turn.
    ///
    /// # Errors
    /// What is wrong with the challenge; no proof has been given then.
    pub(crate) fn answer(
        self,
        secret: &Secret,
        challenge: &[u8],
    ) -> Result<(Vec<u8>, Expected), BadServer> {
        let (nonce, salt, iterations) = read_challenge(challenge)?;
        if !nonce.starts_with(self.nonce.as_bytes()) || nonce.len() == self.nonce.len() {
            return Err(BadServer::Malformed("another nonce"));
        }
        let derived;
        let (verifier, client_key) = match secret {
            Secret::Keys {
                verifier,
                client_key,
            } => match verifier.salt == salt && verifier.iterations == iterations {
                true => (&**verifier, client_key),
                false => return Err(BadServer::OtherVerifier),
            },
            Secret::Password(_) if iterations > MAX_ITERATIONS => {
                return Err(BadServer::TooManyIterations);
            }
            Secret::Password(password) => {
                derived = Verifier::derive_both(password.text(), &salt, iterations)?;
                (&derived.0, &derived.1)
            }
        };
        let mut binding = self.binding.header().to_vec();
        if let Binding::EndPoint(digest) = &self.binding {
            binding.extend(digest);
        }
        let mut message = format!("c={},r=", STANDARD.encode(binding)).into_bytes();
        message.extend(nonce);
        let auth_message = [&self.bare(), challenge, &message].join(&b',');
        let signature = hmac(&verifier.stored_key[..], &[&auth_message])?;
        let proof = xor(client_key, &signature);
        message.extend(format!(",p={}", STANDARD.encode(&proof[..])).into_bytes());
        let expected = hmac(&verifier.server_key[..], &[&auth_message])?;
        Ok((message, Expected(expected)))
    }
}

/// Nonce, salt and iterations of a server-first-message.
fn read_challenge(challenge: &[u8]) -> Result<(&[u8], Vec<u8>, u32), BadServer> {
    let malformed = |what| Err(BadServer::Malformed(what));
    let Some((nonce, Some(rest))) = attribute(challenge, b'r') else {
        return malformed("no nonce");
    };
    if !is_nonce(nonce) {
        return malformed("a nonce that is not printable");
    }
    let Some((salt, Some(rest))) = attribute(rest, b's') else {
        return malformed("no salt");
    };
    let Ok(salt) = STANDARD.decode(salt) else {
        return malformed("a salt that is none");
    };
    let Some((iterations, _)) = attribute(rest, b'i') else {
        return malformed("no iterations");
    };
    let is_number = iterations.iter().all(u8::is_ascii_digit);
    let iterations = std::str::from_utf8(iterations).ok().filter(|_| is_number);
    match iterations.and_then(|number| number.parse().ok()) {
        Some(iterations) if iterations > 0 => Ok((nonce, salt, iterations)),
        _ => malformed("iterations that are no number"),
    }
}

/// What a server has to show.
pub(crate) struct Expected(pub(super) Key);

impl Expected {
    /// Looks at a server-final-message.
    ///
    /// # Errors
    /// The server does not know the verifier.
    pub(crate) fn check(&self, message: &[u8]) -> Result<(), BadServer> {
        let Some((signature, _)) = attribute(message, b'v') else {
            return Err(BadServer::Malformed("no signature"));
        };
        match decode_digest(signature) {
            Some(signature) if memcmp::eq(&signature[..], &self.0[..]) => Ok(()),
            _ => Err(BadServer::WrongSignature),
        }
    }
}
