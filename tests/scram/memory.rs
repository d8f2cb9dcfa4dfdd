//! What of its secrets the proxy keeps, looked for in its memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use openssl::hash::MessageDigest;
use openssl::pkcs5::pbkdf2_hmac;
use openssl::pkey::PKey;
use openssl::sign::Signer;

use super::{PASSWORD, Site, connect, who};
use crate::support::poll_kernel;
use crate::support::proxy::Proxy;

/// RFC 5802, section 3.
fn client_key(verifier: &str) -> Vec<u8> {
    let mut parts = verifier.split(['$', ':']).skip(1);
    let iterations = parts.next().unwrap().parse().unwrap();
    let salt = openssl::base64::decode_block(parts.next().unwrap()).unwrap();
    let mut salted = [0; 32];
    let digest = MessageDigest::sha256();
    pbkdf2_hmac(PASSWORD.as_bytes(), &salt, iterations, digest, &mut salted).unwrap();
    let key = PKey::hmac(&salted).unwrap();
    let mut signer = Signer::new(digest, &key).unwrap();
    signer.update(b"Client Key").unwrap();
    signer.sign_to_vec().unwrap()
}

/// How often `wanted` is in what the proxy may write to.
fn count(proxy: &Proxy, wanted: &[u8]) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", proxy.pid())).unwrap();
    let memory = File::open(format!("/proc/{}/mem", proxy.pid())).unwrap();
    let mut found = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // What has been unmapped meanwhile holds nothing any more.
        if memory.read_exact_at(&mut bytes, start).is_ok() {
            found += bytes
                .windows(wanted.len())
                .filter(|it| *it == wanted)
                .count();
        }
    }
    found
}

#[test]
fn keys_are_gone_with_their_session() {
    let site = Site::new();
    let key = client_key(&site.verifier("anna"));
    // Its second half: what is freed loses its first bytes to the allocator.
    let key = &key[16..];
    let proxy = site.by_file().start();
    assert_eq!(count(&proxy, key), 0);
    let mut client = connect(&proxy, "anna");
    proxy.wait_log(0, |line| line.is("session opened"));
    for _ in 0..3 {
        proxy.migrate().assert_all_moved(1);
    }
    assert_eq!(who(&mut client), "anna");
    // In one place, wherever its owner has been moved to.
    poll_kernel(
        || count(&proxy, key) == 1,
        || format!("it is there {} times", count(&proxy, key)),
    );
    drop(client);
    poll_kernel(
        || count(&proxy, key) == 0,
        || format!("it is there {} times", count(&proxy, key)),
    );
}
