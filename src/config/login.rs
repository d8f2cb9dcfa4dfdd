//! `[login]`.

use std::path::PathBuf;

use super::ConfigError;
use super::reader::Section;
use crate::dialect::{Dialect, LoginMethod};
use crate::tls::{ServerTls, SslMode};

const METHODS: [(&str, LoginMethod); 4] = [
    ("trust", LoginMethod::Trust),
    ("cert", LoginMethod::Cert),
    ("passfile", LoginMethod::Passfile),
    ("scram", LoginMethod::Scram),
];

const KEYS: [&str; 6] = [
    "method",
    "file",
    "auth_file",
    "auth_user",
    "auth_dbname",
    "auth_query",
];

/// The names are the catalog's, whatever the user's or the database's search_path is.
const DEFAULT_QUERY: &str = "\
    SELECT rolname, CASE WHEN rolvaliduntil OPERATOR(pg_catalog.<) pg_catalog.now() \
    THEN NULL ELSE rolpassword END FROM pg_catalog.pg_authid \
    WHERE rolname OPERATOR(pg_catalog.=) $1 AND rolcanlogin";
const DEFAULT_DATABASE: &str = "postgres";

/// `[login]`; absent: how every client logs in is between it and its server, and the proxy
/// logs in for nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// `method`: how the proxy logs in for a session it moves; `None`: sessions of
    /// PostgreSQL stay where they are.
    pub method: Option<LoginMethod>,
    /// `file`: passwords in libpq's format; with `method = "passfile"`, or for
    /// `auth_user`.
    pub passfile: Option<PathBuf>,
    /// With `method = "scram"` only, and always then.
    pub users: Option<UserSource>,
}

/// Where the proxy learns by what it can tell that clients are who they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserSource {
    /// `auth_file`: a file in pgbouncer's format.
    File(PathBuf),
    /// A query on a backend.
    Query(AuthQuery),
}

/// Who asks, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthQuery {
    /// `auth_user`: the proxy's own user.
    pub user: String,
    /// `auth_dbname`: its database.
    pub database: String,
    /// `auth_query`: a user's name is its `$1`; it gives a row of the same name and the
    /// user's password or verifier.
    pub text: String,
}

/// How the proxy logs in, and the files that it needs for it.
pub(super) fn read_login(
    root: &Section<'_>,
    dialect: Dialect,
    server_tls: &ServerTls,
) -> Result<Login, ConfigError> {
    let Some(section) = root.section("login", &KEYS)? else {
        return Ok(Login::default());
    };
    let method = section.choice("method", &METHODS)?.ok_or_else(|| {
        section.missing(
            "method",
            "how the proxy logs in: \"trust\", \"cert\", \"passfile\" or \"scram\"",
        )
    })?;
    let passfile = section.path("file")?;
    let users = read_users(&section)?;
    let error = |key, message| Err(section.error(key, message));
    match method {
        LoginMethod::Scram if dialect != Dialect::PostgreSql => {
            return error("method", "\"scram\" needs dialect = \"postgresql\"");
        }
        LoginMethod::Scram => match (&users, &passfile) {
            (None, _) => {
                return Err(section.missing(
                    "auth_file",
                    "the users' file, or auth_user and a query instead, which method = \
                     \"scram\" needs",
                ));
            }
            (Some(UserSource::File(_)), Some(_)) => {
                return error("file", "beside auth_file nobody needs a password of it");
            }
            _ => {}
        },
        _ if users.is_some() => {
            let is_there = |key: &&str| section.has(key);
            let key = ["auth_file", "auth_user"].into_iter().find(is_there);
            let message = "only method = \"scram\" asks clients who they are";
            return error(key.unwrap_or("auth_user"), message);
        }
        LoginMethod::Passfile if passfile.is_none() => {
            return Err(section.missing(
                "file",
                "the passwords' file, which method = \"passfile\" needs",
            ));
        }
        LoginMethod::Trust | LoginMethod::Cert if passfile.is_some() => {
            return error("file", "only method = \"passfile\" or \"scram\" reads one");
        }
        LoginMethod::Cert if server_tls.cert_file.is_none() => {
            let message = "\"cert\" needs the proxy's own certificate: cert_file and key_file in \
                           [server_tls]";
            return error("method", message);
        }
        LoginMethod::Cert if matches!(server_tls.sslmode, SslMode::Disable | SslMode::Prefer) => {
            let message = "\"cert\" needs TLS: sslmode = \"require\" or stricter in [server_tls]";
            return error("method", message);
        }
        LoginMethod::Trust | LoginMethod::Cert | LoginMethod::Passfile => {}
    }
    Ok(Login {
        method: Some(method),
        passfile,
        users,
    })
}

fn read_users(section: &Section<'_>) -> Result<Option<UserSource>, ConfigError> {
    let file = section.path("auth_file")?;
    let user = section.text("auth_user", "a user's name", is_name)?;
    let database = section.text("auth_dbname", "a database's name", is_name)?;
    let expected = "a query with $1, the user's name";
    let text = section.text("auth_query", expected, |text| text.contains("$1"))?;
    match (file, user) {
        (Some(_), Some(_)) => Err(section.error("auth_user", "auth_file is there as well")),
        (file, Some(user)) => {
            debug_assert_eq!(file, None);
            Ok(Some(UserSource::Query(AuthQuery {
                user,
                database: database.unwrap_or_else(|| DEFAULT_DATABASE.to_owned()),
                text: text.unwrap_or_else(|| DEFAULT_QUERY.to_owned()),
            })))
        }
        (file, None) => {
            for (key, is_there) in [
                ("auth_query", text.is_some()),
                ("auth_dbname", database.is_some()),
            ] {
                if is_there {
                    return Err(section.error(key, "expected auth_user beside it"));
                }
            }
            Ok(file.map(UserSource::File))
        }
    }
}

/// As it can stand in a startup packet.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}
