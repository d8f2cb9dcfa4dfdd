//! Logins that end at the proxy (`[login] method = "scram"`), and what follows of them.

mod auth_file;
mod auth_query;
mod channel;
mod liars;
mod memory;
mod moves;
mod strangers;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use postgres::{Client, Config, NoTls};
use tempfile::TempDir;

use crate::support::postgres::{Cluster, USER};
use crate::support::proxy::{Proxy, Setup};

const PASSWORD: &str = "open sesame";

/// A PostgreSQL that asks everybody but its superuser for SCRAM, with the users `anna`
/// and `bert`; and files beside it.
struct Site {
    cluster: Cluster,
    directory: TempDir,
}

impl Site {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(settings: &[&str]) -> Self {
        let cluster = Cluster::start(settings, |data| {
            let hba = "host all postgres all trust\nhost all all all scram-sha-256\n";
            fs::write(data.join("pg_hba.conf"), hba).unwrap();
        });
        let site = Self {
            cluster,
            directory: tempfile::tempdir().unwrap(),
        };
        for user in ["anna", "bert"] {
            site.execute(&format!("CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'"));
        }
        site
    }

    fn execute(&self, sql: &str) {
        self.cluster.client().batch_execute(sql).unwrap();
    }

    /// What the server holds of a user's password.
    fn verifier(&self, user: &str) -> String {
        let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
        let row = self.cluster.client().query_one(sql, &[&user]).unwrap();
        row.get(0)
    }

    /// Writes a file that nobody else may read.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.directory.path().join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        file
    }

    /// Writes the users' file: each with what the server holds.
    fn write_users(&self, users: &[&str]) -> PathBuf {
        let lines = users
            .iter()
            .map(|user| user_line(user, &self.verifier(user)));
        self.write("userlist.txt", &lines.collect::<String>())
    }

    /// A proxy before the server's two addresses, with these keys of `[login]`.
    fn setup(&self, login: &str) -> Setup {
        Setup::new(&self.cluster.addresses())
            .top("dialect = \"postgresql\"")
            .section(&format!("[login]\nmethod = \"scram\"\n{login}"))
    }

    /// The same with the users' file.
    fn by_file(&self) -> Setup {
        let file = self.write_users(&["anna", "bert"]);
        self.setup(&format!("auth_file = \"{}\"", file.display()))
    }

    /// The same with a query of the superuser's.
    fn by_query(&self) -> Setup {
        self.setup(&format!("auth_user = \"{USER}\""))
    }
}

fn user_line(user: &str, password: &str) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    format!("{} {}\n", quoted(user), quoted(password))
}

fn try_connect(proxy: &Proxy, user: &str, password: &str) -> Result<Client, postgres::Error> {
    Config::new()
        .host("127.0.0.1")
        .port(proxy.address().port())
        .user(user)
        .password(password)
        .dbname("postgres")
        .connect(NoTls)
}

/// A client that the next round will find.
fn connect(proxy: &Proxy, user: &str) -> Client {
    let mut client = try_connect(proxy, user, PASSWORD).unwrap();
    assert_eq!(who(&mut client), user);
    client
}

/// SQLSTATE and text of a login that is refused.
fn refusal(proxy: &Proxy, user: &str, password: &str) -> (String, String) {
    let error = try_connect(proxy, user, password).err().unwrap();
    let error = error.as_db_error().unwrap();
    (error.code().code().to_owned(), error.message().to_owned())
}

/// As the client is told, whatever the cause.
fn password_failed(user: &str) -> (String, String) {
    let text = format!("password authentication failed for user \"{user}\"");
    ("28P01".to_owned(), text)
}

fn who(client: &mut Client) -> String {
    let row = client.query_one("SELECT current_user::text", &[]).unwrap();
    row.get(0)
}
