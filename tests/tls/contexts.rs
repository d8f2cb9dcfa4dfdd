//! What the contexts make of their files.

use openssl::symm::Cipher;
use sqlproxy::internal::{ClientTlsContext, ServerTlsContext, SslMode};

use super::certs::{Certificate, Files, authority, ec_key, rsa_key};

fn rsa_certificate() -> Certificate {
    authority("test").issue_with("localhost", rsa_key(), (-1, 30), false)
}

fn ec_certificate() -> Certificate {
    authority("test").issue("localhost")
}

#[test]
fn keys_load_in_every_form() {
    let (rsa, ec) = (rsa_certificate(), ec_certificate());
    let sec1 = ec.key.ec_key().unwrap().private_key_to_pem().unwrap();
    // As `openssl ecparam -genkey` writes it: the curve's name first.
    let with_parameters = [
        b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
            .as_slice(),
        &sec1,
    ];
    let cases = [
        (
            "PKCS#8, RSA",
            &rsa,
            rsa.key.private_key_to_pem_pkcs8().unwrap(),
        ),
        (
            "PKCS#8, EC",
            &ec,
            ec.key.private_key_to_pem_pkcs8().unwrap(),
        ),
        (
            "PKCS#1",
            &rsa,
            rsa.key.rsa().unwrap().private_key_to_pem().unwrap(),
        ),
        ("SEC1", &ec, sec1.clone()),
        ("SEC1 with parameters", &ec, with_parameters.concat()),
    ];
    for (form, certificate, key) in cases {
        let files = Files::new();
        let cert = files.cert("cert", certificate);
        let key = files.write("key", key);
        if let Err(error) = ClientTlsContext::load(&cert, &key, None) {
            panic!("client leg, {form}: {error}");
        }
        let identity = Some((cert.as_path(), key.as_path()));
        if let Err(error) = ServerTlsContext::load(SslMode::Require, None, identity) {
            panic!("server leg, {form}: {error}");
        }
    }
}

#[test]
fn an_error_names_the_file_and_what_is_wrong_with_it() {
    let files = Files::new();
    let own = ec_certificate();
    let locked = own
        .key
        .private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), b"secret")
        .unwrap();
    let cert = files.cert("cert", &own);
    let key = files.key("key", &own);
    let empty = files.write("empty", "");
    let damaged = files.write(
        "damaged",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let locked = files.write("locked", locked);
    let other = files.key("other", &ec_certificate());
    let missing = files.write("missing", "");
    std::fs::remove_file(&missing).unwrap();
    let none = None;
    let cases = [
        (&missing, &key, none, &missing, "cannot be read"),
        (&empty, &key, none, &empty, "holds no certificate"),
        (&damaged, &key, none, &damaged, "damaged certificate"),
        (&cert, &missing, none, &missing, "cannot be read"),
        (&cert, &cert, none, &cert, "holds no private key"),
        (&cert, &locked, none, &locked, "passphrase"),
        (
            &cert,
            &other,
            none,
            &other,
            "is not the key of the certificate",
        ),
        (&cert, &key, Some(&missing), &missing, "cannot be read"),
        (&cert, &key, Some(&empty), &empty, "holds no certificate"),
    ];
    for (cert, key, ca, file, what) in cases {
        let loaded = ClientTlsContext::load(cert, key, ca.map(|ca| ca.as_path()));
        let error = loaded.err().expect(what).to_string();
        assert!(error.starts_with(&file.display().to_string()), "{error}");
        assert!(error.contains(what), "{error} instead of {what}");
    }
    let refused = ServerTlsContext::load(SslMode::VerifyCa, None, None);
    assert!(refused.err().unwrap().to_string().contains("needs one"));
    let refused = ServerTlsContext::load(SslMode::Require, Some(&damaged), None);
    assert!(refused.err().unwrap().to_string().contains("damaged"));
}

#[test]
fn an_expired_certificate_does_not_stop_the_start() {
    let files = Files::new();
    let old = authority("test").issue_with("localhost", ec_key(), (-20, -10), false);
    let (cert, key) = (files.cert("cert", &old), files.key("key", &old));
    assert!(ClientTlsContext::load(&cert, &key, None).is_ok());
}
