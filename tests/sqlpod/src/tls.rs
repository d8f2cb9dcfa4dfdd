//! The pod's certificate. A session is one thread that blocks, so OpenSSL's own
//! stream over the socket is all it takes.

use std::io;
use std::path::Path;

use openssl::error::ErrorStack;
use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod, SslOptions};

use crate::config::Tls;

/// Reads the files.
///
/// # Errors
/// Names the file that cannot be used.
pub(crate) fn acceptor(tls: &Tls) -> io::Result<SslAcceptor> {
    let named =
        |file: &Path, error: ErrorStack| io::Error::other(format!("{}: {error}", file.display()));
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder
        .set_certificate_chain_file(&tls.cert_file)
        .map_err(|error| named(&tls.cert_file, error))?;
    builder
        .set_private_key_file(&tls.key_file, SslFiletype::PEM)
        .map_err(|error| named(&tls.key_file, error))?;
    // A pod that stops ends its reading side, and still has a last word to say.
    builder.set_options(SslOptions::IGNORE_UNEXPECTED_EOF);
    Ok(builder.build())
}
