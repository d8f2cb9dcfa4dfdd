//! The server's side of an exchange, towards a client.
//!
//! `Offer` → the client's choice and its first message → `Begun` → the challenge →
//! `Challenged` → the client's final message → `Answered`, which a verifier judges.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{
    BOUND_HEADER, DIGEST_BYTES, Key, LibraryFailed, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, Verifier,
    attribute, decode_digest, draw_nonce, hmac, is_nonce, xor,
};
use crate::message::{put_cstr, split_cstr};

/// What is wrong with a client's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadClient {
    /// It is not what RFC 5802 says.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// It wants what is optional and not there.
    #[error("{0}")]
    Unsupported(&'static str),
    /// It has chosen another mechanism than those offered, or knows of none.
    #[error("not one of the mechanisms that were offered")]
    OtherMechanism,
    /// It could bind the channel and has not been offered to, which it was.
    #[error("channel binding was offered, and the client has not seen that")]
    Downgraded,
    /// It has met another certificate.
    #[error("the channel is bound to another certificate")]
    OtherCertificate,
    /// See [`LibraryFailed`].
    #[error(transparent)]
    Library(#[from] LibraryFailed),
}

/// The mechanisms that a client is offered.
pub(crate) struct Offer {
    /// What it can bind to: the digest of the certificate that it has been shown.
    end_point: Option<Vec<u8>>,
}

impl Offer {
    /// With channel binding, where there is an `end_point` to bind to.
    #[must_use]
    pub(crate) fn new(end_point: Option<Vec<u8>>) -> Self {
        Self { end_point }
    }

    /// The list of an AuthenticationSASL.
    #[must_use]
    pub(crate) fn mechanisms(&self) -> Vec<u8> {
        let mut list = Vec::new();
        if self.end_point.is_some() {
            put_cstr(&mut list, SCRAM_SHA_256_PLUS.as_bytes());
        }
        put_cstr(&mut list, SCRAM_SHA_256.as_bytes());
        list.push(0);
        list
    }

    /// Reads a SASLInitialResponse.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn begin(self, response: &[u8]) -> Result<Begun, BadClient> {
        let malformed = |what| Err(BadClient::Malformed(what));
        let Some((mechanism, rest)) = split_cstr(response) else {
            return malformed("no name of a mechanism");
        };
        let binds = match self.end_point {
            Some(_) if mechanism == SCRAM_SHA_256_PLUS.as_bytes() => true,
            _ if mechanism == SCRAM_SHA_256.as_bytes() => false,
            _ => return Err(BadClient::OtherMechanism),
        };
        let Some((length, message)) = rest.split_first_chunk::<4>() else {
            return malformed("no length");
        };
        if usize::try_from(i32::from_be_bytes(*length)) != Ok(message.len()) {
            return malformed("its length is not the one it says");
        }
        if message.contains(&0) {
            return malformed("a zero byte");
        }
        let mut parts = message.splitn(3, |&byte| byte == b',');
        let (Some(flag), Some(identity), Some(bare)) = (parts.next(), parts.next(), parts.next())
        else {
            return malformed("no gs2 header");
        };
        match (flag, binds) {
            (b"n", false) => {}
            (b"y", false) if self.end_point.is_some() => return Err(BadClient::Downgraded),
            (b"y", false) => {}
            (b"p=tls-server-end-point", true) => {}
            (b"n" | b"y", true) => return malformed("channel binding chosen and not used"),
            (_, true) if flag.starts_with(b"p=") => {
                return malformed("an unknown type of channel binding");
            }
            _ => return malformed("an unexpected gs2 flag"),
        }
        match identity {
            b"" => {}
            _ if identity.starts_with(b"a=") => {
                let what = "an authorization identity in SCRAM is not supported";
                return Err(BadClient::Unsupported(what));
            }
            _ => return malformed("an unexpected gs2 header"),
        }
        let header_bytes = message.len() - bare.len();
        let mut binding = message.get(..header_bytes).unwrap_or_default().to_vec();
        if binds {
            debug_assert_eq!(binding, BOUND_HEADER);
            binding.extend(self.end_point.unwrap_or_default());
        }
        Ok(Begun {
            nonce: client_nonce(bare)?.to_vec(),
            bare: bare.to_vec(),
            binding: STANDARD.encode(binding).into_bytes(),
            binds,
        })
    }
}

