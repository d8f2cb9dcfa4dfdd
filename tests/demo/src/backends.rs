//! What stands behind the proxy: pods, or one PostgreSQL on two addresses.

use std::net::SocketAddr;
use std::path::Path;

use demo::Result;
use demo::postgresql::{Server, USER, connect, free_port};

/// The names of PostgreSQL's two addresses in the proxy's file, and the addresses.
const ADDRESSES: [(&str, &str); 2] = [("pg-a", "127.0.0.1"), ("pg-b", "127.0.0.2")];

/// The servers.
pub(crate) enum Backends<'a> {
    /// Children of the demo, one a section of the proxy's file.
    Pods,
    /// One server, which is two to its sessions: they share its store.
    PostgreSql(Server<'a>),
}

impl Backends<'_> {
    /// What the watcher is told that a backend is.
    pub(crate) const fn noun(&self) -> &'static str {
        match self {
            Self::Pods => "pod",
            Self::PostgreSql(_) => "address",
        }
    }

    /// Who the watcher may log in as.
    pub(crate) const fn user(&self) -> &'static str {
        match self {
            Self::Pods => "you",
            Self::PostgreSql(_) => USER,
        }
    }

    /// The database that the clients log in to.
    pub(crate) const fn database(&self) -> &'static str {
        match self {
            Self::Pods => "defaultdb",
            Self::PostgreSql(_) => "postgres",
        }
    }

    /// Asks a session for the name of the backend that it is on.
    pub(crate) const fn place(&self) -> &'static str {
        match self {
            Self::Pods => "SELECT sqlpod_name()",
            Self::PostgreSql(_) => {
                "SELECT CASE host(inet_server_addr()) WHEN '127.0.0.1' THEN 'pg-a' ELSE 'pg-b' END"
            }
        }
    }

    /// A setting that each client makes up, where the servers have such.
    pub(crate) const fn custom_setting(&self) -> Option<&'static str> {
        match self {
            Self::Pods => None,
            Self::PostgreSql(_) => Some("demo.person"),
        }
    }
}

/// Starts the server on both addresses, with all that the clients need in it; its process
/// id.
pub(crate) fn start_postgresql(server: &mut Server<'_>, people: &[&str]) -> Result<u32> {
    let hosts = ADDRESSES.map(|(_, host)| host).join(",");
    let pid = server.start(&[&format!("listen_addresses={hosts}")])?;
    let mut client = connect(server.address())?;
    client.batch_execute("GRANT CREATE ON SCHEMA public TO public")?;
    for name in people {
        client.batch_execute(&format!(
            "CREATE ROLE {name} LOGIN IN ROLE pg_read_all_data"
        ))?;
    }
    Ok(pid)
}

/// Writes the proxy's file for it.
pub(crate) fn write_configuration(server: &Server<'_>, path: &Path) -> Result<()> {
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let mut text = format!(
        "listen = \"{listen}\"\n\
         dialect = \"postgresql\"\n\n\
         [login]\nmethod = \"trust\"\n"
    );
    let port = server.address().port();
    for (name, host) in ADDRESSES {
        text += &format!("\n[[backend]]\nname = \"{name}\"\naddress = \"{host}:{port}\"\n");
    }
    Ok(std::fs::write(path, text)?)
}
