//! The read buffer of one direction: small while it is quiet, large in bulk.

use std::io;
use std::time::Duration;

use crate::socket::{Received, Wait};
use crate::stream::Stream;

/// Buffer of a direction that has been quiet.  Most requests and many answers fit.
const SMALL_BUFFER_BYTES: usize = 512;
/// Taken when a read fills the small one.
const MEDIUM_BUFFER_BYTES: usize = 16 * 1024;
/// Taken when a read fills the medium one: what a relay that parses nothing
/// uses; larger ones measured no faster.
pub(super) const LARGE_BUFFER_BYTES: usize = 64 * 1024;
/// A larger buffer is given back after this long without a byte.
const BUFFER_IDLE: Duration = Duration::from_secs(1);
/// A read buffer of three sizes.
pub(super) struct Buffer {
    pub(super) bytes: Vec<u8>,
}

impl Buffer {
    pub(super) const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Makes room for the next read: grows where the last one filled it or what
    /// is held back leaves no room.
    pub(super) fn make_room(&mut self, filled: bool) {
        let capacity = self.bytes.capacity();
        let wanted = match capacity {
            0 => SMALL_BUFFER_BYTES,
            _ if !filled && self.bytes.len() < capacity => return,
            _ if capacity < MEDIUM_BUFFER_BYTES => MEDIUM_BUFFER_BYTES,
            _ if capacity < LARGE_BUFFER_BYTES => LARGE_BUFFER_BYTES,
            _ if self.bytes.len() < capacity => return,
            // Only what is held back fills it: a batch that waits its turn.
            _ => capacity.saturating_mul(2),
        };
        self.bytes
            .reserve_exact(wanted.saturating_sub(self.bytes.len()));
    }

    pub(super) const fn is_grown(&self) -> bool {
        self.bytes.capacity() > SMALL_BUFFER_BYTES
    }

    pub(super) fn give_back(&mut self) {
        if self.bytes.len() < SMALL_BUFFER_BYTES {
            self.bytes.shrink_to(SMALL_BUFFER_BYTES);
        }
    }

    /// Removes the first `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        if count >= self.bytes.len() {
            self.bytes.clear();
        } else {
            self.bytes.drain(..count);
        }
    }

    pub(super) fn first(&self, count: usize) -> &[u8] {
        self.bytes.get(..count).unwrap_or(&self.bytes)
    }
}

/// One read of a loop: appends to the buffer, grows and shrinks it.
pub(super) struct Reader {
    pub(super) buffer: Buffer,
    filled: bool,
}

impl Reader {
    pub(super) const fn new(leftover: Vec<u8>) -> Self {
        Self {
            buffer: Buffer::new(leftover),
            filled: false,
        }
    }

    /// Reads from `from`; what has long been silent gives its buffers back, those
    /// for writing to `to` as well.
    pub(super) fn read(
        &mut self,
        from: &Stream,
        to: &Stream,
        inside: bool,
    ) -> io::Result<Received> {
        loop {
            self.buffer.make_room(self.filled);
            let room = self.buffer.bytes.capacity() - self.buffer.bytes.len();
            let wait = if inside {
                Wait::Data
            } else {
                Wait::Interruptible {
                    idle: self.buffer.is_grown().then_some(BUFFER_IDLE),
                }
            };
            let received = from.read(&mut self.buffer.bytes, wait)?;
            self.filled = received == Received::Bytes(room);
            if received != Received::Idle {
                return Ok(received);
            }
            self.buffer.give_back();
            to.release_write_buffer();
        }
    }
}
