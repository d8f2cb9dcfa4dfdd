//! Learns the names of custom settings from what a client sends: from `SET` and
//! `set_config` in the text of a Query or a Parse, and from a Bind whose statement gives
//! `set_config` its name as a parameter.
//!
//! It takes no text apart: what looks like a `SET` counts as one wherever it stands, in
//! the body of a function too.  A name too many is asked for in vain, and that is all.
//! A name that only the server puts together is not seen.
//!
//! Invariant: what is found does not depend on the pieces that a message comes in.  So
//! nothing counts that the end of a piece might have cut.

use std::collections::VecDeque;
use std::sync::Arc;

use memchr::{memchr2, memchr2_iter};

use super::super::{Piece, RequestWatcher, SessionNames, Watch};
use super::words::{identifier, is_of_word, skip_space};
use crate::message::{FrontendTag, split_count, split_cstr, split_value};

/// What makes a name has to stand within so many bytes from its `SET` or `set_config` on:
/// bounds what a text costs that looks like many of them.
const REACH: usize = 256;
/// Statements of one client that get a name as a parameter; an application has one or two.
const MOST_STATEMENTS: usize = 32;
/// Parameters of one statement that are names.
const MOST_PARAMETERS: usize = 32;

/// Something found in a text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    /// A name.
    Name(Vec<u8>),
    /// The number of the parameter that a name will come by, from 1.
    Parameter(u16),
}

/// Looks at one client's requests.
pub(in super::super) struct NameWatcher {
    names: Arc<SessionNames>,
    statements: Statements,
    inside: Option<Inside>,
}

/// A Query or Parse that was passed on before it was whole.
struct Inside {
    /// What is prepared by it.
    statement: Option<Vec<u8>>,
    end: End,
}

/// The end of what has come of a message: as much as something may begin in that goes on
/// behind it.
struct End {
    bytes: Vec<u8>,
    /// The byte before that.
    before: Option<u8>,
}

/// The client's statements that get names as parameters, and the numbers of these.
#[derive(Default)]
struct Statements(VecDeque<(Vec<u8>, Vec<u16>)>);

impl NameWatcher {
    pub(in super::super) fn new(names: &Arc<SessionNames>) -> Self {
        Self {
            names: Arc::clone(names),
            statements: Statements::default(),
            inside: None,
        }
    }

    /// Looks at a text of `statement` whose start is preceded by that byte.
    fn look(&mut self, before: Option<u8>, text: &[u8], statement: Option<&[u8]>) {
        let (names, statements) = (&self.names, &mut self.statements);
        look(before, text, &mut |found| match (found, statement) {
            (Found::Name(name), _) => names.learn(&name),
            (Found::Parameter(number), Some(name)) => statements.note(name, number),
            (Found::Parameter(_), None) => {}
        });
    }

    /// A Bind; `None`: the names that it gives have not come yet.
    fn bind(&self, body: &[u8]) -> Option<()> {
        let (_portal, rest) = split_cstr(body)?;
        let (statement, rest) = split_cstr(rest)?;
        let Some(numbers) = self.statements.names_of(statement) else {
            return Some(());
        };
        // A text has the same bytes in both formats.
        let (formats, rest) = split_count(rest)?;
        let (count, mut rest) = split_count(rest.get(usize::from(formats) * 2..)?)?;
        let last = numbers.iter().max().copied().unwrap_or_default();
        for number in 1..=count.min(last) {
            let (value, behind) = split_value(rest)?;
            if let (true, Some(value)) = (numbers.contains(&number), value) {
                self.names.learn(value);
            }
            rest = behind;
        }
        Some(())
    }
}

impl RequestWatcher for NameWatcher {
    fn message(&mut self, tag: FrontendTag, body: Piece<'_>) -> Watch {
        self.inside = None;
        let bytes = body.bytes();
        match tag {
            FrontendTag::BIND
                if !self.statements.0.is_empty()
                    && self.bind(bytes).is_none()
                    && matches!(body, Piece::Begun(_)) =>
            {
                return Watch::Wait;
            }
            FrontendTag::QUERY | FrontendTag::PARSE => {
                let is_parse = tag == FrontendTag::PARSE;
                let statement = split_cstr(bytes).filter(|_| is_parse).map(|(name, _)| name);
                match (statement, body) {
                    (Some(name), _) => self.statements.forget(name),
                    (None, Piece::Begun(_)) if is_parse => return Watch::Wait,
                    (None, _) => {}
                }
                self.look(None, bytes, statement);
                if let Piece::Begun(_) = body {
                    self.inside = Some(Inside {
                        statement: statement.map(<[u8]>::to_vec),
                        end: End::of(None, bytes),
                    });
                }
            }
            _ => {}
        }
        Watch::Pass
    }

    fn more(&mut self, body: &[u8]) {
        let Some(Inside { statement, end }) = self.inside.take() else {
            return;
        };
        let End { mut bytes, before } = end;
        let last = bytes.last().copied().or(before);
        bytes.extend_from_slice(body.get(..REACH).unwrap_or(body));
        // What begins before this piece, then what begins in it.
        self.look(before, &bytes, statement.as_deref());
        self.look(last, body, statement.as_deref());
        let end = if body.len() > REACH {
            End::of(None, body)
        } else {
            End::of(before, &bytes)
        };
        self.inside = Some(Inside { statement, end });
    }
}

impl End {
    /// Of a text that is preceded by that byte.
    fn of(before: Option<u8>, text: &[u8]) -> Self {
        let (before, bytes) = match text.len().checked_sub(REACH) {
            None | Some(0) => (before, text),
            Some(cut) => (
                text.get(cut - 1).copied(),
                text.get(cut..).unwrap_or_default(),
            ),
        };
        Self {
            bytes: bytes.to_vec(),
            before,
        }
    }
}

