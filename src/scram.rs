//! SCRAM-SHA-256 (RFC 5802, RFC 7677): the messages and keys of both of its sides.
//!
//! The proxy is the server towards a client ([`Offer`]) and a client towards a server
//! ([`ClientExchange`]).  From a client's proof it learns the ClientKey, by which it can
//! give proofs itself wherever the same verifier is held, without knowing the password.
//!
//! No I/O, and no arithmetic but the one XOR of RFC 5802: digests, HMAC and PBKDF2 are
//! OpenSSL's.  Each step consumes its state.  Invariants: what a peer sent is never
//! indexed; keys and passwords are wiped when they are dropped and shown to nobody.

mod client;
mod server;
mod verifier;

use std::ops::{Deref, DerefMut};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::error::ErrorStack;
use openssl::md::Md;
use openssl::md_ctx::MdCtx;
use openssl::memcmp;
use openssl::pkey::PKey;
use zeroize::{Zeroize, Zeroizing};

pub(crate) use client::{BadServer, Binding, ClientExchange, Expected, Secret};
pub(crate) use postgres_protocol::authentication::sasl::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS};
pub(crate) use server::{BadClient, Offer};
pub(crate) use verifier::{
    BadCredential, Credential, DEFAULT_ITERATIONS, Password, SALT_BYTES, Verifier,
};

/// Of SHA-256.
const DIGEST_BYTES: usize = 32;

/// Random bytes of a nonce: PostgreSQL's own number (scram-common.h,
/// `SCRAM_RAW_NONCE_LEN`).
const NONCE_BYTES: usize = 18;

/// A digest, a signature or a key.  It stays where it is made, however its owner is moved,
/// and is wiped there.
#[derive(Default)]
pub(crate) struct Key(Box<[u8; DIGEST_BYTES]>);

impl Deref for Key {
    type Target = [u8; DIGEST_BYTES];
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Key {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        memcmp::eq(&self[..], &other[..])
    }
}

impl Eq for Key {}

/// What stands in front of a binding to the TLS server's certificate (RFC 5929), between
/// the gs2 flag and the authorization identity, which is empty.
const BOUND_HEADER: &[u8] = b"p=tls-server-end-point,,";

/// OpenSSL did not do what it always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the TLS library failed")]
pub(crate) struct LibraryFailed;

impl From<ErrorStack> for LibraryFailed {
    fn from(_: ErrorStack) -> Self {
        Self
    }
}

/// HMAC-SHA-256 of `parts`, one behind the other.
pub(crate) fn hmac(key: &[u8], parts: &[&[u8]]) -> Result<Key, LibraryFailed> {
    let mut digest = Key::default();
    let key = PKey::hmac(key)?;
    let mut context = MdCtx::new()?;
    context.digest_sign_init(Some(Md::sha256()), &key)?;
    for part in parts {
        context.digest_sign_update(part)?;
    }
    match context.digest_sign_final(Some(&mut digest[..]))? {
        DIGEST_BYTES => Ok(digest),
        _ => Err(LibraryFailed),
    }
}

/// ClientProof from ClientKey and ClientSignature, and back.
fn xor(a: &[u8; DIGEST_BYTES], b: &[u8; DIGEST_BYTES]) -> Key {
    let mut result = Key::default();
    for (result, (a, b)) in result.iter_mut().zip(a.iter().zip(b)) {
        *result = a ^ b;
    }
    result
}

/// A nonce that nobody can guess, printable.
fn draw_nonce() -> Result<String, LibraryFailed> {
    let mut bytes = [0; NONCE_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| LibraryFailed)?;
    Ok(STANDARD.encode(bytes))
}

/// The value of the attribute `name` at the start of `text`, and what follows its comma.
fn attribute(text: &[u8], name: u8) -> Option<(&[u8], Option<&[u8]>)> {
    let (&found, rest) = text.split_first()?;
    let rest = rest.strip_prefix(b"=")?;
    if found != name {
        return None;
    }
    Some(match rest.iter().position(|&byte| byte == b',') {
        Some(comma) => (rest.get(..comma)?, rest.get(comma + 1..)),
        None => (rest, None),
    })
}

/// Whether a nonce is what RFC 5802 lets it be: printable ASCII without a comma.
fn is_nonce(text: &[u8]) -> bool {
    let is_printable = |byte: &u8| byte.is_ascii_graphic() && *byte != b',';
    !text.is_empty() && text.iter().all(is_printable)
}

/// A digest in base64.
fn decode_digest(text: &[u8]) -> Option<Key> {
    let decoded = Zeroizing::new(STANDARD.decode(text).ok()?);
    let mut digest = Key::default();
    if decoded.len() != DIGEST_BYTES {
        return None;
    }
    digest.copy_from_slice(&decoded);
    Some(digest)
}

/// A password as SASLprep makes it (RFC 4013); one that it does not take as it stands,
/// as PostgreSQL does.
fn prepare(password: &str) -> Zeroizing<String> {
    Zeroizing::new(match stringprep::saslprep(password) {
        Ok(prepared) => prepared.into_owned(),
        Err(_) => password.to_owned(),
    })
}

#[cfg(test)]
mod tests;
