//! Names of settings that no view of a server shows.
//!
//! A client makes such a setting by setting it (`app.tenant`); only who knows
//! its name can ask for it.  What one session uses, others of the same application
//! do, perhaps where it cannot be seen: so every session is asked for the names that
//! the configuration has, for those that were seen last in the whole process, and for
//! all that were seen of its own client.  No client's names take another's away.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

/// Names seen of all clients: far more than an application has.
const MOST_SEEN: usize = 200;
/// Names seen of one client.
pub(super) const MOST_OWN: usize = 100;
/// An identifier's length (pg_config_manual.h, `NAMEDATALEN`), for two of them.
const LONGEST_NAME: usize = 2 * 63 + 1;

/// Those of the process.
#[derive(Debug, Default)]
pub struct CustomNames {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    configured: BTreeSet<Vec<u8>>,
    /// The one that was seen last stands last.
    seen: VecDeque<Vec<u8>>,
    forgetting_told: bool,
}

/// Those that one session is asked for.
#[derive(Debug, Default)]
pub struct SessionNames {
    process: Arc<CustomNames>,
    own: Mutex<Own>,
}

#[derive(Debug, Default)]
struct Own {
    names: Vec<Vec<u8>>,
    too_many: bool,
}

impl CustomNames {
    /// Takes the configuration's names, in place of those it had before.
    pub fn configure(&self, names: &[String]) {
        let configured = names.iter().map(|name| name.to_ascii_lowercase().into());
        self.known.lock().configured = configured.collect();
    }

    /// Whether a setting may have this name.
    #[must_use]
    pub fn accepts(name: &str) -> bool {
        is_custom_name(name.as_bytes())
    }

    /// For a session that begins.
    #[must_use]
    pub fn session(self: &Arc<Self>) -> Arc<SessionNames> {
        Arc::new(SessionNames {
            process: Arc::clone(self),
            own: Mutex::default(),
        })
    }

    /// A session's client has used a name for the first time.
    fn see(&self, name: &[u8]) {
        let mut known = self.known.lock();
        if known.configured.contains(name) {
            return;
        }
        let place = known.seen.iter().position(|seen| seen == name);
        let seen = place.and_then(|place| known.seen.remove(place));
        known.seen.push_back(seen.unwrap_or_else(|| name.to_vec()));
        let forgets = known.seen.len() > MOST_SEEN && {
            known.seen.pop_front();
            !std::mem::replace(&mut known.forgetting_told, true)
        };
        drop(known);
        if forgets {
            log::warn!(
                names = MOST_SEEN;
                "more names of custom settings are seen than are kept: list those that matter in custom_settings"
            );
        }
    }
}

impl SessionNames {
    /// The session's client has used a name; one that no such setting has is left out.
    pub fn learn(&self, name: &[u8]) {
        if !is_custom_name(name) {
            return;
        }
        let mut own = self.own.lock();
        if own
            .names
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name))
        {
            return;
        }
        let name = name.to_ascii_lowercase();
        if own.names.len() < MOST_OWN {
            own.names.push(name.clone());
        } else {
            own.too_many = true;
        }
        drop(own);
        self.process.see(&name);
    }

    /// All of them; `None` where its client has used more than are kept.
    #[must_use]
    pub fn known(&self) -> Option<BTreeSet<Vec<u8>>> {
        let mut names: BTreeSet<_> = {
            let own = self.own.lock();
            if own.too_many {
                return None;
            }
            own.names.iter().cloned().collect()
        };
        let known = self.process.known.lock();
        names.extend(known.configured.iter().chain(&known.seen).cloned());
        Some(names)
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
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    fn known(names: &SessionNames) -> Vec<String> {
        let known = names.known().unwrap().into_iter();
        known.map(|name| String::from_utf8(name).unwrap()).collect()
    }

    #[test]
    fn only_names_that_such_a_setting_may_have_are_learned() {
        let good = ["_x.y$1", "a.b.c", "app.tenant"];
        let bad = [
            "tenant", "app.", ".x", "a b.c", "a,b.c", "1a.b", "a.b'c", "\u{e9}.b", "",
        ];
        let names = SessionNames::default();
        for name in good.iter().chain(&bad) {
            names.learn(name.as_bytes());
        }
        assert_eq!(known(&names), good);
        names.learn(b"App.Tenant");
        assert_eq!(known(&names), good, "the same one to the server");
    }

    #[test]
    fn what_one_session_uses_others_are_asked_for() {
        let process = Arc::new(CustomNames::default());
        process.configure(&["app.Configured".to_owned()]);
        let (one, two) = (process.session(), process.session());
        one.learn(b"app.one");
        assert_eq!(known(&two), ["app.configured", "app.one"]);
        process.configure(&[]);
        assert_eq!(known(&two), ["app.one"]);
    }

    #[test]
    fn no_client_takes_the_names_of_another_away() {
        let process = Arc::new(CustomNames::default());
        process.configure(&["app.configured".to_owned()]);
        let own = process.session();
        own.learn(b"app.own");
        for client in 0..10 {
            let hostile = process.session();
            for number in 0..MOST_OWN {
                hostile.learn(format!("c{client}.n{number}").as_bytes());
            }
        }
        let known = known(&own);
        assert_eq!(known.len(), MOST_SEEN + 2);
        for name in ["app.configured", "app.own", "c9.n0", "c9.n99", "c8.n0"] {
            assert!(known.iter().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn the_name_that_was_not_seen_for_longest_is_forgotten() {
        let process = Arc::new(CustomNames::default());
        let use_name = |name: &str| process.session().learn(name.as_bytes());
        for number in 0..MOST_SEEN {
            use_name(&format!("a.n{number}"));
        }
        use_name("a.n0");
        use_name("a.one_more");
        let known = known(&process.session());
        assert_eq!(known.len(), MOST_SEEN);
        assert!(known.contains(&"a.n0".to_owned()));
        assert!(!known.contains(&"a.n1".to_owned()));
    }

    #[test]
    fn a_client_that_makes_names_up_is_not_asked_for_some_of_them() {
        let names = SessionNames::default();
        for number in 0..MOST_OWN {
            names.learn(format!("a.n{number}").as_bytes());
        }
        assert!(names.known().is_some());
        names.learn(b"a.n0");
        assert!(names.known().is_some());
        names.learn(b"a.one_more");
        assert_eq!(names.known(), None);
    }
}
