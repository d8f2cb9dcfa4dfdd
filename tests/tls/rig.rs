//! A PostgreSQL with TLS, psql in one shot, and a client that speaks TLS.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use openssl::ssl::{SslConnector, SslStream, SslVersion};

use super::certs::{Certificate, Files, authority, write_secret};
use super::peer::careless_client;
use crate::support::message;
use crate::support::postgres::Cluster;
use crate::support::proxy::{Proxy, Setup};
use crate::support::wire::{Channel, Wire};

/// A user with a password; everybody else is trusted.
pub(crate) const SCRAM_USER: &str = "scram";
pub(crate) const SCRAM_PASSWORD: &str = "open sesame";

/// One server with its certificate and the authority behind it.
pub(crate) struct Secure {
    pub(crate) cluster: Cluster,
    pub(crate) authority: Certificate,
    pub(crate) certificate: Certificate,
}

/// PostgreSQL with `ssl = on`, shared by the tests of this process.
pub(crate) fn secure() -> &'static Secure {
    static SECURE: OnceLock<Secure> = OnceLock::new();
    SECURE.get_or_init(|| {
        let authority = authority("sqlproxy test authority");
        let certificate = authority.issue("127.0.0.1");
        let cluster = Cluster::start(&["ssl = on"], |data| {
            let pem = certificate.cert.to_pem().unwrap();
            std::fs::write(data.join("server.crt"), pem).unwrap();
            let key = certificate.key.private_key_to_pem_pkcs8().unwrap();
            write_secret(&data.join("server.key"), &key);
            let rules = data.join("pg_hba.conf");
            let trust = std::fs::read_to_string(&rules).unwrap();
            let rule = format!("host all {SCRAM_USER} 127.0.0.1/32 scram-sha-256\n");
            std::fs::write(&rules, rule + &trust).unwrap();
        });
        let role = format!("CREATE ROLE {SCRAM_USER} LOGIN PASSWORD '{SCRAM_PASSWORD}'");
        cluster.client().batch_execute(&role).unwrap();
        Secure {
            cluster,
            authority,
            certificate,
        }
    })
}

/// PostgreSQL and libpq take no key that others could read.
/// The files of one test: what the proxy shows, and whom its client trusts.
pub(crate) struct Site {
    pub(crate) files: Files,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) root: PathBuf,
}

impl Site {
    /// The proxy's certificate is for `localhost`.
    pub(crate) fn new() -> Self {
        let files = Files::new();
        let authority = authority("proxy's authority");
        let own = authority.issue("localhost");
        Self {
            cert: files.cert("proxy.crt", &own),
            key: files.key("proxy.key", &own),
            root: files.cert("root.crt", &authority),
            files,
        }
    }

    /// `[client_tls]` with these lines more.
    pub(crate) fn client_tls(&self, mode: &str, more: &str) -> String {
        let (cert, key) = (self.cert.display(), self.key.display());
        format!(
            "[client_tls]\nmode = \"{mode}\"\ncert_file = \"{cert}\"\nkey_file = \"{key}\"\n{more}"
        )
    }

    /// Connection parameters of a client with that certificate.
    pub(crate) fn client_identity(&self, name: &str, certificate: &Certificate) -> String {
        let cert = self.files.cert(&format!("{name}.crt"), certificate);
        let key = self.files.key(&format!("{name}.key"), certificate);
        format!("sslcert={} sslkey={}", cert.display(), key.display())
    }
}

/// A proxy before PostgreSQL servers.
pub(crate) fn before_postgres(backends: &[SocketAddr]) -> Setup {
    Setup::new(backends).top("dialect = \"postgresql\"")
}

/// How a run of psql came out.
#[derive(Debug)]
pub(crate) struct Psql {
    pub(crate) succeeded: bool,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// What [`psql`] prints of its own leg and of the server's.
pub(crate) const TLS_INSIDE: &str = "inside true";
pub(crate) const PLAIN_INSIDE: &str = "inside false";

impl Psql {
    /// Whether psql itself spoke TLS.
    pub(crate) fn has_tls(&self) -> bool {
        self.output.contains("SSL connection (protocol: TLSv1.3")
    }
}

/// Logs in through the proxy as `options` say and asks both legs for TLS.
pub(crate) fn psql(proxy: &Proxy, options: &str) -> Psql {
    let address = proxy.address();
    let output = Command::new("psql")
        .args([
            "--no-psqlrc",
            "--no-align",
            "--tuples-only",
            "--no-password",
        ])
        .args(["--command", "\\conninfo", "--command"])
        .arg("SELECT 'inside ' || ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .arg(format!(
            "host=localhost hostaddr={} port={} dbname=postgres user=postgres gssencmode=disable \
             {options}",
            address.ip(),
            address.port()
        ))
        .output()
        .expect("psql is installed");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Psql {
        succeeded: output.status.success(),
        output: text(output.stdout),
        errors: text(output.stderr),
    }
}

/// A client that speaks TLS.
pub(crate) type TlsWire = Wire<SslStream<TcpStream>>;

impl Channel for SslStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref()
    }

    /// By close_notify.
    fn finish_sending(&mut self) {
        self.shutdown().unwrap();
    }
}

/// Shakes hands with the proxy by SSLRequest.
pub(crate) fn tls_connect(address: SocketAddr, client: &SslConnector) -> TlsWire {
    let mut plain = Wire::connect(address);
    plain.send(&message::packet(message::SSL_REQUEST, &[]));
    assert_eq!(plain.receive_byte(), b'S');
    let tcp = plain.socket().try_clone().unwrap();
    Wire::over(client.connect("localhost", tcp).expect("a handshake"))
}

/// Logs in without a password over TLS.
pub(crate) fn tls_login(address: SocketAddr, user: &str) -> TlsWire {
    let mut wire = tls_connect(address, &careless_client(SslVersion::TLS1_3));
    wire.start(&[("user", user), ("database", "postgres")]);
    wire
}
