//! `peer_id` and `[[peer]]`.

use super::reader::Section;
use super::{Address, ConfigError};

/// Fourteen bits of a cancel key, see `peers`.
const MAX_ID: u64 = 16_383;

/// The processes that share an address with this one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peers {
    /// `peer_id`: which of them this process is; `None`: it has none.
    pub own: Option<u16>,
    /// `[[peer]]`: all of them, this one included or not.
    pub peers: Vec<PeerConfig>,
}

/// One `[[peer]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// `id`: 1 to 16,383, unique.
    pub id: u16,
    /// `address`: where it takes cancel requests from the others.
    pub address: Address,
}

impl Peers {
    /// Where this process listens for the others, if its own entry says so.
    #[must_use]
    pub(crate) fn own_address(&self) -> Option<&Address> {
        let own = |peer: &&PeerConfig| Some(peer.id) == self.own;
        self.peers.iter().find(own).map(|peer| &peer.address)
    }
}

pub(super) fn read_peers(root: &Section<'_>) -> Result<Peers, ConfigError> {
    let id = |section: &Section<'_>, key| -> Result<Option<u16>, ConfigError> {
        let id = section.integer(key, 1, MAX_ID)?;
        Ok(id.and_then(|id| u16::try_from(id).ok()))
    };
    let own = id(root, "peer_id")?;
    let mut peers: Vec<PeerConfig> = Vec::new();
    for section in root.sections("peer", &["id", "address"])? {
        let peer = PeerConfig {
            id: id(&section, "id")?
                .ok_or_else(|| section.missing("id", "an integer from 1 to 16383"))?,
            address: section
                .address("address", 1)?
                .ok_or_else(|| section.missing("address", "\"host:port\""))?,
        };
        if peers.iter().any(|other| other.id == peer.id) {
            let message = format!("expected a unique id, found {} again", peer.id);
            return Err(section.error("id", &message));
        }
        peers.push(peer);
    }
    if own.is_none() && !peers.is_empty() {
        let expected = "which of the [[peer]] sections this process is";
        return Err(root.missing("peer_id", expected));
    }
    Ok(Peers { own, peers })
}
