//! What `proxy.conf` may say, as plain data.
//!
//! Role: the types that every other module takes its settings from, their
//! defaults and their ranges. `reader` turns TOML into checked values and words
//! the complaints. Invariant: a `Config` in hand has passed every check that can
//! be made without touching anything but the file itself. Non-goals: resolving
//! names, reading certificates, asking the machine for its limits.

mod address;
mod backends;
mod changes;
mod limits;
mod log;
mod login;
mod migration;
mod peers;
mod reader;
mod shutdown;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use self::log::read_log;
pub(crate) use self::log::{Log, LogFormat};
use crate::dialect::CustomNames;
pub(crate) use crate::dialect::Dialect;
pub(crate) use crate::tls::{ClientTls, ClientTlsMode, ServerTls, SslMode};
pub(crate) use address::Address;
use backends::read_backends;
pub(crate) use backends::{BackendConfig, BackendState};
pub(crate) use limits::Limits;
use limits::read_limits;
use login::read_login;
pub(crate) use login::{AuthQuery, Login, UserSource};
use migration::read_migration;
pub(crate) use migration::{Capture, Migration};
#[cfg(test)]
pub(crate) use peers::PeerConfig;
pub(crate) use peers::Peers;
use peers::read_peers;
use reader::{Reader, Section};
use shutdown::read_shutdown;
pub(crate) use shutdown::{OnShutdown, Shutdown};

/// Where the proxy listens when the file does not say: CockroachDB's SQL port.
const DEFAULT_LISTEN: (&str, u16) = ("127.0.0.1", 26257);
/// Sessions at once when the file does not say; below the some 16,200 at which
/// Linux's default `vm.max_map_count` ends (two threads of two maps each).
const DEFAULT_MAX_CONNECTIONS: usize = 5000;
/// More than one process can hold on any machine of today; guards the sums in
/// `limits` against nonsense.
const MAX_CONNECTIONS: u64 = 1_000_000;
const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// As long as keepalive takes to notice a silent peer.
const DEFAULT_TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);
/// What a prober of `/readyz` or a rolling restart notices in time.
const DEFAULT_HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// One lost packet, or one slow answer, says nothing yet.
const DEFAULT_HEALTH_FALL: usize = 3;
const MAX_HEALTH_FALL: u64 = 100;

/// The whole of `proxy.conf`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `listen`: one or more addresses for clients; port 0 picks a free one.
    pub listen: Vec<Address>,
    /// `admin_listen`: the address of the admin HTTP server; `None`: no such server.
    pub admin_listen: Option<Address>,
    /// `control_socket`: the path of the Unix socket for commands; `None`: none.
    pub control_socket: Option<PathBuf>,
    /// `max_connections`: sessions at once, 1 to 1,000,000.
    pub max_connections: usize,
    /// `handshake_timeout`: from accept to the first ReadyForQuery on both legs,
    /// 1 ms to 24 h.
    pub handshake_timeout: Duration,
    /// `connect_timeout`: one dial of a backend with TLS and startup, 1 ms to 24 h.
    pub connect_timeout: Duration,
    /// What SIGTERM does.
    pub shutdown: Shutdown,
    /// `reuse_port`: another process of the same user may listen on the same addresses,
    /// and takes over the control socket.
    pub reuse_port: bool,
    /// `tcp_user_timeout`: how long data sent to either peer may stay unacknowledged,
    /// or refused by its full window, until the connection counts as lost, 0 to
    /// 24 h; zero: as long as the kernel tries, some 15 minutes (tcp(7)).
    pub tcp_user_timeout: Duration,
    /// `health_interval`: between two looks at a backend, 0 to 24 h; zero: none is
    /// looked at, and a backend is up as the last dial for a client found it.
    pub health_interval: Duration,
    /// `health_fall`: failed dials in a row that mark a backend down, 1 to 100.
    pub health_fall: usize,
    /// `idle_timeout`: how long a session may be idle outside of a transaction, 0 (for
    /// ever) to 24 h.
    pub idle_timeout: Duration,
    /// `dialect`: which kind of server the backends are.
    pub dialect: Dialect,
    /// `[login]`; absent: clients and servers have their logins between them.
    pub login: Login,
    /// `custom_settings`: names of PostgreSQL's settings that no server lists,
    /// such as `app.tenant`.
    pub custom_settings: Vec<String>,
    /// `[client_tls]`; `None`: a client's request for TLS is answered with `N`.
    pub client_tls: Option<ClientTls>,
    /// `[server_tls]`; absent: `sslmode = "prefer"` and no files.
    pub server_tls: ServerTls,
    /// `[limits]`; absent: none.
    pub limits: Limits,
    /// `[log]`; absent: its defaults.
    pub log: Log,
    /// `[migration]`; absent: its defaults.
    pub migration: Migration,
    /// `peer_id`, `[[peer]]`.
    pub peers: Peers,
    /// `[[backend]]`, in the order of the file: at least one, names unique.
    pub backends: Vec<BackendConfig>,
}

