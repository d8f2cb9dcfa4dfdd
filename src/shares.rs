//! How many sessions each user and each database has (`[limits]`).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::Limits;
use crate::error::{Refusal, shown};

/// Whose sessions are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Of {
    User(Vec<u8>),
    Database(Vec<u8>),
}

/// All counts; only those above zero are kept.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    counts: Mutex<HashMap<Of, usize>>,
}

/// A session's part of both; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    user: Of,
    database: Of,
}

impl Shares {
    /// Counts a session of `user` in `database`.
    ///
    /// # Errors
    /// [`Refusal::PerUser`] or [`Refusal::PerDatabase`] where that would be too many.
    pub(crate) fn take(
        self: &Arc<Self>,
        user: &[u8],
        database: &[u8],
        limits: &Limits,
    ) -> Result<Share, Refusal> {
        let name = |bytes: &[u8]| shown(&String::from_utf8_lossy(bytes));
        let of_user = Of::User(user.to_vec());
        let of_database = Of::Database(database.to_vec());
        let mut counts = self.counts.lock();
        let has = |of: &Of| counts.get(of).copied().unwrap_or_default();
        if let Some(limit) = limits.per_user.filter(|limit| has(&of_user) >= *limit) {
            return Err(Refusal::PerUser(limit, name(user)));
        }
        if let Some(limit) = limits
            .per_database
            .filter(|limit| has(&of_database) >= *limit)
        {
            return Err(Refusal::PerDatabase(limit, name(database)));
        }
        *counts.entry(of_user.clone()).or_default() += 1;
        *counts.entry(of_database.clone()).or_default() += 1;
        Ok(Share {
            shares: Arc::clone(self),
            user: of_user,
            database: of_database,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.shares.counts.lock();
        for of in [&self.user, &self.database] {
            if let Some(count) = counts.get_mut(of) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(of);
                }
            }
        }
    }
}
