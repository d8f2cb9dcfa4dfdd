//! Certificates and keys as files, with errors that an operator can act on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

/// A certificate or key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", file.display())]
pub struct BadFile {
    /// Which.
    pub file: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

impl BadFile {
    pub(crate) fn new(file: &Path, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            what: what.into(),
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, BadFile> {
    fs::read(file).map_err(|error| BadFile::new(file, format!("cannot be read: {error}")))
}

/// All certificates of a PEM file, at least one.
pub(crate) fn load_certificates(file: &Path) -> Result<Vec<X509>, BadFile> {
    let certificates = X509::stack_from_pem(&read(file)?)
        .map_err(|_| BadFile::new(file, "holds a damaged certificate (PEM expected)"))?;
    if certificates.is_empty() {
        return Err(BadFile::new(file, "holds no certificate (PEM expected)"));
    }
    Ok(certificates)
}

/// A certificate with its chain and key.
pub(crate) struct Identity {
    pub(crate) leaf: X509,
    /// Issuers, nearest first.
    pub(crate) chain: Vec<X509>,
    pub(crate) key: PKey<Private>,
}

impl Identity {
    /// Reads both files; the leaf stands first in its file.
    ///
    /// A certificate outside its time is taken, with a warning: to go on is
    /// better than to refuse a restart in the night it expired.
    pub(crate) fn load(cert_file: &Path, key_file: &Path) -> Result<Self, BadFile> {
        let mut chain = load_certificates(cert_file)?;
        let leaf = chain.remove(0);
        let key = load_key(key_file)?;
        let fits = leaf.public_key().is_ok_and(|public| key.public_eq(&public));
        if !fits {
            let what = format!(
                "is not the key of the certificate in {}",
                cert_file.display()
            );
            return Err(BadFile::new(key_file, what));
        }
        warn_of_time(cert_file, &leaf);
        Ok(Self { leaf, chain, key })
    }
}

/// Until when the first certificate of a file is valid, in seconds since 1970.
#[must_use]
pub(crate) fn valid_until(file: &Path) -> Option<i64> {
    let certificates = load_certificates(file).ok()?;
    let epoch = Asn1Time::from_unix(0).ok()?;
    let left = epoch.diff(certificates.first()?.not_after()).ok()?;
    Some(i64::from(left.days) * 86_400 + i64::from(left.secs))
}

/// The digest of a certificate, given as DER, that a SCRAM exchange is bound to
/// (`tls-server-end-point`, RFC 5929, section 4.1).  `None` where the RFC has none: its
/// signature is by no single digest, as Ed25519.
#[must_use]
pub(crate) fn end_point_digest(certificate: &[u8]) -> Option<Vec<u8>> {
    let certificate = X509::from_der(certificate).ok()?;
    let signature = certificate.signature_algorithm().object().nid();
    let digest = match signature.signature_algorithms()?.digest {
        Nid::MD5 | Nid::SHA1 => MessageDigest::sha256(),
        digest => MessageDigest::from_nid(digest)?,
    };
    let digest = certificate.digest(digest).ok()?;
    Some(digest.to_vec())
}

/// A private key as PEM: PKCS#8, PKCS#1 or SEC1.
fn load_key(file: &Path) -> Result<PKey<Private>, BadFile> {
    let pem = read(file)?;
    warn_of_readers(file);
    // The callback stands in for OpenSSL's own, which would ask the terminal.
    let mut asked = false;
    let key = PKey::private_key_from_pem_callback(&pem, |_| {
        asked = true;
        Ok(0)
    });
    key.map_err(|_| {
        BadFile::new(
            file,
            if asked {
                "is protected by a passphrase, which is not supported"
            } else {
                "holds no private key (PEM expected: PKCS#8, PKCS#1 or SEC1)"
            },
        )
    })
}

/// The proxy goes on: whoever could read the key has read it by now.
fn warn_of_readers(file: &Path) {
    let Ok(metadata) = fs::metadata(file) else {
        return;
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let (file, mode) = (file.display(), format!("{mode:04o}"));
        log::warn!(file:%, mode; "private key may be read or written by others than its owner, expected mode 0600");
    }
}

fn warn_of_time(file: &Path, leaf: &X509) {
    let Ok(now) = Asn1Time::days_from_now(0) else {
        return;
    };
    let file = file.display();
    if leaf.not_after() < now {
        log::warn!(file:%, until:% = leaf.not_after(); "certificate has expired");
    } else if leaf.not_before() > now {
        log::warn!(file:%, from:% = leaf.not_before(); "certificate is not valid yet");
    }
}
