//! How many heaps the allocator keeps: as many as there are cores, made at the start.
//!
//! It would make up to eight a core, each when a thread wants memory, and each keeps what
//! it has once taken.  A thread that gets none, because no memory map is left, gets no
//! memory at all (glibc, malloc/arena.c), which ends the process; in those that are there
//! it finds memory yet.

use std::num::NonZero;
use std::thread::available_parallelism;

use crossbeam_channel::bounded;

use crate::threads::{self, JoinHandle};
use crate::unchecked::limit_heaps;

/// Makes them; to be called before another thread starts.
pub fn share() {
    let most = available_parallelism().map_or(1, NonZero::get);
    limit_heaps(most);
    let (met, meeting) = bounded::<()>(most);
    let (all_met, wait) = bounded::<()>(0);
    let threads: Vec<_> = (1..most)
        .map_while(|_| {
            let (met, wait) = (met.clone(), wait.clone());
            // Its name alone is memory.  It keeps its heap until all have theirs.
            let work = move || {
                let _ = met.send(());
                let _ = wait.recv();
            };
            threads::spawn("heap".to_owned(), work).ok()
        })
        .collect();
    for _ in &threads {
        let _ = meeting.recv();
    }
    drop(all_met);
    threads.into_iter().for_each(JoinHandle::join);
}
