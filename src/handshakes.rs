//! Connections between their accept and the end of their login.
//!
//! There are `max_connections` places and [`EXTRA_CONNECTIONS`] more, so that
//! sessions leave room for those that ask for one.  Where strangers have taken it
//! all, a newcomer takes the place of one that is refused already, or has kept the proxy
//! waiting: of the address that has most of them, the oldest.  A few places more are for cancel
//! requests alone, which have to get through when all else is full.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::connection_limit::{Limit, Permit};
use crate::limits::{CANCEL_CONNECTIONS, EXTRA_CONNECTIONS, PEER_CONNECTIONS};
use crate::socket::ReadCloser;

/// A client that has kept the proxy waiting for this long may have to make room: it
/// has what it needs to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a new connection stands.
pub(crate) enum Place {
    /// It may ask for anything.
    Any(Handshake),
    /// It is served if it is a CancelRequest.
    CancelOnly(Handshake),
}

impl Place {
    /// The connection, whatever it may ask for.
    pub(crate) const fn handshake(&self) -> &Handshake {
        match self {
            Self::Any(handshake) | Self::CancelOnly(handshake) => handshake,
        }
    }
}

struct Entry {
    number: u64,
    address: IpAddr,
    permit: Permit,
    cancel_only: bool,
    /// Since when the client's bytes are waited for.
    waiting: Option<Instant>,
    /// It is refused, and only made to wait for that.
    refused: bool,
    /// Wakes the thread that waits for them.
    closer: Option<ReadCloser>,
}

impl Entry {
    /// Its thread finds itself evicted and tells the client.
    fn close(self) -> Permit {
        if let Some(closer) = self.closer {
            closer.close_read();
        }
        self.permit
    }
}

#[derive(Default)]
struct Table {
    next: u64,
    /// The oldest first.
    entries: Vec<Entry>,
}

/// All of them.
pub(crate) struct Handshakes {
    table: Mutex<Table>,
    connections: Arc<Limit>,
    /// For those who have shown their CancelRequest when they are accepted.
    cancels: Arc<Limit>,
    /// For those who may yet show one.
    silent: Arc<Limit>,
    /// For those who come from peers.
    peers: Arc<Limit>,
}

/// One of them; gives its place back when dropped.
pub(crate) struct Handshake {
    handshakes: Arc<Handshakes>,
    number: u64,
}

impl Handshakes {
    /// Beside `max_connections` sessions.
    #[must_use]
    pub(crate) fn new(max_connections: usize) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            connections: Limit::new(max_connections + EXTRA_CONNECTIONS),
            cancels: Limit::new(CANCEL_CONNECTIONS / 2),
            silent: Limit::new(CANCEL_CONNECTIONS / 2),
            peers: Limit::new(PEER_CONNECTIONS),
        })
    }

    /// Takes over a new `max_connections`; those who are there stay.
    pub(crate) fn set_max_connections(&self, max_connections: usize) {
        self.connections.set(max_connections + EXTRA_CONNECTIONS);
    }

    /// Waits until no connection is left, or until `deadline`; tells which.
    #[must_use]
    pub(crate) fn wait_empty(&self, deadline: Instant) -> bool {
        [&self.connections, &self.cancels, &self.silent, &self.peers]
            .iter()
            .all(|limit| limit.wait_empty(deadline))
    }

    /// A place for a connection from `address`, if need be that of another one.
    /// `shows_cancel`, asked only where there is none, tells whether a CancelRequest
    /// has come with it.
    #[must_use]
    pub(crate) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        shows_cancel: impl FnOnce() -> bool,
    ) -> Option<Place> {
        if let Some(permit) = self.connections.take().or_else(|| self.evict()) {
            return Some(Place::Any(self.add(address, permit, false)));
        }
        let shown = shows_cancel().then(|| self.cancels.take()).flatten();
        let permit = shown
            .or_else(|| self.silent.take())
            .or_else(|| self.evict_cancel_only())?;
        Some(Place::CancelOnly(self.add(address, permit, true)))
    }

    /// A place for a peer's cancel request.
    #[must_use]
    pub(crate) fn enter_peer(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let permit = self.peers.take()?;
        Some(Place::CancelOnly(self.add(address, permit, true)))
    }

    fn add(self: &Arc<Self>, address: IpAddr, permit: Permit, cancel_only: bool) -> Handshake {
        let mut table = self.table.lock();
        table.next += 1;
        let number = table.next;
        table.entries.push(Entry {
            number,
            address,
            permit,
            cancel_only,
            waiting: Some(Instant::now()),
            refused: false,
            closer: None,
        });
        Handshake {
            handshakes: Arc::clone(self),
            number,
        }
    }

    /// Ends a client that keeps the proxy waiting, for its place.
    fn evict(&self) -> Option<Permit> {
        let mut table = self.table.lock();
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        for entry in &table.entries {
            *held.entry(entry.address).or_default() += 1;
        }
        let has_waited = |entry: &Entry| {
            !entry.cancel_only
                && entry.closer.is_some()
                && (entry.refused || entry.waiting.is_some_and(|at| at.elapsed() >= PATIENCE))
        };
        let entries = table.entries.iter().enumerate().rev();
        let (index, _) = entries
            .filter(|(_, entry)| has_waited(entry))
            .max_by_key(|(_, entry)| (entry.refused, held.get(&entry.address)))?;
        let evicted = table.entries.remove(index);
        drop(table);
        Some(evicted.close())
    }

    /// Ends the oldest client that may only cancel and has not said so.  It needs no
    /// time for that: a CancelRequest comes with the connection.
    fn evict_cancel_only(&self) -> Option<Permit> {
        let mut table = self.table.lock();
        let is_silent =
            |entry: &Entry| entry.cancel_only && entry.closer.is_some() && entry.waiting.is_some();
        let index = table.entries.iter().position(is_silent)?;
        let evicted = table.entries.remove(index);
        drop(table);
        Some(evicted.close())
    }

    fn remove(&self, number: u64) -> Option<Permit> {
        let mut table = self.table.lock();
        let index = table.entries.iter().position(|e| e.number == number)?;
        Some(table.entries.remove(index).permit)
    }

    fn with<T>(&self, number: u64, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut table = self.table.lock();
        table
            .entries
            .iter_mut()
            .find(|e| e.number == number)
            .map(change)
    }
}

