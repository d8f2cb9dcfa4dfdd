//! What a client has been told by ParameterStatus.

use std::collections::BTreeMap;

use crate::message::put_parameter_status;

/// PostgreSQL 18 reports 15 parameters, CockroachDB fewer.
const MAX_NAMES: usize = 256;
/// Names and values together.
const MAX_BYTES: usize = 64 * 1024;

/// The server parameters a client knows of, with their last values: at most 256 of
/// them and 64 KiB, whatever a server sends.  What is beyond is forwarded and not
/// remembered.
///
/// A pooler-less client takes `server_version`, `TimeZone` and the like from
/// ParameterStatus only, so after a transfer it has to hear what differs on the
/// new server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    known: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of all names and values.
    bytes: usize,
}

impl Parameters {
    /// Notes a value.  One that finds no room is forgotten, never remembered wrongly.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let Some(known) = self.known.get_mut(name) else {
            let bytes = self.bytes + name.len() + value.len();
            if self.known.len() < MAX_NAMES && bytes <= MAX_BYTES {
                self.bytes = bytes;
                self.known.insert(name.to_vec(), value.to_vec());
            }
            return;
        };
        let others = self.bytes - known.len();
        if others + value.len() <= MAX_BYTES {
            self.bytes = others + value.len();
            known.clear();
            known.extend_from_slice(value);
        } else {
            self.bytes = others - name.len();
            self.known.remove(name);
        }
    }

    /// The value of a parameter, where the server has told it.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.known.get(name).map(Vec::as_slice)
    }

    /// Takes over what differs between the logins on two servers, and appends to
    /// `out` a ParameterStatus for each.
    ///
    /// A parameter that the client has changed since is left alone: the restored
    /// session has the client's value, although the new server, which reports
    /// what it begins a session with, has told another.
    pub fn change_server(&mut self, old_login: &Self, new_login: &Self, out: &mut Vec<u8>) {
        for (name, value) in &new_login.known {
            let begun_with = old_login.known.get(name);
            if begun_with != Some(value) && self.known.get(name) == begun_with {
                self.tell(name, value, out);
            }
        }
    }

    /// Takes over values that are true now, and appends to `out` a
    /// ParameterStatus for each that the client does not know yet.
    pub fn update(&mut self, now: &Self, out: &mut Vec<u8>) {
        for (name, value) in &now.known {
            self.tell(name, value, out);
        }
    }

    fn tell(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        if self.known.get(name).map(Vec::as_slice) != Some(value) {
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
        assert_eq!(
            known.known.get(b"TimeZone".as_slice()),
            Some(&b"Asia/Tokyo".to_vec())
        );
    }

    #[test]
    fn what_a_server_floods_is_not_remembered() {
        let mut known = parameters(&[("TimeZone", "UTC")]);
        for number in 0..1000 {
            known.set(format!("p{number}").as_bytes(), b"x");
        }
        assert_eq!(known.known.len(), MAX_NAMES);
        assert_eq!(known.get(b"TimeZone"), Some(b"UTC".as_slice()));
        known.set(b"p7", &vec![b'x'; 2 * MAX_BYTES]);
        assert_eq!(known.get(b"p7"), None);
        known.set(b"p7", &vec![b'x'; MAX_BYTES / 2]);
        known.set(b"p8", &vec![b'x'; MAX_BYTES / 2]);
        assert_eq!(known.get(b"p8"), None);
        let bytes = known
            .known
            .iter()
            .map(|(name, value)| name.len() + value.len());
        assert_eq!(bytes.sum::<usize>(), known.bytes);
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
