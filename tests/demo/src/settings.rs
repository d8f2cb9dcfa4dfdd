//! The few facts that the demo takes from `proxy.conf`, so that both agree.

use std::net::SocketAddr;
use std::path::Path;

use serde::Deserialize;

use demo::{Stop, failed};

/// What of `proxy.conf` the demo needs; the proxy itself checks the rest.
#[derive(Deserialize)]
pub(crate) struct Settings {
    /// Where clients connect: one address, or the first of a list.
    #[serde(deserialize_with = "one_or_first")]
    pub(crate) listen: SocketAddr,
    /// The administration's address, where there is one.
    pub(crate) admin_listen: Option<SocketAddr>,
    /// The pods to start.
    #[serde(rename = "backend")]
    pub(crate) pods: Vec<Pod>,
}

/// One `[[backend]]` section.
#[derive(Deserialize)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
}

fn one_or_first<'de, D: serde::Deserializer<'de>>(value: D) -> Result<SocketAddr, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Listen {
        One(SocketAddr),
        Many(Vec<SocketAddr>),
    }
    let first = match Listen::deserialize(value)? {
        Listen::One(address) => Some(address),
        Listen::Many(addresses) => addresses.first().copied(),
    };
    first.ok_or_else(|| serde::de::Error::custom("`listen` names no address"))
}

impl Settings {
    pub(crate) fn read(path: &Path) -> demo::Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Stop::Failed(format!("cannot read {shown}: {error}")))?;
        let settings: Self = toml::from_str(&text).map_err(|error| {
            Stop::Failed(format!("{shown} is not what the demo can use: {error}"))
        })?;
        if settings.pods.len() < 2 {
            return failed(format!(
                "{shown} names fewer than two backends: nowhere to move to"
            ));
        }
        Ok(settings)
    }
}
