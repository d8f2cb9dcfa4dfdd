//! The other end: OpenSSL on one thread over a plain socket.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use openssl::ssl::{SslAcceptor, SslConnector, SslMethod, SslStream, SslVerifyMode, SslVersion};
use sqlproxy::internal::Stream;
use sqlproxy::internal::{ClientTlsContext, Negotiated, ServerTlsContext, SslMode};
use sqlproxy::internal::{ReadDeadline, Socket};

use super::certs::{Certificate, Files, authority};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// A connected pair on the loopback: the proxy's socket and the peer's.
pub(crate) fn sockets(deadline: &Arc<ReadDeadline>) -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_nodelay(true).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let (socket, _) = listener.accept().unwrap();
    (Socket::new(socket, Arc::clone(deadline)).unwrap(), peer)
}

pub(crate) fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    std::thread::spawn(work)
}

/// A client that takes any certificate.
pub(crate) fn careless_client(version: SslVersion) -> SslConnector {
    let mut builder = SslConnector::builder(SslMethod::tls()).unwrap();
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_min_proto_version(Some(version)).unwrap();
    builder.set_max_proto_version(Some(version)).unwrap();
    builder.build()
}

pub(crate) fn server(certificate: &Certificate, version: Option<SslVersion>) -> SslAcceptor {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    builder.set_certificate(&certificate.cert).unwrap();
    builder.set_private_key(&certificate.key).unwrap();
    builder.set_max_proto_version(version).unwrap();
    builder.build()
}

/// Which of the proxy's two legs a test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leg {
    Client,
    Server,
}

pub(crate) const EVERY_LEG_AND_VERSION: [(Leg, SslVersion); 4] = [
    (Leg::Client, SslVersion::TLS1_2),
    (Leg::Client, SslVersion::TLS1_3),
    (Leg::Server, SslVersion::TLS1_2),
    (Leg::Server, SslVersion::TLS1_3),
];

/// The context of a client leg with a fresh certificate.
pub(crate) fn client_context() -> ClientTlsContext {
    let files = Files::new();
    let own = authority("test").issue("localhost");
    let (cert, key) = (files.cert("cert", &own), files.key("key", &own));
    ClientTlsContext::load(&cert, &key, None).unwrap()
}

/// The proxy's stream on one leg, and the peer that it speaks with.
pub(crate) fn connect<W: Read + Write + Send + 'static>(
    (leg, version): (Leg, SslVersion),
    deadline: &Arc<ReadDeadline>,
    wrap: impl FnOnce(TcpStream) -> W + Send + 'static,
) -> (Arc<Stream>, SslStream<W>) {
    let (socket, mut tcp) = sockets(deadline);
    let (stream, peer) = match leg {
        Leg::Client => {
            let peer = in_thread(move || {
                let client = careless_client(version);
                client
                    .connect("localhost", wrap(tcp))
                    .ok()
                    .expect("the client's handshake")
            });
            let stream = client_context().accept(socket, soon(), false).unwrap();
            (stream, peer.join().unwrap())
        }
        Leg::Server => {
            let peer = in_thread(move || {
                let mut request = [0; 8];
                tcp.read_exact(&mut request).unwrap();
                tcp.write_all(b"S").unwrap();
                let acceptor = server(&authority("test").issue("pod"), Some(version));
                acceptor
                    .accept(wrap(tcp))
                    .ok()
                    .expect("the server's handshake")
            });
            let context = ServerTlsContext::load(SslMode::Require, None, None).unwrap();
            let Negotiated::Stream(stream) = context.connect(socket, "pod", soon()).unwrap() else {
                panic!("no stream");
            };
            (stream, peer.join().unwrap())
        }
    };
    assert!(matches!(stream, Stream::Tls(_)), "not encrypted");
    (Arc::new(stream), peer)
}

/// Bytes whose place can be told from their value: a block of a length that
/// divides no buffer's, of a simple generator's numbers.
pub(crate) struct Pattern(Vec<u8>);

impl Pattern {
    const PERIOD: usize = 1_000_003;

    pub(crate) fn new(mut seed: u32) -> Self {
        let block = (0..Self::PERIOD).map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        });
        Self(block.collect())
    }

    /// `block` again and again.
    pub(crate) const fn of(block: Vec<u8>) -> Self {
        Self(block)
    }

    /// The bytes from `at` on: at most `count`, at least one.
    pub(crate) fn at(&self, at: usize, count: usize) -> &[u8] {
        let start = at % self.0.len();
        &self.0[start..self.0.len().min(start + count)]
    }

    pub(crate) fn check(&self, mut at: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let expected = self.at(at, bytes.len());
            let (head, rest) = bytes.split_at(expected.len());
            assert!(head == expected, "wrong bytes after {at}");
            at += head.len();
            bytes = rest;
        }
    }
}

/// Sends and receives `total` bytes at once on a peer whose socket does not
/// block.
pub(crate) fn pump(
    peer: &mut SslStream<TcpStream>,
    total: usize,
    sends: &Pattern,
    expects: &Pattern,
) {
    peer.get_ref().set_nonblocking(true).unwrap();
    let (mut sent, mut received) = (0, 0);
    let mut buffer = vec![0; 64 * 1024];
    let until = Instant::now() + 4 * PATIENCE;
    while sent < total || received < total {
        assert!(
            Instant::now() < until,
            "stuck at {sent} sent, {received} received"
        );
        let mut moved = false;
        if sent < total {
            match peer.write(sends.at(sent, (total - sent).min(50_000))) {
                Ok(count) => (sent, moved) = (sent + count, true),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        if received < total {
            // What follows is the caller's, and may be in the same record.
            let wanted = buffer.len().min(total - received);
            match peer.read(&mut buffer[..wanted]) {
                Ok(count) => {
                    expects.check(received, &buffer[..count]);
                    assert!(count > 0, "ended after {received}");
                    (received, moved) = (received + count, true);
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        if !moved {
            std::thread::yield_now();
        }
    }
    peer.get_ref().set_nonblocking(false).unwrap();
}
