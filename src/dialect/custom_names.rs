//! Names of settings that no view of a server shows.
//!
//! A client makes such a setting by setting it (`app.tenant`); only who knows
//! its name can ask for it.  The names are the process's: what one session uses,
//! others of the same application do.

use std::collections::BTreeSet;

use parking_lot::Mutex;

/// Far more than an application has; a client that makes names up is bounded.
const MOST_NAMES: usize = 1000;
/// An identifier's length (pg_config_manual.h, `NAMEDATALEN`), for two of them.
const LONGEST_NAME: usize = 2 * 63 + 1;

/// The names known so far.
#[derive(Debug, Default)]
pub struct CustomNames {
    known: Mutex<BTreeSet<Vec<u8>>>,
}

impl CustomNames {
    /// Takes over further names; those that no such setting has are left out.
    pub fn learn(&self, names: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        let mut known = self.known.lock();
        for name in names {
            let name = name.as_ref();
            if known.len() < MOST_NAMES && is_custom_name(name) {
                known.insert(name.to_vec());
            }
        }
    }

    /// Whether a setting may have this name.
    #[must_use]
    pub fn accepts(name: &str) -> bool {
        is_custom_name(name.as_bytes())
    }

    /// All of them.
    #[must_use]
    pub fn known(&self) -> BTreeSet<Vec<u8>> {
        self.known.lock().clone()
    }
}

/// Two identifiers with a dot between them (guc.c, `valid_custom_variable_name`),
/// in letters that every encoding has.
fn is_custom_name(name: &[u8]) -> bool {
    let is_word = |word: &[u8]| {
        let first = word.first().copied();
        first.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
            && word
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_$".contains(byte))
    };
    name.len() <= LONGEST_NAME
        && name.contains(&b'.')
        && name.split(|&byte| byte == b'.').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_such_a_setting_may_have_are_learned() {
        let names = CustomNames::default();
        let good = ["app.tenant", "a.b.c", "_x.y$1"];
        let bad = [
            "tenant", "app.", ".x", "a b.c", "a,b.c", "1a.b", "a.b'c", "\u{e9}.b", "",
        ];
        names.learn(good.iter().chain(&bad).map(|name| name.as_bytes().to_vec()));
        let mut known: Vec<_> = good.iter().map(|name| name.as_bytes().to_vec()).collect();
        known.sort();
        assert_eq!(names.known().into_iter().collect::<Vec<_>>(), known);
        names.learn((0..2000).map(|number| format!("a.b{number}").into_bytes()));
        assert_eq!(names.known().len(), MOST_NAMES);
    }
}
