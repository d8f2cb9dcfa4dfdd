//! `[limits]`: how many sessions one user or one database may have, and which networks
//! clients may come from.

use std::net::IpAddr;

use ipnet::IpNet;

use super::ConfigError;
use super::reader::Section;

const MAX_SHARE: u64 = 1_000_000;

/// `[limits]`; absent: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// `per_user`: sessions of one user at once, 1 to 1,000,000; `None`: as many as all.
    pub per_user: Option<usize>,
    /// `per_database`: sessions in one database at once; `None`: as many as all.
    pub per_database: Option<usize>,
    /// `allow`: networks that clients may come from; empty: from everywhere.
    pub allow: Vec<IpNet>,
    /// `deny`: networks that they may not come from, whatever `allow` says.
    pub deny: Vec<IpNet>,
    /// `proxy_protocol`: networks whose connections begin with a PROXY header, which says
    /// whom they are for.
    pub proxy_protocol: Vec<IpNet>,
}

impl Limits {
    /// Whether a client may come from there.  An IPv4 address in IPv6's clothes is one of
    /// IPv4 (RFC 4291, 2.5.5.2).
    #[must_use]
    pub(crate) fn admits(&self, client: IpAddr) -> bool {
        !is_in(client, &self.deny) && (self.allow.is_empty() || is_in(client, &self.allow))
    }

    /// Whether a connection from there says by a PROXY header whom it is for.
    #[must_use]
    pub(crate) fn speaks_for_others(&self, client: IpAddr) -> bool {
        is_in(client, &self.proxy_protocol)
    }
}

fn is_in(address: IpAddr, networks: &[IpNet]) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

fn network(text: &str) -> Option<IpNet> {
    let host = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(host)
}

pub(super) fn read_limits(root: &Section<'_>) -> Result<Limits, ConfigError> {
    let keys = &[
        "per_user",
        "per_database",
        "allow",
        "deny",
        "proxy_protocol",
    ];
    let Some(section) = root.section("limits", keys)? else {
        return Ok(Limits::default());
    };
    let networks = |key| {
        let expected = "a network such as \"10.0.0.0/8\"";
        let texts = section.texts(key, expected, |text| network(text).is_some())?;
        let texts = texts.unwrap_or_default();
        Ok(texts.iter().filter_map(|text| network(text)).collect())
    };
    Ok(Limits {
        per_user: section.integer("per_user", 1, MAX_SHARE)?,
        per_database: section.integer("per_database", 1, MAX_SHARE)?,
        allow: networks("allow")?,
        deny: networks("deny")?,
        proxy_protocol: networks("proxy_protocol")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(networks: &[&str]) -> Vec<IpNet> {
        networks.iter().filter_map(|text| network(text)).collect()
    }

    #[test]
    fn a_network_is_known_by_its_prefix_and_denied_before_it_is_allowed() {
        let limits = Limits {
            allow: list(&["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"]),
            deny: list(&["10.9.0.0/16"]),
            ..Limits::default()
        };
        for (client, admitted) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.9.2.3", false),
            ("::ffff:10.9.2.3", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            let address: Option<IpAddr> = client.parse().ok();
            let found = address.map(|address| limits.admits(address));
            assert_eq!(found, Some(admitted), "{client}");
        }
        let any: Option<IpAddr> = "203.0.113.1".parse().ok();
        assert_eq!(any.map(|any| Limits::default().admits(any)), Some(true));
    }
}
