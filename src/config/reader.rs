//! Takes checked values out of a TOML document and words every complaint.
//!
//! Owned by `config`, which knows the keys; this knows how a duration or a size
//! looks and which line a value stands in. It goes over the document's spanned
//! values itself instead of deriving a deserializer, because each message has to
//! name line, key, what was expected and what was found in one form.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Address, ConfigError};

/// Longer than any sensible limit here; also catches `M`, which means months.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);
const MIN_SIZE_BYTES: u64 = 1024;
const MAX_SIZE_BYTES: u64 = 512 * 1024 * 1024;
/// A typing slip is at least this similar to what was meant (Jaro-Winkler, 0 to 1).
const SUGGESTION_SIMILARITY: f64 = 0.8;
/// Of a wrong value, so much is repeated in the message.
const SHOWN_CHARACTERS: usize = 60;

/// A file's name and text: what complaints are located in.
pub(super) struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

/// One table of the document whose keys are all known.
pub(super) struct Section<'a> {
    reader: &'a Reader<'a>,
    /// In front of a key in messages: empty or `migration.`.
    prefix: String,
    /// The line of the table's head.
    line: usize,
    table: &'a DeTable<'a>,
    keys: &'static [&'static str],
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text }
    }

    pub(super) fn document(&self) -> Result<Spanned<DeTable<'a>>, ConfigError> {
        DeTable::parse(self.text).map_err(|error| {
            let line = self.line(error.span().unwrap_or(0..0));
            let message = error.message().replace('\n', ", ");
            self.error(line, &format!("not valid TOML: {message}"))
        })
    }

    pub(super) fn root(
        &'a self,
        document: &'a Spanned<DeTable<'a>>,
        keys: &'static [&'static str],
    ) -> Result<Section<'a>, ConfigError> {
        let last_line = self.text.lines().count().max(1);
        Section::open(self, String::new(), last_line, document.get_ref(), keys)
    }

    /// Counted from 1.
    fn line(&self, span: Range<usize>) -> usize {
        let before = self.text.bytes().take(span.start);
        1 + before.filter(|&byte| byte == b'\n').count()
    }

    fn error(&self, line: usize, message: &str) -> ConfigError {
        ConfigError(format!("{}:{line}: {message}", self.path.display()))
    }
}

