//! How a pod is set up.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// How clients log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auth {
    /// Whoever comes is let in.
    #[default]
    Trust,
    /// Cleartext password.
    Password,
    /// SCRAM-SHA-256.
    ScramSha256,
}

impl std::str::FromStr for Auth {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "trust" => Ok(Self::Trust),
            "password" => Ok(Self::Password),
            "scram-sha-256" => Ok(Self::ScramSha256),
            _ => Err(format!(
                "unknown login \"{name}\": expected trust, password or scram-sha-256"
            )),
        }
    }
}

/// CockroachDB's default of `sql.session_transfer.max_session_size`.
pub(crate) const DEFAULT_MAX_STATE_BYTES: usize = 16 * 1024;

/// Everything a pod is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// What `sqlpod_name()` answers.
    pub name: String,
    /// `host:port`; port 0 picks a free one.
    pub listen: String,
    /// The tenant's SQLite file, shared by its pods; made if missing.
    pub database: PathBuf,
    /// How clients without a token log in.
    pub auth: Auth,
    /// User to password; `Trust` asks for neither. `root` has password `root`
    /// unless told otherwise.
    pub users: BTreeMap<String, String>,
    /// Whether there are revival tokens; a plain cluster has none.
    pub tokens: bool,
    /// Largest session state given out, in bytes.
    pub max_state_size: usize,
    /// Whether a restore reports changed settings by ParameterStatus.
    /// CockroachDB does not.
    pub report_restored: bool,
    /// `server_version` as clients see it.
    pub server_version: String,
    /// What clients that ask for TLS are shown; without it they are refused.
    /// Clients without TLS are let in all the same.
    pub tls: Option<Tls>,
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate with its chain.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

impl Config {
    /// A pod on a free local port, trusting everyone.
    #[must_use]
    pub fn new(name: &str, database: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            database: database.into(),
            auth: Auth::Trust,
            users: BTreeMap::from([("root".to_owned(), "root".to_owned())]),
            tokens: true,
            max_state_size: DEFAULT_MAX_STATE_BYTES,
            report_restored: false,
            server_version: crate::settings::SERVER_VERSION.to_owned(),
            tls: None,
        }
    }

    /// Sets the address to listen on.
    #[must_use]
    pub fn listen(self, address: &str) -> Self {
        Self {
            listen: address.to_owned(),
            ..self
        }
    }

    /// Sets how clients log in.
    #[must_use]
    pub fn auth(self, auth: Auth) -> Self {
        Self { auth, ..self }
    }

    /// Lets clients speak TLS.
    #[must_use]
    pub fn tls(self, cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        let tls = Some(Tls {
            cert_file: cert_file.into(),
            key_file: key_file.into(),
        });
        Self { tls, ..self }
    }

    /// Adds a user.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.insert(name.to_owned(), password.to_owned());
        self
    }
}