/// The nonce of a client-first-message-bare, whose other parts are checked as well.
fn client_nonce(bare: &[u8]) -> Result<&[u8], BadClient> {
    let malformed = |what| Err(BadClient::Malformed(what));
    if bare.starts_with(b"m=") {
        let what = "a mandatory SCRAM extension is not supported";
        return Err(BadClient::Unsupported(what));
    }
    // The name is the startup packet's, whatever stands here.
    let Some((_, Some(rest))) = attribute(bare, b'n') else {
        return malformed("no user name");
    };
    let Some((nonce, mut rest)) = attribute(rest, b'r') else {
        return malformed("no nonce");
    };
    if !is_nonce(nonce) {
        return malformed("a nonce that is not printable");
    }
    while let Some(extension) = rest {
        rest = skip_extension(extension)?;
    }
    Ok(nonce)
}

/// What follows an attribute that is not known.
fn skip_extension(text: &[u8]) -> Result<Option<&[u8]>, BadClient> {
    let name = text.first().filter(|name| name.is_ascii_alphabetic());
    let found = name.and_then(|&name| attribute(text, name));
    found
        .map(|(_, rest)| rest)
        .ok_or(BadClient::Malformed("an extension without name or value"))
}

/// A client has sent its first message.
pub(crate) struct Begun {
    nonce: Vec<u8>,
    bare: Vec<u8>,
    /// What its final message has to begin with, in base64.
    binding: Vec<u8>,
    binds: bool,
}

impl Begun {
    /// What the client has to answer.
    ///
    /// # Errors
    /// [`LibraryFailed`].
    pub(crate) fn challenge(
        self,
        salt: &[u8],
        iterations: u32,
    ) -> Result<Challenged, LibraryFailed> {
        let mut nonce = self.nonce;
        nonce.extend(draw_nonce()?.into_bytes());
        let mut message = b"r=".to_vec();
        message.extend(&nonce);
        message.extend(format!(",s={},i={iterations}", STANDARD.encode(salt)).into_bytes());
        Ok(Challenged {
            nonce,
            bare: self.bare,
            message,
            binding: self.binding,
            binds: self.binds,
        })
    }
}

/// A client is to prove that it knows its password.
pub(crate) struct Challenged {
    nonce: Vec<u8>,
    bare: Vec<u8>,
    message: Vec<u8>,
    binding: Vec<u8>,
    binds: bool,
}

impl Challenged {
    /// The server-first-message.
    #[must_use]
    pub(crate) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Reads a client-final-message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn answered(self, message: &[u8]) -> Result<Answered, BadClient> {
        let malformed = |what| Err(BadClient::Malformed(what));
        if message.contains(&0) {
            return malformed("a zero byte");
        }
        let Some((binding, Some(rest))) = attribute(message, b'c') else {
            return malformed("no channel binding");
        };
        match binding == self.binding {
            true => {}
            false if self.binds => return Err(BadClient::OtherCertificate),
            false => return malformed("unexpected channel binding"),
        }
        let Some((nonce, Some(mut rest))) = attribute(rest, b'r') else {
            return malformed("no nonce");
        };
        if nonce != self.nonce {
            return malformed("another nonce");
        }
        let proof = loop {
            if let Some((proof, after)) = attribute(rest, b'p') {
                if after.is_some() {
                    return malformed("bytes behind its proof");
                }
                break proof;
            }
            match skip_extension(rest)? {
                Some(after) => rest = after,
                None => return malformed("no proof"),
            }
        };
        let Some(proof) = decode_digest(proof) else {
            return malformed("a proof that is none");
        };
        let without_proof = message.len() - rest.len() - 1;
        let auth_message = [
            &self.bare,
            &self.message,
            message.get(..without_proof).unwrap_or_default(),
        ];
        Ok(Answered {
            auth_message: auth_message.join(&b','),
            proof,
        })
    }
}

/// A client has sent its proof.
pub(crate) struct Answered {
    pub(super) auth_message: Vec<u8>,
    pub(super) proof: Key,
}

/// The proof may be right.
impl fmt::Debug for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answered")
    }
}

impl Answered {
    /// The ClientKey and the server-final-message, where the proof is right.
    ///
    /// # Errors
    /// [`LibraryFailed`].
    pub(crate) fn check(
        &self,
        verifier: &Verifier,
    ) -> Result<Option<(Key, Vec<u8>)>, LibraryFailed> {
        let auth_message: &[u8] = &self.auth_message;
        let stored_key: &[u8; DIGEST_BYTES] = &verifier.stored_key;
        let signature = hmac(stored_key, &[auth_message])?;
        let client_key = xor(&self.proof, &signature);
        if !verifier.is_of(&client_key) {
            return Ok(None);
        }
        let signature = hmac(&verifier.server_key[..], &[auth_message])?;
        let message = format!("v={}", STANDARD.encode(&signature[..]));
        Ok(Some((client_key, message.into_bytes())))
    }
}
