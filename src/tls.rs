//! TLS on both legs: what each is configured to demand, and the handshakes.
//!
//! A context is built once from its files and shared by all sessions; a reload
//! builds a new one, and live sessions keep what they have.  After the handshake
//! a connection belongs to [`crate::stream`].
//!
//! The client leg stands on the `openssl` crate itself, because native-tls'
//! acceptor stops at TLS 1.2 and cannot ask for client certificates; the server
//! leg stands on native-tls.

mod certificates;
mod settings;

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub(crate) use certificates::{BadFile, end_point_digest, valid_until};
pub use settings::SslMode;
pub(crate) use settings::{ClientTls, ClientTlsMode, ServerTls};

use native_tls::{Certificate, Protocol, TlsConnector};
use openssl::error::ErrorStack;
use openssl::ssl::{
    AlpnError, HandshakeError, SslAcceptor, SslMethod, SslOptions, SslSessionCacheMode,
    SslVerifyMode,
};
use openssl::stack::Stack;
use openssl::x509::X509VerifyResult;
use openssl::x509::store::X509StoreBuilder;

use crate::socket::{Received, Socket, Wait};
use crate::startup::SSL_REQUEST_PACKET;
use crate::stream::{Duplex, Stream, Transport};
use certificates::{Identity, load_certificates};

/// First byte of a TLS handshake record (RFC 8446, 5.1): where a startup packet
/// begins with it, the client speaks direct TLS.
pub(crate) const HANDSHAKE_RECORD: u8 = 0x16;
/// The protocol's registered name for ALPN.
const ALPN_POSTGRESQL: &[u8] = b"postgresql";
/// The same as the extension holds it: length, name.
const ALPN_OFFER: &[u8] = b"\x0apostgresql";

/// What both legs are configured to do: built once, shared by all sessions, and
/// built anew as a whole by a reload.
pub struct TlsContexts {
    /// `None`: a request for TLS is answered with `N`.
    pub client: Option<ClientTlsContext>,
    /// The server leg.
    pub server: Arc<ServerTlsContext>,
}

impl TlsContexts {
    /// Reads all files that the settings name.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn load(client: Option<&ClientTls>, server: &ServerTls) -> Result<Self, BadFile> {
        let client = client.map(ClientTlsContext::from_settings);
        Ok(Self {
            client: client.transpose()?,
            server: Arc::new(ServerTlsContext::from_settings(server)?),
        })
    }
}

/// The client leg, where the proxy is the TLS server.
pub struct ClientTlsContext {
    acceptor: SslAcceptor,
    required: bool,
}

impl ClientTlsContext {
    /// As `[client_tls]` says.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_settings(settings: &ClientTls) -> Result<Self, BadFile> {
        let authorities = settings.client_ca_file.as_deref();
        let mut context = Self::load(&settings.cert_file, &settings.key_file, authorities)?;
        context.required = settings.mode == ClientTlsMode::Require;
        Ok(context)
    }

    /// Whether a client without TLS is turned away.
    #[must_use]
    pub const fn is_required(&self) -> bool {
        self.required
    }

    /// Reads certificate chain and key and, where there is one, the file of
    /// authorities that client certificates must come from.
    ///
    /// With `client_ca_file` a client has to show a certificate, as under
    /// `clientcert=verify-ca` in PostgreSQL: the proxy has no rules by user that
    /// could demand it of some only.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(
        cert_file: &Path,
        key_file: &Path,
        client_ca_file: Option<&Path>,
    ) -> Result<Self, BadFile> {
        let identity = Identity::load(cert_file, key_file)?;
        let authorities = match client_ca_file {
            Some(file) => load_certificates(file)?,
            None => Vec::new(),
        };
        let acceptor = build_acceptor(identity, authorities).map_err(|error| {
            BadFile::new(cert_file, format!("cannot be used: {}", reason(&error)))
        })?;
        Ok(Self {
            acceptor,
            required: false,
        })
    }

    /// The handshake with a client, until `deadline`: `direct` where it began
    /// without an SSLRequest, else after the `S` that is the caller's to send.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, `UnexpectedEof` where the client leaves,
    /// `InvalidData` with what went wrong otherwise, a direct client without
    /// ALPN among it (another protocol's client must not get through).
    pub fn accept(&self, socket: Socket, deadline: Instant, direct: bool) -> io::Result<Stream> {
        let socket = Arc::new(socket);
        let transport = Transport::new(Arc::clone(&socket), deadline);
        let engine = self
            .acceptor
            .accept(transport)
            .map_err(|error| match error {
                HandshakeError::SetupFailure(stack) => failed(reason(&stack)),
                HandshakeError::Failure(mid) | HandshakeError::WouldBlock(mid) => {
                    let verdict = mid.ssl().verify_result();
                    let error = mid.into_error();
                    match (error.ssl_error().map(reason), error.into_io_error()) {
                        (_, Ok(error)) => error,
                        (Some(what), _) if verdict != X509VerifyResult::OK => {
                            failed(format!("{what} ({verdict})"))
                        }
                        (Some(what), _) => failed(what),
                        (None, Err(error)) => failed(error.to_string()),
                    }
                }
            })?;
        if direct && engine.ssl().selected_alpn_protocol() != Some(ALPN_POSTGRESQL) {
            return Err(failed("direct TLS without ALPN".to_owned()));
        }
        Ok(Stream::Tls(Box::new(Duplex::new(socket, Box::new(engine)))))
    }
}

