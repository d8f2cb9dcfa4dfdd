//! What the log calls a session.

use log::kv::Value;

/// The keys that join all log lines of one client connection.
#[derive(Debug, Clone)]
pub(crate) struct SessionName {
    /// The proxy's number of the connection.
    pub conn: u64,
    /// The client's address.
    pub client: String,
    /// From the startup packet, as [`crate::error::shown`]; empty before it.
    pub user: String,
    /// The same.
    pub database: String,
}

impl SessionName {
    /// The pairs `conn client user database`, then `more`, for
    /// [`crate::logging::event`].
    #[must_use]
    pub(crate) fn pairs<'a>(
        &'a self,
        more: impl IntoIterator<Item = (&'a str, Value<'a>)>,
    ) -> Vec<(&'a str, Value<'a>)> {
        let mut pairs = vec![
            ("conn", self.conn.into()),
            ("client", self.client.as_str().into()),
            ("user", self.user.as_str().into()),
            ("database", self.database.as_str().into()),
        ];
        pairs.extend(more);
        pairs
    }
}
