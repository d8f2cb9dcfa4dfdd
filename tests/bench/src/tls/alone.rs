//! OpenSSL's part of what a proxy with TLS on both legs does, done in memory: no socket, no
//! second thread, no look at what it says.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::time::Duration;

use demo::{Result, failed};
use nix::time::{ClockId, clock_gettime};
use openssl::pkey::PKey;
use openssl::ssl::{
    HandshakeError, MidHandshakeSslStream, SslAcceptor, SslConnector, SslMethod, SslStream,
    SslVerifyMode,
};
use openssl::x509::X509;

/// What a select-only transaction of pgbench asks and is answered, about.
const REQUEST: [u8; 70] = [b'q'; 70];
const ANSWER: [u8; 80] = [b'a'; 80];
/// A record's most (RFC 8446, 5.1).
const RECORD_BYTES: usize = 16 * 1024;

/// One end of a connection in memory.
#[derive(Debug)]
struct End {
    incoming: Rc<RefCell<VecDeque<u8>>>,
    outgoing: Rc<RefCell<VecDeque<u8>>>,
}

impl Read for End {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.incoming.borrow_mut().read(into)? {
            0 => Err(ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A side of a handshake.
enum Side {
    Under(MidHandshakeSslStream<End>),
    Done(SslStream<End>),
}

impl Side {
    fn of(step: std::result::Result<SslStream<End>, HandshakeError<End>>) -> Result<Self> {
        match step {
            Ok(stream) => Ok(Self::Done(stream)),
            Err(HandshakeError::WouldBlock(under)) => Ok(Self::Under(under)),
            Err(error) => failed(format!("a handshake in memory: {error}")),
        }
    }

    /// As far as it goes now.
    fn step(self) -> Result<Self> {
        match self {
            Self::Under(under) => Self::of(under.handshake()),
            done => Ok(done),
        }
    }
}

/// A connection, and what each side's handshake has taken.
struct Pair {
    server: SslStream<End>,
    client: SslStream<End>,
    accept: Duration,
    connect: Duration,
}

/// The two legs' contexts.
pub(crate) struct Alone {
    /// The proxy's own: a client comes.
    accepting: SslAcceptor,
    /// PostgreSQL's: the key exchange is by P-256 alone (`ssl_ecdh_curve`), which OpenSSL as
    /// a client does not offer first, so that it has to begin twice.
    postgres: SslAcceptor,
    connector: SslConnector,
}

impl Alone {
    pub(crate) fn new(certificate: &[u8], key: &[u8]) -> Result<Self> {
        let acceptor = |groups: Option<&str>| -> Result<SslAcceptor> {
            let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
            builder.set_certificate(X509::from_pem(certificate)?.as_ref())?;
            builder.set_private_key(PKey::private_key_from_pem(key)?.as_ref())?;
            builder.set_num_tickets(1)?;
            if let Some(groups) = groups {
                builder.set_groups_list(groups)?;
            }
            Ok(builder.build())
        };
        let mut connector = SslConnector::builder(SslMethod::tls_client())?;
        connector.set_verify(SslVerifyMode::NONE);
        Ok(Self {
            accepting: acceptor(None)?,
            postgres: acceptor(Some("P-256"))?,
            connector: connector.build(),
        })
    }

    /// Version and cipher.
    pub(crate) fn describe(&self) -> Result<String> {
        let pair = self.pair(&self.accepting)?;
        let ssl = pair.client.ssl();
        let cipher = ssl
            .current_cipher()
            .map_or("no cipher", |cipher| cipher.name());
        let library = openssl::version::version();
        Ok(format!(
            "{library}, {}, {cipher}, RSA 2048",
            ssl.version_str()
        ))
    }

    /// CPU of the handshakes that one new connection takes: as server, then as client.
    pub(crate) fn connection(&self) -> Result<Duration> {
        const TIMES: u32 = 200;
        let mut all = Duration::ZERO;
        for _ in 0..TIMES {
            all += self.pair(&self.accepting)?.accept;
            all += self.pair(&self.postgres)?.connect;
        }
        Ok(all / TIMES)
    }

    /// CPU of the records of one transaction: what one leg decrypts the other encrypts, so
    /// that it is what two peers take who speak with each other.
    pub(crate) fn transaction(&self) -> Result<Duration> {
        const TIMES: u32 = 20_000;
        let mut pair = self.pair(&self.accepting)?;
        let began = cpu()?;
        for _ in 0..TIMES {
            carry(&mut pair.client, &mut pair.server, &REQUEST)?;
            carry(&mut pair.server, &mut pair.client, &ANSWER)?;
        }
        Ok((cpu()? - began) / TIMES)
    }

    /// CPU of the full records of one GiB.
    pub(crate) fn gibibyte(&self) -> Result<Duration> {
        const PARTS: u32 = 8;
        let mut pair = self.pair(&self.accepting)?;
        let record = vec![b'x'; RECORD_BYTES];
        let began = cpu()?;
        for _ in 0..(1 << 30) / RECORD_BYTES / PARTS as usize {
            carry(&mut pair.server, &mut pair.client, &record)?;
        }
        Ok((cpu()? - began) * PARTS)
    }

    fn pair(&self, acceptor: &SslAcceptor) -> Result<Pair> {
        let (one, other) = (Rc::default(), Rc::default());
        let server = End {
            incoming: Rc::clone(&one),
            outgoing: Rc::clone(&other),
        };
        let client = End {
            incoming: other,
            outgoing: one,
        };
        let configured = self.connector.configure()?.verify_hostname(false);
        let mut connect = Duration::ZERO;
        let mut accept = Duration::ZERO;
        let mut client = timed(&mut connect, || {
            Side::of(configured.connect("localhost", client))
        })?;
        let mut server = timed(&mut accept, || Side::of(acceptor.accept(server)))?;
        loop {
            client = timed(&mut connect, || client.step())?;
            server = timed(&mut accept, || server.step())?;
            match (client, server) {
                (Side::Done(client), Side::Done(server)) => {
                    return Ok(Pair {
                        server,
                        client,
                        accept,
                        connect,
                    });
                }
                both => (client, server) = both,
            }
        }
    }
}

/// Encrypted here, decrypted there.
fn carry(from: &mut SslStream<End>, to: &mut SslStream<End>, bytes: &[u8]) -> Result<()> {
    let mut plain = [0; RECORD_BYTES];
    from.write_all(bytes)?;
    let into = plain.get_mut(..bytes.len()).unwrap_or_default();
    Ok(to.read_exact(into)?)
}

fn timed<T>(sum: &mut Duration, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = cpu()?;
    let result = act();
    *sum += cpu()? - began;
    result
}

/// The calling thread's CPU time.
fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
