//! TLS on either leg: the library's parts against OpenSSL as the peer, then the
//! proxy as a process between real clients and servers.

mod backends;
pub(crate) mod certs;
mod contexts;
mod duplex;
mod handshakes;
mod openssl;
pub(crate) mod peer;
mod reload;
pub(crate) mod rig;
mod scram;
mod sessions;
mod sslmodes;
mod storm;