fn build_acceptor(
    identity: Identity,
    authorities: Vec<openssl::x509::X509>,
) -> Result<SslAcceptor, ErrorStack> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder.set_certificate(&identity.leaf)?;
    builder.set_private_key(&identity.key)?;
    for issuer in identity.chain {
        builder.add_extra_chain_cert(issuer)?;
    }
    builder.set_options(SslOptions::NO_RENEGOTIATION);
    // Nothing is kept of a client: its ticket holds its session, under a key that is this
    // context's own and that the next reload does away with.
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    if authorities.is_empty() {
        builder.set_num_tickets(1)?;
    } else {
        // A certificate is looked at each time that its client comes.
        builder.set_options(SslOptions::NO_TICKET);
        builder.set_num_tickets(0)?;
    }
    builder.set_alpn_select_callback(|_, offered| {
        openssl::ssl::select_next_proto(ALPN_OFFER, offered)
            .filter(|chosen| *chosen == ALPN_POSTGRESQL)
            .map(|_| ALPN_POSTGRESQL)
            .ok_or(AlpnError::ALERT_FATAL)
    });
    if !authorities.is_empty() {
        let mut store = X509StoreBuilder::new()?;
        let mut names = Stack::new()?;
        for authority in authorities {
            names.push(authority.subject_name().to_owned()?)?;
            store.add_cert(authority)?;
        }
        builder.set_verify_cert_store(store.build())?;
        builder.set_client_ca_list(names);
        builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    }
    Ok(builder.build())
}

/// What came of a try to connect with TLS.
#[derive(Debug)]
pub enum Negotiated {
    /// Ready for the startup packet.
    Stream(Stream),
    /// `prefer` only: TLS failed and took the connection with it; a new one is
    /// to be made with [`ServerTlsContext::connect_plain`].
    RetryPlain(io::Error),
}

/// The server leg, where the proxy is the TLS client.
pub struct ServerTlsContext {
    mode: SslMode,
    /// A `ca_file` says whom the operator trusts.
    has_authorities: bool,
    connector: TlsConnector,
}

