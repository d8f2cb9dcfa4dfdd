//! The scanner: however a stream is cut, the same frames are seen and the same
//! bytes let go, and never a part of a header.

use bolero::check;
use sqlproxy::internal::{HEADER_BYTES, Scanner, Verdict};

use super::{INPUTS, Input};

/// A frame as the reference sees it: type, start, and end.
type Seen = (u8, usize, usize);

/// Frames of these types are held back until they are whole.
fn is_held(tag: u8) -> bool {
    tag == b'Z'
}

/// The plainest walk over a whole stream: frames whose header is there, how far
/// the stream may go out, and whether it ends at a header that is none.
fn walk(stream: &[u8]) -> (Vec<Seen>, usize, bool) {
    let mut seen = Vec::new();
    let mut start = 0;
    while start + HEADER_BYTES <= stream.len() {
        let length: [u8; 4] = stream[start + 1..start + 5].try_into().unwrap();
        let length = i32::from_be_bytes(length);
        if length < 4 {
            return (seen, start, true);
        }
        let end = start + 1 + length as usize;
        if end > stream.len() && is_held(stream[start]) {
            return (seen, start, false);
        }
        seen.push((stream[start], start, end));
        if end > stream.len() {
            return (seen, stream.len(), false);
        }
        start = end;
    }
    (seen, start, false)
}

/// Takes the stream in pieces, as a processor does.
struct Relay {
    scanner: Scanner,
    buffer: Vec<u8>,
    seen: Vec<Seen>,
    sent: Vec<u8>,
}

impl Relay {
    /// False at a header that is none.
    fn take(&mut self, piece: &[u8]) -> bool {
        self.buffer.extend_from_slice(piece);
        let (sent, seen) = (self.sent.len(), &mut self.seen);
        let result = self.scanner.scan(&self.buffer, |frame| {
            let start = sent + frame.start;
            if let Some(body) = frame.body {
                assert_eq!(body.len() + HEADER_BYTES, frame.frame_bytes);
            } else if is_held(frame.tag) {
                return Verdict::Hold;
            }
            seen.push((frame.tag, start, start + frame.frame_bytes));
            Verdict::Pass
        });
        let Ok(count) = result else {
            return false;
        };
        self.sent.extend(self.buffer.drain(..count));
        let end = self.sent.len();
        let inside = self.seen.last().is_some_and(|last| end < last.2);
        assert_eq!(self.scanner.is_inside(), inside);
        if let Some(last) = self.seen.last() {
            assert!(end >= last.1 + HEADER_BYTES, "a header is cut");
            assert!(inside || end == last.2, "bytes behind the last frame");
        }
        true
    }
}

/// Pieces of 0 to 15 bytes, or the whole rest.
fn cut<'a>(mut stream: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for &cut in cuts {
        let (piece, rest) = stream.split_at(usize::from(cut % 16).min(stream.len()));
        pieces.push(piece);
        stream = rest;
    }
    pieces.push(stream);
    pieces
}

/// Frames of few types with short bodies, and now and then a length that is
/// none or very long.
fn stream_of(input: &mut Input<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !input.is_empty() {
        stream.push(b"ZDQS"[input.below(4)]);
        let length = match input.byte() {
            255 => i32::from_be_bytes([input.byte(), input.byte(), input.byte(), input.byte()]),
            254 => i32::from(input.byte() % 5),
            253 => i32::MAX,
            byte => 4 + i32::from(byte % 24),
        };
        stream.extend(length.to_be_bytes());
        let body = usize::try_from(length - 4.min(length)).unwrap_or(0).min(30);
        stream.extend((0..body).map(|_| input.byte()));
    }
    // The last one may miss its end.
    stream.truncate(stream.len() - input.below(4).min(stream.len()));
    stream
}

#[test]
fn frames() {
    check!(name = "frames")
        .with_iterations(INPUTS)
        .for_each(|bytes: &[u8]| {
            let mut input = Input(bytes);
            let raw = input.byte() % 4 == 0;
            let (cuts, rest) = input.0.split_at(input.0.len() / 3);
            let stream = if raw {
                rest.to_vec()
            } else {
                stream_of(&mut Input(rest))
            };
            let (seen, end, is_bad) = walk(&stream);
            for cuts in [&[], cuts] {
                let mut relay = Relay {
                    scanner: Scanner::default(),
                    buffer: Vec::new(),
                    seen: Vec::new(),
                    sent: Vec::new(),
                };
                let taken = cut(&stream, cuts).iter().all(|piece| relay.take(piece));
                assert_eq!(taken, !is_bad);
                assert_eq!(relay.seen, seen);
                assert!(stream.starts_with(&relay.sent));
                if is_bad {
                    assert!(relay.sent.len() <= end, "let go at a broken header");
                } else {
                    assert_eq!(relay.sent.len(), end);
                }
            }
        });
}
