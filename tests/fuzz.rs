//! What peers send, drawn at random and from a corpus: the readers of bytes
//! never panic, and agree with plainer ones.
//!
//! Each target takes bytes.  `cargo test` runs the corpus below `__fuzz__` and
//! some thousands of random inputs; `BOLERO_RANDOM_ITERATIONS` sets how many,
//! and `cargo bolero` searches with a fuzzer's eyes.

mod frames;
mod messages;
mod requests;

/// Random inputs of each target: a second or so.
const INPUTS: usize = 3_000;

/// The bytes of an input, taken from the front; zeros behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