impl ServerTlsContext {
    /// As `[server_tls]` says.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_settings(settings: &ServerTls) -> Result<Self, BadFile> {
        let files = settings
            .cert_file
            .as_deref()
            .zip(settings.key_file.as_deref());
        Self::load(settings.sslmode, settings.ca_file.as_deref(), files)
    }

    /// Reads the authorities and the proxy's own identity, where there are any:
    /// certificate file and key file.
    ///
    /// As in libpq, a CA file is used in every mode that comes to TLS: `prefer`
    /// and `require` check the chain then, as verify-ca.  Without one,
    /// verify-full asks the system's authorities, as libpq does for
    /// `sslrootcert=system`, and verify-ca is refused, because any name of a
    /// public authority would do.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(
        mode: SslMode,
        ca_file: Option<&Path>,
        identity: Option<(&Path, &Path)>,
    ) -> Result<Self, BadFile> {
        let mut builder = TlsConnector::builder();
        builder.min_protocol_version(Some(Protocol::Tlsv12));
        builder.danger_accept_invalid_hostnames(mode != SslMode::VerifyFull);
        match (ca_file, mode) {
            (Some(file), _) => {
                builder.disable_built_in_roots(true);
                for authority in load_certificates(file)? {
                    let authority = authority
                        .to_der()
                        .ok()
                        .and_then(|der| Certificate::from_der(&der).ok())
                        .ok_or_else(|| BadFile::new(file, "holds a damaged certificate"))?;
                    builder.add_root_certificate(authority);
                }
            }
            (None, SslMode::VerifyFull) => {}
            (None, SslMode::VerifyCa) => {
                let what = "is missing: sslmode verify-ca needs one";
                return Err(BadFile::new(Path::new("ca_file"), what));
            }
            (None, _) => {
                builder.disable_built_in_roots(true);
                builder.danger_accept_invalid_certs(true);
            }
        }
        if let Some((cert_file, key_file)) = identity {
            let own = native_identity(&Identity::load(cert_file, key_file)?)
                .map_err(|what| BadFile::new(cert_file, format!("cannot be used: {what}")))?;
            builder.identity(own);
        }
        let connector = builder.build().map_err(|error| {
            let file = identity.map(|(cert_file, _)| cert_file).or(ca_file);
            let what = format!("cannot be used: {}", handshake_reason(&error));
            BadFile::new(file.unwrap_or(Path::new("server_tls")), what)
        })?;
        Ok(Self {
            mode,
            has_authorities: ca_file.is_some(),
            connector,
        })
    }

    /// Whether a connection without TLS is allowed and still worth a warning: `prefer`
    /// with a `ca_file`, whose operator thinks of the servers as checked.
    #[must_use]
    pub(crate) fn warns_of_clear(&self) -> bool {
        self.mode == SslMode::Prefer && self.has_authorities
    }

    /// Whether a server that has just refused TLS need not be asked at once again: nobody
    /// thinks of it as checked.
    #[must_use]
    pub(crate) fn may_stay_clear(&self) -> bool {
        self.mode == SslMode::Prefer && !self.has_authorities
    }

    /// Asks the server behind the new connection `socket` for TLS as `sslmode`
    /// demands, until `deadline`.  `host` is the backend's name or address as
    /// configured: sent as SNI (a name only) and looked for in the certificate
    /// (an address among its IP addresses).
    ///
    /// # Errors
    /// `TimedOut` at the deadline; `ConnectionRefused` where the server refuses
    /// TLS; `UnexpectedEof` where it leaves; `InvalidData` for anything else.
    pub fn connect(&self, socket: Socket, host: &str, deadline: Instant) -> io::Result<Negotiated> {
        if self.mode == SslMode::Disable {
            return Ok(Negotiated::Stream(Self::connect_plain(socket)));
        }
        let tried = match request_tls(&socket, deadline) {
            Ok(TlsAnswer::Refused) if self.mode == SslMode::Prefer => {
                return Ok(Negotiated::Stream(Self::connect_plain(socket)));
            }
            Ok(TlsAnswer::Refused) => Err(io::Error::new(
                ErrorKind::ConnectionRefused,
                "the server refuses TLS, which sslmode demands",
            )),
            Ok(TlsAnswer::Willing) => self.handshake(socket, host, deadline),
            Err(error) => Err(error),
        };
        match tried {
            Ok(stream) => Ok(Negotiated::Stream(stream)),
            Err(error) if self.mode == SslMode::Prefer && error.kind() != ErrorKind::TimedOut => {
                Ok(Negotiated::RetryPlain(error))
            }
            Err(error) => Err(error),
        }
    }

    /// The connection without TLS: what [`Negotiated::RetryPlain`] asks for.
    #[must_use]
    pub fn connect_plain(socket: Socket) -> Stream {
        Stream::Plain(socket)
    }

    fn handshake(&self, socket: Socket, host: &str, deadline: Instant) -> io::Result<Stream> {
        let socket = Arc::new(socket);
        let transport = Transport::new(Arc::clone(&socket), deadline);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let engine = self
            .connector
            .connect(host, transport)
            .map_err(|error| match error {
                native_tls::HandshakeError::Failure(error) => {
                    match error.source().and_then(|source| source.downcast_ref()) {
                        Some(error) => copy(error),
                        None => failed(handshake_reason(&error)),
                    }
                }
                // The transport never answers so during a handshake.
                native_tls::HandshakeError::WouldBlock(_) => ErrorKind::WouldBlock.into(),
            })?;
        Ok(Stream::Tls(Box::new(Duplex::new(socket, Box::new(engine)))))
    }
}

