//! Password logins, from the server's side: cleartext and SCRAM-SHA-256.
//!
//! RFC 5802 and 7677 name every value here; channel binding is not offered.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::error::PgError;

/// PostgreSQL's own count (`scram_iterations`).
const ITERATIONS: u32 = 4096;
const NONCE_BYTES: usize = 18;
const SALT_BYTES: usize = 16;

/// Where a user's password stands; the keys are derived at the first login.
#[derive(Debug)]
pub(crate) struct Secret {
    password: String,
    keys: OnceLock<Keys>,
}

#[derive(Debug)]
struct Keys {
    salt: [u8; SALT_BYTES],
    stored: [u8; 32],
    server: [u8; 32],
}

impl Secret {
    pub(crate) fn new(password: &str) -> Self {
        Self {
            password: password.to_owned(),
            keys: OnceLock::new(),
        }
    }

    pub(crate) fn matches(&self, password: &str) -> bool {
        self.password == password
    }

    fn keys(&self) -> &Keys {
        self.keys.get_or_init(|| {
            let salt = random();
            let mut salted = [0; 32];
            pbkdf2::pbkdf2_hmac::<Sha256>(self.password.as_bytes(), &salt, ITERATIONS, &mut salted);
            let stored = Sha256::digest(hmac(&salted, b"Client Key")).into();
            Keys {
                salt,
                stored,
                server: hmac(&salted, b"Server Key"),
            }
        })
    }
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without randomness there is no secret worth having: end loudly.
    #[allow(
        clippy::expect_used,
        reason = "the system's generator does not fail on Linux"
    )]
    getrandom::fill(&mut bytes).expect("random bytes from the system");
    bytes
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    #[allow(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC key");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// The server's side after its first message.
#[derive(Debug)]
pub(crate) struct Scram<'s> {
    keys: &'s Keys,
    /// `n,,` or `y,,` as the client sent it.
    gs2: String,
    nonce: String,
    /// client-first-bare, a comma, server-first.
    exchange: String,
}

impl<'s> Scram<'s> {
    /// Takes client-first; gives server-first along.
    ///
    /// # Errors
    /// 08P01 for a malformed message or one that asks for channel binding.
    pub(crate) fn begin(secret: &'s Secret, first: &str) -> Result<(Self, String), PgError> {
        let malformed = || PgError::protocol("malformed SCRAM message");
        let mut parts = first.splitn(3, ',');
        let (Some(flag @ ("n" | "y")), Some(authzid), Some(bare)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        let client = bare.split(',').find_map(|part| part.strip_prefix("r="));
        let server = BASE64.encode(random::<NONCE_BYTES>());
        let nonce = format!("{}{server}", client.ok_or_else(malformed)?);
        let keys = secret.keys();
        let answer = format!("r={nonce},s={},i={ITERATIONS}", BASE64.encode(keys.salt));
        let exchange = format!("{bare},{answer}");
        Ok((
            Self {
                keys,
                gs2: format!("{flag},{authzid},"),
                nonce,
                exchange,
            },
            answer,
        ))
    }

    /// Takes client-final; gives server-final, or `None` for a wrong password.
    ///
    /// # Errors
    /// 08P01 for a malformed message.
    pub(crate) fn finish(self, last: &str) -> Result<Option<String>, PgError> {
        let malformed = || PgError::protocol("malformed SCRAM message");
        let (without_proof, proof) = last.rsplit_once(",p=").ok_or_else(malformed)?;
        let expected = format!("c={},r={}", BASE64.encode(&self.gs2), self.nonce);
        if without_proof != expected {
            return Err(malformed());
        }
        let proof = BASE64.decode(proof).map_err(|_| malformed())?;
        let message = format!("{},{without_proof}", self.exchange);
        let signature = hmac(&self.keys.stored, message.as_bytes());
        let key: Vec<u8> = proof.iter().zip(signature).map(|(a, b)| a ^ b).collect();
        if proof.len() != signature.len() || Sha256::digest(key).as_slice() != self.keys.stored {
            return Ok(None);
        }
        let verifier = hmac(&self.keys.server, message.as_bytes());
        Ok(Some(format!("v={}", BASE64.encode(verifier))))
    }
}
