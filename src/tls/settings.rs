//! What `[client_tls]` and `[server_tls]` may say, as plain data.

use std::path::PathBuf;

/// `[client_tls]`: TLS between clients and the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// `mode`: whether clients may still come without TLS.
    pub mode: ClientTlsMode,
    /// `cert_file`: the proxy's certificate chain, PEM.
    pub cert_file: PathBuf,
    /// `key_file`: the private key to it, PEM.
    pub key_file: PathBuf,
    /// `client_ca_file`: who may sign client certificates; `None`: none is asked for.
    pub client_ca_file: Option<PathBuf>,
}

/// Whether TLS is a choice or a duty for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientTlsMode {
    /// `"allow"`: with TLS or without.
    Allow,
    /// `"require"`: without TLS a client is refused.
    Require,
}

/// `[server_tls]`: TLS between the proxy and the backends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerTls {
    /// `sslmode`, with libpq's meaning.
    pub sslmode: SslMode,
    /// `ca_file`: who signs the servers' certificates.  `None`: for `verify-full`
    /// the system's roots, for the modes below it nobody; never with `verify-ca`.
    pub ca_file: Option<PathBuf>,
    /// `cert_file`: the proxy's identity towards servers; set together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// `key_file`: the private key to it.
    pub key_file: Option<PathBuf>,
}

/// libpq's `sslmode`. (libpq's `allow` is left out: it tries plain text first.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslMode {
    /// `"disable"`: plain text only.
    Disable,
    /// `"prefer"`: TLS where the server has it, the certificate unverified.
    #[default]
    Prefer,
    /// `"require"`: TLS or nothing, the certificate unverified.
    Require,
    /// `"verify-ca"`: TLS with a certificate that a trusted authority signed.
    VerifyCa,
    /// `"verify-full"`: as `verify-ca`, and it names the host that was dialled.
    VerifyFull,
}