/// Why a `proxy.conf` was refused: one line that names file, line, key and what
/// was expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Config {
    /// Reads and checks the file at `path`. Relative paths inside it are taken
    /// from its own directory.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or says something it may not.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|error| ConfigError(format!("{}: cannot be read: {error}", path.display())))?;
        Self::parse(path, &text)
    }

    /// Checks `text` as the contents of `path`; reads no file.
    ///
    /// # Errors
    /// `text` is not TOML or says something it may not.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let reader = Reader::new(path, text);
        let document = reader.document()?;
        let root = reader.root(
            &document,
            &[
                "listen",
                "admin_listen",
                "control_socket",
                "max_connections",
                "handshake_timeout",
                "connect_timeout",
                "shutdown_grace",
                "drain_delay",
                "on_shutdown",
                "reuse_port",
                "tcp_user_timeout",
                "health_interval",
                "health_fall",
                "idle_timeout",
                "dialect",
                "custom_settings",
                "client_tls",
                "server_tls",
                "migration",
                "limits",
                "log",
                "login",
                "shutdown",
                "peer_id",
                "peer",
                "backend",
            ],
        )?;
        let dialect = root
            .choice(
                "dialect",
                &[
                    ("cockroachdb", Dialect::CockroachDb),
                    ("postgresql", Dialect::PostgreSql),
                ],
            )?
            .unwrap_or(Dialect::CockroachDb);
        let server_tls = read_server_tls(&root)?;
        let login = read_login(&root, dialect, &server_tls)?;
        let config = Self {
            listen: root.addresses("listen")?.unwrap_or_else(default_listen),
            admin_listen: root.address("admin_listen", 0)?,
            control_socket: root.path("control_socket")?,
            max_connections: root
                .integer("max_connections", 1, MAX_CONNECTIONS)?
                .unwrap_or(DEFAULT_MAX_CONNECTIONS),
            handshake_timeout: root
                .timeout("handshake_timeout")?
                .unwrap_or(DEFAULT_HANDSHAKE_TIMEOUT),
            connect_timeout: root
                .timeout("connect_timeout")?
                .unwrap_or(DEFAULT_CONNECT_TIMEOUT),
            shutdown: read_shutdown(&root)?,
            reuse_port: root.boolean("reuse_port")?.unwrap_or(false),
            tcp_user_timeout: root
                .duration("tcp_user_timeout")?
                .unwrap_or(DEFAULT_TCP_USER_TIMEOUT),
            health_interval: root
                .duration("health_interval")?
                .unwrap_or(DEFAULT_HEALTH_INTERVAL),
            health_fall: root
                .integer("health_fall", 1, MAX_HEALTH_FALL)?
                .unwrap_or(DEFAULT_HEALTH_FALL),
            idle_timeout: root.duration("idle_timeout")?.unwrap_or_default(),
            dialect,
            custom_settings: root
                .texts(
                    "custom_settings",
                    "a setting's name with a dot, such as \"app.tenant\"",
                    CustomNames::accepts,
                )?
                .unwrap_or_default(),
            client_tls: read_client_tls(&root)?,
            server_tls,
            limits: read_limits(&root)?,
            log: read_log(&root)?,
            migration: read_migration(&root, dialect, login.method)?,
            login,
            peers: read_peers(&root)?,
            backends: read_backends(&root)?,
        };
        config.check_listeners(&root)?;
        Ok(config)
    }

    /// Where it listens for its peers alone.
    #[must_use]
    pub(crate) fn own_peer_listener(&self) -> Option<&Address> {
        let address = self.peers.own_address();
        address.filter(|address| !self.listen.contains(address))
    }

    /// Two listeners on one port would only be found out at bind time, after the
    /// first one already takes clients. Port 0 is never the same port twice.
    fn check_listeners(&self, root: &Section<'_>) -> Result<(), ConfigError> {
        let mut seen: Vec<&Address> = Vec::new();
        for (key, address) in self
            .listen
            .iter()
            .map(|address| ("listen", address))
            .chain(self.admin_listen.iter().map(|a| ("admin_listen", a)))
            .chain(self.own_peer_listener().map(|a| ("peer", a)))
        {
            if address.port != 0 && seen.contains(&address) {
                return Err(root.error(key, &format!("{address} is listened on twice")));
            }
            seen.push(address);
        }
        Ok(())
    }
}