impl Statements {
    fn names_of(&self, statement: &[u8]) -> Option<&[u16]> {
        let known = self.0.iter().find(|(name, _)| name == statement);
        known.map(|(_, numbers)| numbers.as_slice())
    }

    fn forget(&mut self, statement: &[u8]) {
        self.0.retain(|(name, _)| name != statement);
    }

    fn note(&mut self, statement: &[u8], number: u16) {
        let place = self.0.iter().position(|(name, _)| name == statement);
        let known = place.and_then(|place| self.0.get_mut(place));
        if let Some((_, numbers)) = known {
            if numbers.len() < MOST_PARAMETERS && !numbers.contains(&number) {
                numbers.push(number);
            }
            return;
        }
        if self.0.len() == MOST_STATEMENTS {
            self.0.pop_front();
        }
        self.0.push_back((statement.to_vec(), vec![number]));
    }
}

/// Finds the names in a text.
fn look(before: Option<u8>, text: &[u8], found: &mut impl FnMut(Found)) {
    // Most texts end here.
    if memchr2(b'.', b'$', text).is_none() {
        return;
    }
    let mut from = 0;
    while let Some(at) = find_set(text, from) {
        from = at + SET.len();
        let before = match at.checked_sub(1) {
            Some(at) => text.get(at).copied(),
            None => before,
        };
        if before.is_some_and(is_of_word) {
            continue;
        }
        let end = text.len().min(at + REACH);
        let behind = text.get(from..end).unwrap_or_default();
        let what = match strip_word(behind, b"_config") {
            Some(arguments) => name_in_call(arguments),
            None => name_in_set(behind),
        };
        if let Some(what) = what {
            found(what);
        }
    }
}

const SET: &[u8] = b"set";

/// Where the next `set` begins, in whatever case.
fn find_set(text: &[u8], from: usize) -> Option<usize> {
    /// So many places at once, in a loop that the compiler makes vectors of: 0.06 ns a
    /// byte, where each `s` of a text looked at alone costs 1.3.
    const STEP: usize = 64;
    const STRETCH: usize = STEP + SET.len() - 1;
    let mut start = from;
    while let Some(stretch) = text.get(start..start + STRETCH) {
        let [s, e, t] = [0, 1, 2].map(|skip| stretch.get(skip..skip + STEP).unwrap_or_default());
        let any = s.iter().zip(e).zip(t).fold(false, |any, ((s, e), t)| {
            any | (((s | 0x20) == b's') & ((e | 0x20) == b'e') & ((t | 0x20) == b't'))
        });
        if any {
            break;
        }
        start += STEP;
    }
    let rest = text.get(start..)?;
    let is_set = |at: &usize| {
        let word = rest.get(*at..*at + SET.len());
        word.is_some_and(|word| word.eq_ignore_ascii_case(SET))
    };
    let place = memchr2_iter(b's', b'S', rest).find(is_set);
    place.map(|at| start + at)
}

/// What follows `word`, in whatever case, where `text` begins with it.
fn strip_word<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let (begin, rest) = text.split_at_checked(word.len())?;
    let ends = rest.first().is_some_and(|byte| !is_of_word(*byte));
    (begin.eq_ignore_ascii_case(word) && ends).then_some(rest)
}

/// What `SET` sets: `[SESSION | LOCAL] name = …`, or `TO`.
fn name_in_set(behind: &[u8]) -> Option<Found> {
    // A word of its own.
    let sql = skip_space(behind);
    if sql.len() == behind.len() && !sql.starts_with(b"\"") {
        return None;
    }
    let (mut name, mut rest) = identifier(sql)?;
    let scope = [b"session".as_slice(), b"local"].contains(&name.as_slice());
    if scope && !skip_space(rest).starts_with(b".") {
        (name, rest) = identifier(skip_space(rest))?;
    }
    rest = skip_space(rest);
    while let Some(further) = rest.strip_prefix(b".") {
        let (word, behind) = identifier(skip_space(further))?;
        name.push(b'.');
        name.extend(word);
        rest = skip_space(behind);
    }
    let is_set = rest.starts_with(b"=") || strip_word(rest, b"to").is_some();
    is_set.then_some(Found::Name(name))
}

/// What `set_config` sets: its first argument, a literal or a parameter.
fn name_in_call(behind: &[u8]) -> Option<Found> {
    // It may be an identifier in quotes.
    let open = skip_space(behind.strip_prefix(b"\"").unwrap_or(behind));
    let mut argument = skip_space(open.strip_prefix(b"(")?);
    if let Some(rest) = strip_word(argument, b"setting_name") {
        let rest = skip_space(rest);
        let rest = rest.strip_prefix(b"=>").or(rest.strip_prefix(b":="))?;
        argument = skip_space(rest);
    }
    if let Some(number) = argument.strip_prefix(b"$") {
        let end = number.iter().position(|byte| !byte.is_ascii_digit())?;
        let number = std::str::from_utf8(number.get(..end)?).ok()?;
        return number.parse().ok().map(Found::Parameter);
    }
    // Doubled where the call stands in a literal itself; E and N say how it is to be read.
    let quoted = match argument {
        [b'E' | b'e' | b'N' | b'n', rest @ ..] => rest,
        _ => argument,
    };
    let mut literal = quoted.strip_prefix(b"'")?;
    while let Some(doubled) = literal.strip_prefix(b"'") {
        literal = doubled;
    }
    let end = literal.iter().position(|byte| *byte == b'\'')?;
    literal.get(..end).map(|name| Found::Name(name.to_vec()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]
mod tests;
