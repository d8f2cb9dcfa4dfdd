//! A file of users with what is known of their passwords, in pgbouncer's format (`[login]`
//! `auth_file`).
//!
//! A line is `"user" "password"`; two double quotes stand for one, what follows on the
//! line is not looked at, and a line that begins with a semicolon is a comment (pgbouncer
//! documentation, "Authentication file format").  In the place of the password may stand
//! its SCRAM-SHA-256 verifier.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::passfile::read_secrets;
use crate::scram::{BadCredential, Credential};
use crate::tls::BadFile;

/// All users of a file.
pub(crate) struct Userlist {
    /// `None`: the file has no password for it.
    users: HashMap<String, Option<Credential>>,
    iterations: Option<u32>,
}

/// Without what is secret.
impl fmt::Debug for Userlist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Userlist({} users)", self.users.len())
    }
}

impl Userlist {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, others may read it, or a line of it cannot be used.
    pub(crate) fn load(file: &Path) -> Result<Self, BadFile> {
        let text = read_secrets(file)?;
        let mut users = HashMap::new();
        let mut iterations: HashMap<u32, usize> = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let bad = |what: &dyn fmt::Display| {
                BadFile::new(file, format!("line {}: {what}", number + 1))
            };
            let line = line.trim_start();
            if line.is_empty() || line.starts_with(';') {
                continue;
            }
            let (user, password) =
                read_line(line).ok_or_else(|| bad(&"expected \"user\" \"password\""))?;
            let credential = match Credential::parse(&password) {
                Ok(credential) => Some(credential),
                Err(BadCredential::Empty) => None,
                Err(error) => {
                    let ways = "expected a SCRAM-SHA-256 verifier or the password";
                    return Err(bad(&format_args!("{error}: {ways}")));
                }
            };
            if let Some(Credential::Verifier(verifier)) = &credential {
                *iterations.entry(verifier.iterations).or_default() += 1;
            }
            if users.insert(user.clone(), credential).is_some() {
                return Err(bad(&format_args!("user {user:?} is there twice")));
            }
        }
        let most = iterations
            .into_iter()
            .max_by_key(|(iterations, count)| (*count, *iterations));
        Ok(Self {
            users,
            iterations: most.map(|(iterations, _)| iterations),
        })
    }

    /// What is known of a user's password.
    #[must_use]
    pub(crate) fn find(&self, user: &[u8]) -> Option<Credential> {
        let user = std::str::from_utf8(user).ok()?;
        self.users.get(user)?.clone()
    }

    /// The iterations that most of its verifiers have.
    #[must_use]
    pub(crate) const fn iterations(&self) -> Option<u32> {
        self.iterations
    }
}

fn read_line(line: &str) -> Option<(String, Zeroizing<String>)> {
    let (user, rest) = read_field(line)?;
    let (password, _) = read_field(rest.trim_start())?;
    Some((user.to_string(), password))
}

/// A field without its quotes, and what follows it.
fn read_field(text: &str) -> Option<(Zeroizing<String>, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = Zeroizing::new(String::with_capacity(rest.len()));
    loop {
        let (piece, after) = rest.split_once('"')?;
        value.push_str(piece);
        match after.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test says that something is wrong by panicking"
)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use postgres_protocol::password::scram_sha_256;

    use super::*;

    fn load(text: &str, mode: u32) -> Result<Userlist, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        let path = file.path().display().to_string();
        Userlist::load(file.path()).map_err(|error| error.to_string().replace(&path, "FILE"))
    }

    #[test]
    fn users_with_passwords_and_verifiers() {
        let verifier = scram_sha_256(b"pencil");
        let text = format!(
            "; a comment\n\n\"maria\" \"{verifier}\"\n  \"an\"\"na\"\t\"se\"\"cret\" \"ignored\"\n\
             \"nobody\" \"\"\n\"ä\" \"md5 is part of it\" ; ignored\n"
        );
        let list = load(&text, 0o600).unwrap();
        assert_eq!(
            list.find(b"maria"),
            Some(Credential::parse(&verifier).unwrap())
        );
        assert_eq!(
            list.find(b"an\"na"),
            Some(Credential::parse("se\"cret").unwrap())
        );
        let password = Credential::parse("md5 is part of it").unwrap();
        assert_eq!(list.find("ä".as_bytes()), Some(password));
        for unknown in [&b"nobody"[..], b"else", b"Maria", b"\xff"] {
            assert_eq!(list.find(unknown), None);
        }
        assert_eq!(list.iterations(), Some(4096));
        assert_eq!(format!("{list:?}"), "Userlist(4 users)");
        assert_eq!(load("", 0o400).unwrap().iterations(), None);
    }

    #[test]
    fn a_bad_line_is_named_without_its_text() {
        let md5 = "md5c4ca4238a0b923820dcc509a6f75849b";
        let ways = "expected a SCRAM-SHA-256 verifier or the password";
        for (line, expected) in [
            ("maria secret", "expected \"user\" \"password\"".to_owned()),
            ("\"maria", "expected \"user\" \"password\"".to_owned()),
            ("\"maria\"", "expected \"user\" \"password\"".to_owned()),
            (
                "\"maria\" \"secret",
                "expected \"user\" \"password\"".to_owned(),
            ),
            (
                &format!("\"maria\" \"{md5}\""),
                format!("an md5 hash cannot be used with SCRAM: {ways}"),
            ),
            (
                "\"maria\" \"SCRAM-SHA-256$4096:secret\"",
                format!("the SCRAM-SHA-256 verifier is malformed: {ways}"),
            ),
            (
                "\"anna\" \"secret\"",
                "user \"anna\" is there twice".to_owned(),
            ),
        ] {
            let bad = load(&format!("\"anna\" \"x\"\n{line}\n"), 0o600).unwrap_err();
            assert_eq!(bad, format!("FILE: line 2: {expected}"));
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let bad = load("\"maria\" \"secret\"\n", 0o644).unwrap_err();
        let expected = "FILE: others may read it (mode 0644): it holds passwords, set mode 0600";
        assert_eq!(bad, expected);
    }
}