impl<'a> Section<'a> {
    /// Refuses a key outside `keys`, the first one in the file's order.
    fn open(
        reader: &'a Reader<'a>,
        prefix: String,
        line: usize,
        table: &'a DeTable<'a>,
        keys: &'static [&'static str],
    ) -> Result<Self, ConfigError> {
        let unknown = table
            .keys()
            .filter(|key| !keys.contains(&key.get_ref().as_ref()))
            .min_by_key(|key| key.span().start);
        if let Some(key) = unknown {
            let name = key.get_ref();
            let message = format!("unknown key {:?}; {}", shorten(name), suggest(name, keys));
            return Err(reader.error(reader.line(key.span()), &message));
        }
        Ok(Self {
            reader,
            prefix,
            line,
            table,
            keys,
        })
    }

    /// The value of `key`, where it is there and `convert` makes something of it.
    fn value<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Spanned<DeValue<'a>>) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        debug_assert!(self.keys.contains(&key), "{key} is read but not known");
        let Some(value) = self.table.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.unexpected(key, expected, value)),
        }
    }

    fn unexpected(&self, key: &str, expected: &str, found: &Spanned<DeValue<'_>>) -> ConfigError {
        let found_text = describe(found.get_ref());
        let message = format!(
            "{}{key}: expected {expected}, found {found_text}",
            self.prefix
        );
        let line = self.reader.line(found.span());
        self.reader.error(line, &message)
    }

    /// For a rule that spans keys: points at `key`'s line.
    pub(super) fn error(&self, key: &str, message: &str) -> ConfigError {
        let line = self
            .table
            .get(key)
            .map_or(self.line, |value| self.reader.line(value.span()));
        let message = format!("{}{key}: {message}", self.prefix);
        self.reader.error(line, &message)
    }

    pub(super) fn missing(&self, key: &str, expected: &str) -> ConfigError {
        self.error(key, &format!("expected {expected}, found nothing"))
    }

    pub(super) fn integer(
        &self,
        key: &str,
        min: u64,
        max: u64,
    ) -> Result<Option<usize>, ConfigError> {
        let expected = format!("an integer from {min} to {max}");
        self.value(key, &expected, |value| {
            let integer = value.get_ref().as_integer()?;
            let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
            if !(min..=max).contains(&number) {
                return None;
            }
            usize::try_from(number).ok()
        })
    }

    /// A deadline: at least a millisecond, or nothing could ever meet it.
    pub(super) fn timeout(&self, key: &str) -> Result<Option<Duration>, ConfigError> {
        self.duration_from(
            key,
            Duration::from_millis(1),
            "a duration from 1ms to 24h like \"15s\"",
        )
    }

    /// A period that may be none at all.
    pub(super) fn duration(&self, key: &str) -> Result<Option<Duration>, ConfigError> {
        self.duration_from(
            key,
            Duration::ZERO,
            "a duration from 0s to 24h like \"15s\"",
        )
    }

    fn duration_from(
        &self,
        key: &str,
        min: Duration,
        expected: &str,
    ) -> Result<Option<Duration>, ConfigError> {
        self.value(key, expected, |value| {
            let duration = humantime::parse_duration(value.get_ref().as_str()?).ok()?;
            (min..=MAX_DURATION).contains(&duration).then_some(duration)
        })
    }

    /// An address of a page, `http` or `https`.
    pub(super) fn url(&self, key: &str) -> Result<Option<String>, ConfigError> {
        let expected = "an address like \"http://host:8080/health?ready=1\", without a password";
        self.value(key, expected, |value| {
            let url: ureq::http::Uri = value.get_ref().as_str()?.parse().ok()?;
            // A password in it would be in this file's other readers' logs.
            let is_bare = url.authority().is_some_and(|it| !it.as_str().contains('@'));
            let good = matches!(url.scheme_str(), Some("http" | "https")) && is_bare;
            good.then(|| url.to_string())
        })
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.value(key, "true or false", |value| value.get_ref().as_bool())
    }

    /// In bytes.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.value(key, "a size from 1KiB to 512MiB like \"16MiB\"", |value| {
            let size: ByteSize = value.get_ref().as_str()?.parse().ok()?;
            if !(MIN_SIZE_BYTES..=MAX_SIZE_BYTES).contains(&size.as_u64()) {
                return None;
            }
            usize::try_from(size.as_u64()).ok()
        })
    }

    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, ConfigError> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.value(key, &one_of(&names), |value| {
            let text = value.get_ref().as_str()?;
            let chosen = choices.iter().find(|(name, _)| *name == text);
            chosen.map(|(_, choice)| *choice)
        })
    }

    pub(super) fn address(&self, key: &str, min_port: u16) -> Result<Option<Address>, ConfigError> {
        let expected = expected_address(min_port);
        self.value(key, &expected, |value| read_address(value, min_port))
    }

    /// One address or a list of them; each complaint names its own line.
    pub(super) fn addresses(&self, key: &str) -> Result<Option<Vec<Address>>, ConfigError> {
        let min_port = 0;
        let expected = expected_address(min_port);
        let Some(DeValue::Array(list)) = self.table.get(key).map(Spanned::get_ref) else {
            let one = self.address(key, min_port)?;
            return Ok(one.map(|address| vec![address]));
        };
        if list.is_empty() {
            return Err(self.error(key, &format!("expected {expected}, found an empty list")));
        }
        list.iter()
            .map(|value| {
                read_address(value, min_port).ok_or_else(|| self.unexpected(key, &expected, value))
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// A text that `accepts`.
    pub(super) fn text(
        &self,
        key: &str,
        expected: &str,
        accepts: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, ConfigError> {
        self.value(key, expected, |value| {
            let text = value.get_ref().as_str()?;
            accepts(text).then(|| text.to_owned())
        })
    }

    /// Whether `key` is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A list of texts that `accepts`; each complaint names its own line.
    pub(super) fn texts(
        &self,
        key: &str,
        expected: &str,
        accepts: impl Fn(&str) -> bool,
    ) -> Result<Option<Vec<String>>, ConfigError> {
        let list = self.value(key, &format!("a list of {expected}"), |value| {
            value.get_ref().as_array()
        })?;
        let Some(list) = list else {
            return Ok(None);
        };
        list.iter()
            .map(|value| {
                let text = value.get_ref().as_str().filter(|text| accepts(text));
                text.map(str::to_owned)
                    .ok_or_else(|| self.unexpected(key, expected, value))
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// Printable and without spaces, so that it stands in a log line as it is.
    pub(super) fn name(&self, key: &str, max_length: usize) -> Result<String, ConfigError> {
        let expected = format!("a name of 1 to {max_length} printable ASCII characters");
        self.value(key, &expected, |value| {
            let text = value.get_ref().as_str()?;
            let fits = (1..=max_length).contains(&text.len());
            let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
            (fits && printable).then(|| text.to_owned())
        })?
        .ok_or_else(|| self.missing(key, &expected))
    }

    /// Relative ones start from the file's own directory.
    pub(super) fn path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        self.value(key, "the path of a file", |value| {
            let text = value.get_ref().as_str()?;
            if text.is_empty() || text.contains('\0') {
                return None;
            }
            let directory = self.reader.path.parent().unwrap_or(Path::new(""));
            Some(directory.join(text))
        })
    }

    pub(super) fn section(
        &self,
        key: &str,
        keys: &'static [&'static str],
    ) -> Result<Option<Section<'a>>, ConfigError> {
        let expected = format!("a [{key}] section");
        let found = self.value(key, &expected, |value| {
            let table = value.get_ref().as_table()?;
            Some((self.reader.line(value.span()), table))
        })?;
        found
            .map(|(line, table)| Section::open(self.reader, format!("{key}."), line, table, keys))
            .transpose()
    }

    pub(super) fn sections(
        &self,
        key: &str,
        keys: &'static [&'static str],
    ) -> Result<Vec<Section<'a>>, ConfigError> {
        let expected = format!("[[{key}]] sections");
        let Some(list) = self.value(key, &expected, |value| value.get_ref().as_array())? else {
            return Ok(Vec::new());
        };
        list.iter()
            .map(|value| {
                let table = value
                    .get_ref()
                    .as_table()
                    .ok_or_else(|| self.unexpected(key, &expected, value))?;
                let line = self.reader.line(value.span());
                Section::open(self.reader, format!("{key}."), line, table, keys)
            })
            .collect()
    }
}

fn read_address(value: &Spanned<DeValue<'_>>, min_port: u16) -> Option<Address> {
    let address = Address::parse(value.get_ref().as_str()?)?;
    (address.port >= min_port).then_some(address)
}

fn expected_address(min_port: u16) -> String {
    format!("\"host:port\" with a port from {min_port} to 65535")
}

/// How a value of the wrong kind is called in a message.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", shorten(text)),
        DeValue::Integer(integer) => shorten(&integer.to_string()),
        DeValue::Float(float) => shorten(float.as_str()),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn suggest(name: &str, keys: &[&str]) -> String {
    keys.iter()
        .map(|key| (strsim::jaro_winkler(name, key), key))
        .filter(|(similarity, _)| *similarity >= SUGGESTION_SIMILARITY)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(
            || format!("expected {}", one_of(keys)),
            |(_, key)| format!("did you mean {key:?}?"),
        )
}

fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    format!("one of {}", quoted.join(", "))
}
