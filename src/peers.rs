//! Other processes of the proxy behind the same address (`[[peer]]`): a cancel request that
//! the network gives to the wrong one is passed on to the one whose session it means.
//!
//! The key that a client gets names the process that gave it out.  The first four bytes,
//! which the protocol calls the process id, are two bits of nothing, fourteen of the
//! peer's id and sixteen of chance; the secret is chance alone, so that 48 bits are left
//! to guess with protocol 3.0.  The first bit, set, says that a peer has passed the
//! request on already: nobody does it a second time, whatever the files say.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;

use crate::config::{Address, Peers as Configured};
use crate::connection_limit::{Limit, Permit};

/// Requests that are on their way to peers, or wait for it, at once; further ones are
/// closed.  Anybody can make up a key that names a peer.
const MAX_REQUESTS: usize = 64;

/// Connections to peers at once.
const MAX_DIALS: usize = 16;

/// In a key's first byte.
const PASSED_ON: u8 = 0x80;
const ID: u8 = 0x3f;

/// The processes that share an address with this one.
pub(crate) struct Peers {
    /// This process's id; `None`: it has no peers, and its keys are chance alone.
    own: Option<u16>,
    others: RwLock<HashMap<u16, Address>>,
    requests: Arc<Limit>,
    dials: Arc<Limit>,
}

/// What a cancel request's key says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeyRead {
    /// As its client got it.
    pub key: Vec<u8>,
    /// Where its session is, if not here.
    pub elsewhere: Option<Address>,
}

/// A request may go to a peer.
pub(crate) struct Way {
    _request: Permit,
    _dial: Permit,
}

impl Peers {
    /// As the file has them.
    #[must_use]
    pub(crate) fn new(configured: &Configured) -> Self {
        let peers = Self {
            own: configured.own,
            others: RwLock::default(),
            requests: Limit::new(MAX_REQUESTS),
            dials: Limit::new(MAX_DIALS),
        };
        peers.configure(configured);
        peers
    }

    /// Takes over their addresses.  This process's own id stays: its clients have it.
    pub(crate) fn configure(&self, configured: &Configured) {
        let others = configured.peers.iter();
        *self.others.write() = others
            .filter(|peer| Some(peer.id) != self.own)
            .map(|peer| (peer.id, peer.address.clone()))
            .collect();
    }

    /// Writes this process's id into a key.
    pub(crate) fn stamp(&self, key: &mut [u8]) {
        if let (Some(own), [first, second, ..]) = (self.own, key) {
            [*first, *second] = own.to_be_bytes();
        }
    }

    /// What a request's key says.
    #[must_use]
    pub(crate) fn read(&self, mut key: Vec<u8>) -> KeyRead {
        let mut elsewhere = None;
        if let (Some(own), [first, second, ..]) = (self.own, key.as_mut_slice()) {
            let passed_on = *first & PASSED_ON != 0;
            *first &= !PASSED_ON;
            let id = u16::from_be_bytes([*first & ID, *second]);
            if id != own && !passed_on {
                elsewhere = self.others.read().get(&id).cloned();
            }
        }
        KeyRead { key, elsewhere }
    }

    /// A key as it goes to a peer.
    #[must_use]
    pub(crate) fn passed_on(mut key: Vec<u8>) -> Vec<u8> {
        if let Some(first) = key.first_mut() {
            *first |= PASSED_ON;
        }
        key
    }

    /// Waits for its turn until `deadline`.  `None`: too many are there already, or it has
    /// not come.
    #[must_use]
    pub(crate) fn way(&self, deadline: Instant) -> Option<Way> {
        let request = self.requests.take()?;
        let dial = self.dials.take_until(deadline)?;
        Some(Way {
            _request: request,
            _dial: dial,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PeerConfig;

    fn address(port: u16) -> Address {
        Address {
            host: "127.0.0.1".to_owned(),
            port,
        }
    }

    fn peers(own: Option<u16>) -> Peers {
        let peer = |id, port| PeerConfig {
            id,
            address: address(port),
        };
        Peers::new(&Configured {
            own,
            peers: vec![peer(1, 11), peer(16_383, 22)],
        })
    }

    #[test]
    fn a_key_leads_to_the_process_that_gave_it_out_and_no_further() {
        let (first, last) = (peers(Some(1)), peers(Some(16_383)));
        let mut key = vec![0xff; 8];
        last.stamp(&mut key);
        assert_eq!(key, [0x3f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        let found = first.read(key.clone());
        assert_eq!(found.key, key);
        assert_eq!(found.elsewhere, Some(address(22)));
        let sent = Peers::passed_on(key.clone());
        for peers in [&first, &last] {
            let found = peers.read(sent.clone());
            assert_eq!((found.key, found.elsewhere), (key.clone(), None));
        }
        assert_eq!(last.read(key).elsewhere, None, "its own");
    }

    #[test]
    fn a_key_of_no_peer_is_looked_for_here() {
        let first = peers(Some(1));
        for key in [vec![0, 7, 1, 1, 1, 1, 1, 1], vec![], vec![1]] {
            let found = first.read(key.clone());
            assert_eq!((found.key, found.elsewhere), (key, None));
        }
        // Without peers a key is chance, whatever it looks like.
        let alone = peers(None);
        let key = vec![0xff, 0xff, 1, 1, 1, 1, 1, 1];
        let mut stamped = key.clone();
        alone.stamp(&mut stamped);
        assert_eq!(stamped, key);
        assert_eq!(alone.read(key.clone()).key, key);
    }

    #[test]
    fn as_many_requests_as_anybody_likes_take_no_more_than_their_share() {
        let first = peers(Some(1));
        let now = Instant::now();
        let ways: Vec<_> = (0..MAX_DIALS).map(|_| first.way(now)).collect();
        assert!(ways.iter().all(Option::is_some));
        assert!(first.way(now).is_none());
        drop(ways);
        assert!(first.way(now).is_some());
    }
}
