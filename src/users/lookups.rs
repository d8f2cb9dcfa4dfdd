//! How many lookups there are at once: few, so that a crowd of strangers does not become
//! one of connections to the servers, and no more than half of them for one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// At once, each with a connection to a backend.
const LOOKUPS: usize = 16;
/// Of one address's clients.
const LOOKUPS_OF_AN_ADDRESS: usize = LOOKUPS / 2;

/// How often one that waits for its turn looks whether its client still has its place, and
/// whether a turn has come that another one was woken for and could not take.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Those under way.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    under_way: Mutex<HashMap<IpAddr, usize>>,
    ended: Condvar,
}

/// One of them; makes room when dropped.
#[derive(Debug)]
pub(super) struct Lookup<'a> {
    lookups: &'a Lookups,
    address: IpAddr,
}

impl Lookups {
    /// Waits for a turn until `deadline`, or until `is_over`.
    #[must_use]
    pub(super) fn take(
        &self,
        address: IpAddr,
        deadline: Instant,
        is_over: impl Fn() -> bool,
    ) -> Option<Lookup<'_>> {
        let mut under_way = self.under_way.lock();
        loop {
            let all: usize = under_way.values().sum();
            let own = under_way.get(&address).copied().unwrap_or_default();
            if all < LOOKUPS && own < LOOKUPS_OF_AN_ADDRESS {
                *under_way.entry(address).or_default() += 1;
                return Some(Lookup {
                    lookups: self,
                    address,
                });
            }
            let look = deadline.min(Instant::now() + LOOK_INTERVAL);
            self.ended.wait_until(&mut under_way, look);
            // Outside of the lock: whoever asks takes another one.
            let over = parking_lot::MutexGuard::unlocked(&mut under_way, &is_over);
            if over || Instant::now() >= deadline {
                return None;
            }
        }
    }
}

impl Drop for Lookup<'_> {
    fn drop(&mut self) {
        let mut under_way = self.lookups.under_way.lock();
        if let Some(count) = under_way.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.address);
            }
        }
        // Just one: thousands may wait.
        self.lookups.ended.notify_one();
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a failed expectation is the test's failure"
)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_others() {
        let lookups = Lookups::default();
        let (greedy, modest, third) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), [10, 0, 0, 3]);
        let now = Instant::now();
        let take = |address| lookups.take(address, now, || false);
        let mut taken: Vec<_> = std::iter::from_fn(|| take(greedy)).collect();
        assert_eq!(taken.len(), LOOKUPS_OF_AN_ADDRESS);
        let others: Vec<_> = std::iter::from_fn(|| take(modest)).collect();
        assert_eq!(others.len(), LOOKUPS - LOOKUPS_OF_AN_ADDRESS);
        assert!(take(third.into()).is_none(), "all are taken");
        taken.pop().unwrap();
        assert!(take(third.into()).is_some());
    }

    #[test]
    fn one_that_waits_gets_its_turn_or_leaves_with_its_client() {
        let lookups = Lookups::default();
        let address = [10, 0, 0, 1].into();
        let soon = Instant::now() + Duration::from_secs(30);
        let mut taken: Vec<_> = (0..LOOKUPS_OF_AN_ADDRESS)
            .map(|_| lookups.take(address, soon, || false).unwrap())
            .collect();
        assert!(lookups.take(address, soon, || true).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lookups.take(address, soon, || false).is_some());
            taken.pop().unwrap();
            assert!(waiting.join().unwrap());
        });
    }
}
