//! What a client has been told by ParameterStatus.

use std::ops::Range;
use std::sync::Arc;

use crate::message::put_parameter_status;

/// PostgreSQL 18 reports 15 parameters, CockroachDB fewer.
const MAX_NAMES: usize = 256;
/// Names and values together, each with its end.
const MAX_BYTES: usize = 64 * 1024;

/// The server parameters a client knows of, with their last values: at most 256 of
/// them and 64 KiB, whatever a server sends.  What is beyond is forwarded and not
/// remembered.
///
/// A pooler-less client takes `server_version`, `TimeZone` and the like from
/// ParameterStatus only, so after a transfer it has to hear what differs on the
/// new server.
///
/// Each session has two, what the server has told at the login and what the client
/// knows now, which are mostly the same: one piece of memory until one changes.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    /// Names and values as in a ParameterStatus, each ended by a zero.
    text: Arc<Vec<u8>>,
}

/// One name and its value.
struct Entry<'a> {
    name: &'a [u8],
    value: &'a [u8],
    /// Where both stand, ends included.
    place: Range<usize>,
}

impl Parameters {
    /// Notes a value.  One that finds no room is forgotten, never remembered wrongly.
    /// Neither name nor value has a zero in it.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        debug_assert!(!name.contains(&0) && !value.contains(&0), "a C string");
        let entry = [name, b"\0", value, b"\0"];
        let bytes = name.len() + value.len() + 2;
        let known = self.entries().find(|known| known.name == name);
        let place = match known {
            Some(known) if known.value == value => return,
            Some(Entry { place, .. }) if self.text.len() - place.len() + bytes > MAX_BYTES => {
                Arc::make_mut(&mut self.text).drain(place);
                return;
            }
            Some(Entry { place, .. }) => place,
            None => {
                let room = self.text.len() + bytes <= MAX_BYTES;
                if !room || self.entries().count() >= MAX_NAMES {
                    return;
                }
                self.text.len()..self.text.len()
            }
        };
        Arc::make_mut(&mut self.text).splice(place, entry.into_iter().flatten().copied());
    }

    /// The value of a parameter, where the server has told it.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let mut entries = self.entries();
        entries.find(|known| known.name == name).map(|it| it.value)
    }

    /// In the order in which they were first told.
    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let mut strings = self.text.get(start..)?.split(|&byte| byte == 0);
            // Behind the last end there is nothing, not even an end.
            let (name, value) = (strings.next()?, strings.next()?);
            let place = start..start + name.len() + value.len() + 2;
            start = place.end;
            Some(Entry { name, value, place })
        })
    }

    /// Takes over what differs between the logins on two servers, and appends to
    /// `out` a ParameterStatus for each.
    ///
    /// A parameter that the client has changed since is left alone: the restored
    /// session has the client's value, although the new server, which reports
    /// what it begins a session with, has told another.
    pub fn change_server(&mut self, old_login: &Self, new_login: &Self, out: &mut Vec<u8>) {
        for Entry { name, value, .. } in new_login.entries() {
            let begun_with = old_login.get(name);
            if begun_with != Some(value) && self.get(name) == begun_with {
                self.tell(name, value, out);
            }
        }
    }

    /// Takes over values that are true now, and appends to `out` a
    /// ParameterStatus for each that the client does not know yet.
    pub fn update(&mut self, now: &Self, out: &mut Vec<u8>) {
        for Entry { name, value, .. } in now.entries() {
            self.tell(name, value, out);
        }
    }

    fn tell(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        if self.get(name) != Some(value) {
            put_parameter_status(out, name, value);
            self.set(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        let mut parameters = Parameters::default();
        for (name, value) in pairs {
            parameters.set(name.as_bytes(), value.as_bytes());
        }
        parameters
    }

    #[test]
    fn a_client_hears_what_the_servers_begin_with_but_not_over_its_own_word() {
        let old = parameters(&[
            ("server_version", "13"),
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO"),
        ]);
        let new = parameters(&[
            ("server_version", "14"),
            ("TimeZone", "CET"),
            ("DateStyle", "ISO"),
        ]);
        let mut known = old.clone();
        known.set(b"TimeZone", b"Asia/Tokyo");
        known.set(b"DateStyle", b"German");
        let mut told = Vec::new();
        known.change_server(&old, &new, &mut told);
        let mut expected = Vec::new();
        put_parameter_status(&mut expected, b"server_version", b"14");
        assert_eq!(told, expected);
        assert_eq!(known.get(b"TimeZone"), Some(b"Asia/Tokyo".as_slice()));
    }

    #[test]
    fn what_a_server_floods_is_not_remembered() {
        let mut known = parameters(&[("TimeZone", "UTC")]);
        for number in 0..1000 {
            known.set(format!("p{number}").as_bytes(), b"x");
        }
        assert_eq!(known.entries().count(), MAX_NAMES);
        assert_eq!(known.get(b"TimeZone"), Some(b"UTC".as_slice()));
        known.set(b"p7", &vec![b'x'; 2 * MAX_BYTES]);
        assert_eq!(known.get(b"p7"), None);
        known.set(b"p7", &vec![b'x'; MAX_BYTES / 2]);
        known.set(b"p8", &vec![b'x'; MAX_BYTES / 2]);
        assert_eq!(known.get(b"p8"), None);
        assert!(known.text.len() <= MAX_BYTES);
        let mut known = Parameters::default();
        known.set(b"new", &vec![b'x'; MAX_BYTES]);
        assert_eq!(known.get(b"new"), None);
    }

    #[test]
    fn one_is_changed_and_its_copy_is_not() {
        let login = parameters(&[("a", "1"), ("empty", ""), ("b", "2")]);
        let mut known = login.clone();
        assert!(Arc::ptr_eq(&known.text, &login.text));
        known.set(b"a", b"a longer one");
        known.set(b"b", b"");
        known.set(b"c", b"3");
        let values = |of: &Parameters| {
            let all = ["a", "empty", "b", "c"];
            all.map(|name| of.get(name.as_bytes()).map(<[u8]>::to_vec))
        };
        let some = |value: &str| Some(value.as_bytes().to_vec());
        assert_eq!(
            values(&known),
            [some("a longer one"), some(""), some(""), some("3")]
        );
        assert_eq!(values(&login), [some("1"), some(""), some("2"), None]);
    }

    #[test]
    fn what_a_restore_reports_is_told_unless_it_is_known() {
        let mut known = parameters(&[("TimeZone", "Asia/Tokyo")]);
        let mut told = Vec::new();
        known.update(
            &parameters(&[("TimeZone", "Asia/Tokyo"), ("a", "b")]),
            &mut told,
        );
        let mut expected = Vec::new();
        put_parameter_status(&mut expected, b"a", b"b");
        assert_eq!(told, expected);
    }
}