fn default_listen() -> Vec<Address> {
    let (host, port) = DEFAULT_LISTEN;
    vec![Address {
        host: host.to_owned(),
        port,
    }]
}

fn read_client_tls(root: &Section<'_>) -> Result<Option<ClientTls>, ConfigError> {
    let keys = &["mode", "cert_file", "key_file", "client_ca_file"];
    let Some(section) = root.section("client_tls", keys)? else {
        return Ok(None);
    };
    let tls = ClientTls {
        mode: section
            .choice(
                "mode",
                &[
                    ("allow", ClientTlsMode::Allow),
                    ("require", ClientTlsMode::Require),
                ],
            )?
            .unwrap_or(ClientTlsMode::Allow),
        cert_file: section
            .path("cert_file")?
            .ok_or_else(|| section.missing("cert_file", "the file of the proxy's certificate"))?,
        key_file: section.path("key_file")?.ok_or_else(|| {
            section.missing("key_file", "the file of the private key to cert_file")
        })?,
        client_ca_file: section.path("client_ca_file")?,
    };
    if tls.client_ca_file.is_some() && tls.mode == ClientTlsMode::Allow {
        // A client in clear would not be asked for its certificate.
        let message = "expected mode = \"require\" beside it, since mode = \"allow\" lets \
                       clients in without TLS and so without a certificate";
        return Err(section.error("client_ca_file", message));
    }
    Ok(Some(tls))
}

fn read_server_tls(root: &Section<'_>) -> Result<ServerTls, ConfigError> {
    let keys = &["sslmode", "ca_file", "cert_file", "key_file"];
    let Some(section) = root.section("server_tls", keys)? else {
        return Ok(ServerTls::default());
    };
    let tls = ServerTls {
        sslmode: section
            .choice(
                "sslmode",
                &[
                    ("disable", SslMode::Disable),
                    ("prefer", SslMode::Prefer),
                    ("require", SslMode::Require),
                    ("verify-ca", SslMode::VerifyCa),
                    ("verify-full", SslMode::VerifyFull),
                ],
            )?
            .unwrap_or_default(),
        ca_file: section.path("ca_file")?,
        cert_file: section.path("cert_file")?,
        key_file: section.path("key_file")?,
    };
    match (&tls.cert_file, &tls.key_file) {
        (Some(_), None) => {
            Err(section.missing("key_file", "the file of the private key to cert_file"))
        }
        (None, Some(_)) => {
            Err(section.missing("cert_file", "the file of the certificate to key_file"))
        }
        _ => Ok(tls),
    }
}
