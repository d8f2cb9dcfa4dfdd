//! Authorities and certificates, made for one test each.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};
use tempfile::TempDir;

pub(crate) struct Certificate {
    pub(crate) cert: X509,
    pub(crate) key: PKey<Private>,
}

pub(crate) fn ec_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

pub(crate) fn rsa_key() -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()
}

fn builder(name: &str, key: &PKey<Private>, lasts: (i64, i64)) -> X509Builder {
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(64, MsbOption::MAYBE_ZERO, false).unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64;
    let day = |days: i64| Asn1Time::from_unix(now + days * 86_400).unwrap();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&subject.build()).unwrap();
    builder
        .set_serial_number(&serial.to_asn1_integer().unwrap())
        .unwrap();
    builder.set_not_before(&day(lasts.0)).unwrap();
    builder.set_not_after(&day(lasts.1)).unwrap();
    builder.set_pubkey(key).unwrap();
    builder
}

/// An authority that signs itself.
pub(crate) fn authority(name: &str) -> Certificate {
    let key = ec_key();
    let mut cert = builder(name, &key, (-2, 30));
    let subject = builder(name, &key, (-2, 30)).build();
    cert.set_issuer_name(subject.subject_name()).unwrap();
    let ca = BasicConstraints::new().critical().ca().build().unwrap();
    cert.append_extension(ca).unwrap();
    cert.sign(&key, MessageDigest::sha256()).unwrap();
    Certificate {
        cert: cert.build(),
        key,
    }
}

impl Certificate {
    /// A certificate of this authority for a name or an address.
    pub(crate) fn issue(&self, name: &str) -> Certificate {
        self.issue_with(name, ec_key(), (-1, 30), false)
    }

    pub(crate) fn issue_with(
        &self,
        name: &str,
        key: PKey<Private>,
        lasts: (i64, i64),
        ca: bool,
    ) -> Certificate {
        let mut cert = builder(name, &key, lasts);
        cert.set_issuer_name(self.cert.subject_name()).unwrap();
        let mut names = SubjectAlternativeName::new();
        match name.parse::<IpAddr>() {
            Ok(_) => names.ip(name),
            Err(_) => names.dns(name),
        };
        let names = names
            .build(&cert.x509v3_context(Some(&self.cert), None))
            .unwrap();
        cert.append_extension(names).unwrap();
        if ca {
            let ca = BasicConstraints::new().critical().ca().build().unwrap();
            cert.append_extension(ca).unwrap();
        }
        cert.sign(&self.key, MessageDigest::sha256()).unwrap();
        Certificate {
            cert: cert.build(),
            key,
        }
    }
}

/// Files of one test, gone with it.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn cert(&self, name: &str, certificate: &Certificate) -> PathBuf {
        self.write(name, certificate.cert.to_pem().unwrap())
    }

    pub(crate) fn key(&self, name: &str, certificate: &Certificate) -> PathBuf {
        let path = self.write(name, "");
        write_secret(&path, &certificate.key.private_key_to_pem_pkcs8().unwrap());
        path
    }
}

/// What nobody but its owner may read.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
