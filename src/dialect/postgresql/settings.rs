//! The settings of one session, in one piece of memory.
//!
//! PostgreSQL has some 350 that a user may set.  A session that is held keeps them for
//! as long as its server is away, so each as a map's entry with texts of its own was
//! three quarters of what holding a session took.

/// Settings by name, each with its value and whether the session itself has set it.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    /// Names and values, one behind the other.
    text: Vec<u8>,
    /// In the order of their names.
    entries: Vec<Entry>,
}

/// Where one stands in the text: its name, and its value up to the end of that.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: usize,
    name_bytes: u32,
    value_bytes: u32,
    by_session: bool,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Setting<'a> {
    pub(super) name: &'a [u8],
    /// Its value, as set_config takes it.
    pub(super) value: &'a [u8],
    /// Whether the session itself has set it.
    pub(super) by_session: bool,
}

impl Settings {
    /// Notes one, in the place of another of that name.
    pub(super) fn insert(
        &mut self,
        Setting {
            name,
            value,
            by_session,
        }: Setting<'_>,
    ) {
        // Messages, which they have come in, are shorter.
        let (Ok(name_bytes), Ok(value_bytes)) = (name.len().try_into(), value.len().try_into())
        else {
            return;
        };
        let entry = Entry {
            start: self.text.len(),
            name_bytes,
            value_bytes,
            by_session,
        };
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        match self.find(name) {
            Ok(place) => self.entries.splice(place..=place, [entry]).for_each(drop),
            Err(place) => self.entries.insert(place, entry),
        }
    }

    /// Nothing more is inserted: gives back the room that was kept for that.
    pub(super) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.entries.shrink_to_fit();
    }

    /// Its value.
    pub(super) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let place = self.find(name).ok()?;
        let entry = self.entries.get(place)?;
        Some(self.setting(entry).value)
    }

    /// All, in the order of their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = Setting<'_>> {
        self.entries.iter().map(|entry| self.setting(entry))
    }

    fn find(&self, name: &[u8]) -> Result<usize, usize> {
        self.entries
            .binary_search_by(|entry| self.setting(entry).name.cmp(name))
    }

    fn setting(&self, entry: &Entry) -> Setting<'_> {
        let from_start = self.text.get(entry.start..).unwrap_or_default();
        let (name, rest) = from_start
            .split_at_checked(entry.name_bytes as usize)
            .unwrap_or_default();
        Setting {
            name,
            value: rest.get(..entry.value_bytes as usize).unwrap_or_default(),
            by_session: entry.by_session,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_under_its_name_with_its_last_value() {
        let mut settings = Settings::default();
        let told = [
            ("work_mem", "4MB", false),
            ("role", "none", false),
            ("a", "", true),
            ("role", "anna", true),
            ("work_mem_b", "1", false),
        ];
        for (name, value, by_session) in told {
            settings.insert(Setting {
                name: name.as_bytes(),
                value: value.as_bytes(),
                by_session,
            });
        }
        settings.shrink();
        let found = settings.iter().map(|setting| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (text(setting.name), text(setting.value), setting.by_session)
        });
        let expected = [
            ("a", "", true),
            ("role", "anna", true),
            ("work_mem", "4MB", false),
            ("work_mem_b", "1", false),
        ];
        let expected = expected.map(|(name, value, own)| (name.to_owned(), value.to_owned(), own));
        assert!(found.eq(expected));
        assert_eq!(settings.get(b"role"), Some(b"anna".as_slice()));
        assert_eq!(settings.get(b"a"), Some(b"".as_slice()));
        assert_eq!(settings.get(b"work"), None);
    }
}
