//! One client of the demo: an ordinary connection through the proxy, the state
//! it made, and the checks that all of it is still there.

use std::net::SocketAddr;
use std::time::Duration;

use postgres::types::Type;
use postgres::{Client, Config, NoTls, SimpleQueryMessage, Statement};

use demo::{Result, failed};

use crate::backends::Backends;

/// What a client calls itself and what it sets, different for each, so that a
/// mix-up of two sessions shows.
pub(crate) struct Person {
    pub(crate) name: &'static str,
    pub(crate) time_zone: &'static str,
}

/// A client's connection; never opened a second time.
pub(crate) struct Session {
    pub(crate) person: &'static Person,
    client: Client,
    /// Prepared once, before any move.
    statement: Statement,
    /// The backend the session was on when last looked.
    pub(crate) pod: String,
    /// Asks for that.
    place: &'static str,
    custom_setting: Option<&'static str>,
}

impl Session {
    /// Connects and makes the state: settings, a table, a prepared statement.
    pub(crate) fn open(
        proxy: SocketAddr,
        person: &'static Person,
        backends: &Backends<'_>,
    ) -> Result<Self> {
        let name = person.name;
        let mut client = Config::new()
            .host(&proxy.ip().to_string())
            .port(proxy.port())
            .user(name)
            .dbname(backends.database())
            .connect_timeout(Duration::from_secs(10))
            .connect(NoTls)?;
        client.batch_execute(&format!(
            "SET application_name = '{name} at the demo';
             SET TimeZone = '{}';
             CREATE TABLE {name}_notes (id INT PRIMARY KEY, note TEXT);
             INSERT INTO {name}_notes VALUES (1, 'written by {name}')",
            person.time_zone
        ))?;
        let custom_setting = backends.custom_setting();
        if let Some(setting) = custom_setting {
            client.batch_execute(&format!("SET {setting} = '{name}'"))?;
        }
        let statement = client.prepare_typed(
            &format!("SELECT note FROM {name}_notes WHERE id = $1"),
            &[Type::INT4],
        )?;
        let mut session = Self {
            person,
            client,
            statement,
            pod: String::new(),
            place: backends.place(),
            custom_setting,
        };
        session.pod = session.current_pod()?;
        Ok(session)
    }

    /// Asks the session which backend serves it now.
    pub(crate) fn current_pod(&mut self) -> Result<String> {
        self.one_value(self.place)
    }

    /// Opens a transaction with a row in it and leaves it open.
    pub(crate) fn begin(&mut self) -> Result<()> {
        let name = self.person.name;
        self.client.batch_execute(&format!(
            "BEGIN; INSERT INTO {name}_notes VALUES (2, 'not committed yet')"
        ))?;
        Ok(())
    }

    pub(crate) fn commit(&mut self) -> Result<()> {
        self.client.batch_execute("COMMIT")?;
        Ok(())
    }

    /// How many notes of `owner` this session sees.
    pub(crate) fn count_notes(&mut self, owner: &str) -> Result<String> {
        self.one_value(&format!("SELECT count(*) FROM {owner}_notes"))
    }

    /// Compares everything that was made at the start with what is there now.
    /// The text of the error says what differs.
    pub(crate) fn state_is_there(&mut self) -> Result<()> {
        let name = self.person.name;
        self.expect(
            "SHOW application_name",
            &format!("{name} at the demo"),
            "its application_name",
        )?;
        self.expect("SHOW TimeZone", self.person.time_zone, "its TimeZone")?;
        if let Some(setting) = self.custom_setting {
            self.expect(&format!("SHOW {setting}"), name, "its own setting")?;
        }

        let expected = format!("written by {name}");
        let rows = self.client.query(&self.statement, &[&1_i32])?;
        let note: Option<String> = match rows.first() {
            Some(row) => row.try_get(0)?,
            None => None,
        };
        if note.as_deref() != Some(expected.as_str()) {
            return failed(format!(
                "its prepared statement answered {note:?} instead of {expected:?}"
            ));
        }
        Ok(())
    }

    fn expect(&mut self, query: &str, expected: &str, what: &str) -> Result<()> {
        let found = self.one_value(query)?;
        if found == expected {
            return Ok(());
        }
        failed(format!("{what} is {found:?} instead of {expected:?}"))
    }

    /// The one value of a query's one row, as text.
    fn one_value(&mut self, query: &str) -> Result<String> {
        let value = self
            .client
            .simple_query(query)?
            .iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.try_get(0).ok().flatten()?.to_owned()),
                _ => None,
            });
        match value {
            Some(value) => Ok(value),
            None => failed(format!("{query} answered no value")),
        }
    }
}