enum TlsAnswer {
    Willing,
    Refused,
}

/// Sends SSLRequest and takes one byte: what stands behind an `S` is the TLS
/// library's to judge, so that nothing sent in clear slips in.
fn request_tls(socket: &Socket, deadline: Instant) -> io::Result<TlsAnswer> {
    socket.write_all(&SSL_REQUEST_PACKET, Some(deadline))?;
    let mut answer = Vec::with_capacity(1);
    match socket.read(&mut answer, Wait::Until(deadline))? {
        Received::Bytes(_) => {}
        _ => return Err(ErrorKind::UnexpectedEof.into()),
    }
    match answer.as_slice() {
        b"S" => Ok(TlsAnswer::Willing),
        b"N" => Ok(TlsAnswer::Refused),
        b"E" => Err(failed(
            "the server answers the request for TLS with an error".to_owned(),
        )),
        _ => Err(failed(
            "the server's answer to the request for TLS is neither S nor N".to_owned(),
        )),
    }
}

/// native-tls takes a chain as PEM and a key as PKCS#8 PEM only.
fn native_identity(identity: &Identity) -> Result<native_tls::Identity, String> {
    let to_pem = || {
        let mut pem = identity.leaf.to_pem()?;
        for issuer in &identity.chain {
            pem.extend(issuer.to_pem()?);
        }
        Ok::<_, ErrorStack>((pem, identity.key.private_key_to_pem_pkcs8()?))
    };
    let (chain, key) = to_pem().map_err(|error| reason(&error))?;
    native_tls::Identity::from_pkcs8(&chain, &key).map_err(|error| handshake_reason(&error))
}

/// Whether both streams' clients see the same certificate: only then can
/// SCRAM-SHA-256-PLUS, which binds the login to it (`tls-server-end-point`, RFC
/// 5929), be relayed truthfully.
#[must_use]
pub fn same_certificate(client: &Stream, server: &Stream) -> bool {
    let shown = client.server_certificate();
    shown.is_some() && shown == server.server_certificate()
}

fn failed(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("TLS handshake: {what}"))
}

/// OpenSSL's reason without the file and line of its source.
fn reason(stack: &ErrorStack) -> String {
    let last = stack.errors().last().and_then(|error| error.reason());
    last.unwrap_or("unknown error").to_owned()
}

/// The same of a native-tls error, and why a certificate was not accepted,
/// which that only shows in the parentheses at its text's end.
fn handshake_reason(error: &native_tls::Error) -> String {
    let text = error.to_string();
    let stack: Option<&ErrorStack> = error.source().and_then(|source| source.downcast_ref());
    match stack {
        None => text,
        Some(stack) => match text
            .strip_suffix(')')
            .and_then(|text| text.rsplit_once(" ("))
        {
            Some((_, verdict)) => format!("{} ({verdict})", reason(stack)),
            None => reason(stack),
        },
    }
}

/// An I/O error that the TLS library keeps for itself.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
