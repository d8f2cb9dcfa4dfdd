//! A file of passwords in libpq's format (`[login] method = "passfile"`).
//!
//! A line is `host:port:database:user:password`; each of the first four may be `*`, and
//! a backslash takes its meaning from a colon or a backslash.  The first line that fits
//! counts (PostgreSQL documentation, "The Password File").  As libpq does, a file that
//! others may read is refused.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::config::Address;
use crate::tls::BadFile;

/// One line.
struct Line {
    /// Host, port, database, user; `None`: any.
    fields: [Option<String>; 4],
    password: Zeroizing<String>,
}

/// All lines of a file.
pub(crate) struct Passfile {
    lines: Vec<Line>,
}

/// Without what is secret.
impl fmt::Debug for Passfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Passfile({} lines)", self.lines.len())
    }
}

impl Passfile {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, others may read it, or a line of it has not five fields.
    pub(crate) fn load(file: &Path) -> Result<Self, BadFile> {
        let text = read_secrets(file)?;
        let mut lines = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let what = || {
                format!(
                    "line {}: expected host:port:database:user:password",
                    number + 1
                )
            };
            lines.push(read_line(line).ok_or_else(|| BadFile::new(file, what()))?);
        }
        Ok(Self { lines })
    }

    /// The password for a login.
    #[must_use]
    pub(crate) fn find(&self, server: &Address, database: &[u8], user: &[u8]) -> Option<&str> {
        let port = server.port.to_string();
        let wanted = [server.host.as_bytes(), port.as_bytes(), database, user];
        let fits = |line: &&Line| {
            let mut pairs = line.fields.iter().zip(wanted);
            pairs.all(|(field, wanted)| {
                field
                    .as_ref()
                    .is_none_or(|field| field.as_bytes() == wanted)
            })
        };
        self.lines
            .iter()
            .find(fits)
            .map(|line| line.password.as_str())
    }
}

/// What is in a file of passwords.
///
/// # Errors
/// It cannot be read, or others may read it.
pub(crate) fn read_secrets(file: &Path) -> Result<Zeroizing<String>, BadFile> {
    let bad = |what: String| BadFile::new(file, what);
    let unreadable = |error: std::io::Error| bad(format!("cannot be read: {error}"));
    let found = fs::metadata(file).map_err(unreadable)?;
    if !found.is_file() {
        // A pipe would be waited for.
        return Err(bad("is no plain file".to_owned()));
    }
    let mode = found.permissions().mode();
    if mode & 0o077 != 0 {
        let mode = mode & 0o7777;
        return Err(bad(format!(
            "others may read it (mode {mode:04o}): it holds passwords, set mode 0600"
        )));
    }
    fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(unreadable)
}

fn read_line(line: &str) -> Option<Line> {
    let mut fields = [const { None }; 4];
    let mut rest = line;
    for field in &mut fields {
        let (value, after) = read_field(rest)?;
        // An escaped star is still one: libpq compares before it takes the escapes away.
        *field = (!rest.starts_with("*:")).then_some(value);
        rest = after;
    }
    let mut password = Zeroizing::new(String::with_capacity(rest.len()));
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => password.extend(chars.next()),
            c => password.push(c),
        }
    }
    Some(Line { fields, password })
}

/// A field without its escapes, and what follows its colon.
fn read_field(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            ':' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test says that something is wrong by panicking"
)]
mod tests {
    use std::io::Write;

    use super::*;

    fn load(text: &str, mode: u32) -> Result<Passfile, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        let path = file.path().display().to_string();
        Passfile::load(file.path()).map_err(|error| error.to_string().replace(&path, "FILE"))
    }

    fn address(host: &str) -> Address {
        Address {
            host: host.to_owned(),
            port: 5432,
        }
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let file = "# a comment\n\
                    db:5432:shop:maria:one\n\
                    db:*:*:maria:t\\:w\\\\o:\n\
                    fe80\\:\\:1:5432:*:*:three\n\
                    *:*:*:*:\n";
        let file = load(file, 0o600).unwrap();
        let find = |host, database: &str, user: &str| {
            file.find(&address(host), database.as_bytes(), user.as_bytes())
        };
        assert_eq!(find("db", "shop", "maria"), Some("one"));
        assert_eq!(find("db", "other", "maria"), Some("t:w\\o:"));
        assert_eq!(find("fe80::1", "shop", "anna"), Some("three"));
        assert_eq!(find("elsewhere", "shop", "anna"), Some(""));
        let none = load("db:5432:shop:maria:one\n", 0o400).unwrap();
        assert_eq!(none.find(&address("db"), b"shop", b"anna"), None);
        assert!(!format!("{none:?}").contains("one"));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let bad = load("db:5432:shop:maria:one\n", 0o640).unwrap_err();
        let expected = "FILE: others may read it (mode 0640): it holds passwords, set mode 0600";
        assert_eq!(bad, expected);
    }

    #[test]
    fn only_a_plain_file_is_read() {
        let directory = std::path::Path::new("/dev");
        let bad = Passfile::load(directory).unwrap_err().to_string();
        assert_eq!(bad, "/dev: is no plain file");
    }

    #[test]
    fn a_bad_line_is_named_without_its_text() {
        let bad = load("db:5432:shop:maria:one\ndb:secret\n", 0o600).unwrap_err();
        let expected = "FILE: line 2: expected host:port:database:user:password";
        assert_eq!(bad, expected);
    }
}