impl Handshake {
    /// The connection's socket is there, and can be woken by `closer`.
    pub(crate) fn set_closer(&self, closer: ReadCloser) {
        self.handshakes
            .with(self.number, |entry| entry.closer = Some(closer));
    }

    /// It comes from there, as its PROXY header says.
    pub(crate) fn set_address(&self, address: IpAddr) {
        self.handshakes
            .with(self.number, |entry| entry.address = address);
    }

    /// The proxy begins, or ends, to wait for the client's bytes.
    pub(crate) fn set_waiting(&self, waiting: bool) {
        let since = waiting.then(Instant::now);
        self.handshakes
            .with(self.number, |entry| entry.waiting = since);
    }

    /// It is refused and hears of it in a moment; until then its place is anybody's.
    pub(crate) fn set_refused(&self) {
        self.handshakes
            .with(self.number, |entry| entry.refused = true);
    }

    /// Whether its place is another one's by now.
    #[must_use]
    pub(crate) fn is_evicted(&self) -> bool {
        self.handshakes.with(self.number, |_| ()).is_none()
    }

    /// Its login is over: its permit, which the session keeps; `None` where it was
    /// evicted just now.
    #[must_use]
    pub(crate) fn logged_in(&self) -> Option<Permit> {
        self.handshakes.remove(self.number)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        // Outside the table's lock.
        drop(self.handshakes.remove(self.number));
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a failed expectation is the test's failure"
)]
mod tests {
    use super::*;

    fn any(place: Option<Place>) -> Handshake {
        match place.unwrap() {
            Place::Any(handshake) => handshake,
            Place::CancelOnly(_) => unreachable!("only a cancel may come"),
        }
    }

    /// As if it had waited for so long.
    fn age(handshake: &Handshake, seconds: u64) {
        let since = Instant::now().checked_sub(Duration::from_secs(seconds));
        handshake.handshakes.with(handshake.number, |entry| {
            entry.waiting = since;
            entry.closer = Some(ReadCloser::default());
        });
    }

    #[test]
    fn the_oldest_of_the_greediest_address_makes_room() {
        let handshakes = Handshakes::new(1);
        let (greedy, modest) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let lone = any(handshakes.enter(modest, || false));
        let others: Vec<_> = (0..EXTRA_CONNECTIONS)
            .map(|_| any(handshakes.enter(greedy, || false)))
            .collect();
        // All are new: nobody is ended for another, and cancels still come.
        let cancels: Vec<_> = (0..CANCEL_CONNECTIONS / 2)
            .map(|_| handshakes.enter(modest, || false).unwrap())
            .collect();
        assert!(
            cancels
                .iter()
                .all(|place| matches!(place, Place::CancelOnly(_)))
        );
        assert!(handshakes.enter(modest, || false).is_none());
        drop(cancels);
        age(&lone, 100);
        for other in others.iter().skip(2) {
            age(other, 2);
        }
        // The login of one goes on, so it is the next one's turn.
        others.get(2).unwrap().set_waiting(false);
        let newcomer = any(handshakes.enter(modest, || false));
        let evicted: Vec<_> = others
            .iter()
            .enumerate()
            .filter(|(_, other)| other.is_evicted())
            .map(|(index, _)| index)
            .collect();
        assert_eq!(evicted, [3]);
        assert!(!lone.is_evicted() && !newcomer.is_evicted());
        // One that is refused has lost nothing by it, and has not had to wait.
        let last = others.last().unwrap();
        last.set_waiting(false);
        last.set_refused();
        let another = any(handshakes.enter(modest, || false));
        assert!(last.is_evicted() && !newcomer.is_evicted());
        drop(another);
        // What is over makes room by itself.
        drop(others);
        let session = newcomer.logged_in().unwrap();
        drop((lone, newcomer, session));
        assert!(handshakes.wait_empty(Instant::now()));
    }
}
