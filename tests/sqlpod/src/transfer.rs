//! A session's state as text, and the token that lets it in elsewhere.
//!
//! Both are CockroachDB's ideas with an encoding of our own: JSON for the
//! state; for the token JSON with an Ed25519 signature before it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer, SigningKey, Verifier};
use serde::{Deserialize, Serialize};

use crate::error::PgError;

/// How long a token lets its user in; CockroachDB's figure.
const TOKEN_LIFE_SECS: u64 = 600;
const ALGORITHM: &str = "Ed25519";
const SIGNATURE_BYTES: usize = 64;

/// What a session takes along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) session_user: String,
    pub(crate) current_user: String,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) statements: Vec<SavedStatement>,
}

/// One named prepared statement, in the client's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedStatement {
    pub(crate) name: String,
    pub(crate) sql: String,
    /// OIDs of its parameters.
    pub(crate) types: Vec<u32>,
}

impl Snapshot {
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// # Errors
    /// 22023 with CockroachDB's words.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, PgError> {
        serde_json::from_slice(bytes).map_err(|error| {
            let reason = if error.is_eof() {
                "unexpected EOF".to_owned()
            } else {
                error.to_string()
            };
            PgError::new("22023", format!("error deserializing session: {reason}"))
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    user: String,
    algorithm: String,
    /// Seconds since 1970.
    issued: u64,
    expires: u64,
}

/// A token for this user, good for ten minutes from `now`.
pub(crate) fn issue_token(key: &SigningKey, user: &str, now: SystemTime) -> Vec<u8> {
    let issued = seconds(now);
    let (user, algorithm) = (user.to_owned(), ALGORITHM.to_owned());
    let claims = Claims {
        user,
        algorithm,
        issued,
        expires: issued + TOKEN_LIFE_SECS,
    };
    let payload = serde_json::to_vec(&claims).unwrap_or_default();
    [&key.sign(&payload).to_bytes()[..], &payload].concat()
}

/// Lets the user in, or says why not.
///
/// # Errors
/// FATAL 28000.
pub(crate) fn verify_token(
    key: &SigningKey,
    token_base64: &str,
    user: &str,
    now: SystemTime,
) -> Result<(), PgError> {
    let refuse =
        |why: &str| PgError::fatal("28000", format!("invalid session revival token: {why}"));
    let token = BASE64
        .decode(token_base64)
        .map_err(|_| refuse("not base64"))?;
    let (signature, payload) = token
        .split_at_checked(SIGNATURE_BYTES)
        .ok_or_else(|| refuse("too short"))?;
    let signature = Signature::from_slice(signature).map_err(|_| refuse("bad signature"))?;
    key.verifying_key()
        .verify(payload, &signature)
        .map_err(|_| refuse("bad signature"))?;
    let claims: Claims = serde_json::from_slice(payload).map_err(|_| refuse("bad payload"))?;
    let now = seconds(now);
    match claims {
        claims if claims.algorithm != ALGORITHM => Err(refuse("unknown algorithm")),
        claims if claims.user != user => Err(refuse("issued for another user")),
        claims if now < claims.issued => Err(refuse("not valid yet")),
        claims if now >= claims.expires => Err(refuse("expired")),
        _ => Ok(()),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A size as Go's `humanize.IBytes` writes it, which is what CockroachDB's
/// refusal shows: below ten of a unit with one decimal.
pub(crate) fn human_size(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut unit = 1_usize;
    let mut names = UNITS.iter();
    let mut name = names.next();
    while bytes / unit >= 1024 {
        unit *= 1024;
        name = names.next();
    }
    let tenths = (bytes * 10 + unit / 2) / unit;
    let name = name.unwrap_or(&"TiB");
    if tenths < 100 {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        // The one-decimal figure is rounded once more, half to even.
        let even = tenths % 10 == 5 && (tenths / 10).is_multiple_of(2);
        format!(
            "{} {name}",
            if even { tenths / 10 } else { (tenths + 5) / 10 }
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use std::time::Duration;

    use super::*;

    #[test]
    fn sizes_read_as_in_go() {
        let cases = [
            (9, "9 B"),
            (512, "512 B"),
            (2048, "2.0 KiB"),
            (5120, "5.0 KiB"),
            (1100, "1.1 KiB"),
            (10_240, "10 KiB"),
            (16_384, "16 KiB"),
            (1_048_576, "1.0 MiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(human_size(bytes), expected);
        }
    }

    #[test]
    fn a_token_is_for_its_user_and_ten_minutes() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let now = SystemTime::now();
        let token = BASE64.encode(issue_token(&key, "alice", now));
        let later = |secs| now + Duration::from_secs(secs);
        assert_eq!(verify_token(&key, &token, "alice", now), Ok(()));
        assert_eq!(verify_token(&key, &token, "alice", later(599)), Ok(()));
        let refused = |user, time, key: &SigningKey, token: &str| {
            verify_token(key, token, user, time).unwrap_err().message
        };
        let other = SigningKey::from_bytes(&[8; 32]);
        assert!(refused("alice", later(600), &key, &token).ends_with("expired"));
        assert!(refused("bob", now, &key, &token).ends_with("issued for another user"));
        assert!(refused("alice", now, &other, &token).ends_with("bad signature"));
        assert!(refused("alice", now, &key, "AAAA").ends_with("too short"));
        let mut forged = BASE64.decode(&token).unwrap();
        *forged.last_mut().unwrap() ^= 1;
        assert!(refused("alice", now, &key, &BASE64.encode(forged)).ends_with("bad signature"));
    }

    #[test]
    fn a_cut_state_is_an_unexpected_end() {
        let snapshot = Snapshot {
            session_user: "alice".to_owned(),
            current_user: "alice".to_owned(),
            settings: BTreeMap::new(),
            statements: Vec::new(),
        };
        let bytes = snapshot.encode();
        assert_eq!(Snapshot::decode(&bytes), Ok(snapshot));
        let error = Snapshot::decode(bytes.get(..bytes.len() - 3).unwrap()).unwrap_err();
        assert_eq!(error.code, "22023");
        assert_eq!(error.message, "error deserializing session: unexpected EOF");
    }
}
