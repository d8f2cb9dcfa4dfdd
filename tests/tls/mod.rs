//! TLS on either leg against OpenSSL as the peer.

mod certs;
mod contexts;
mod duplex;
mod handshakes;
mod peer;
