//! `host:port`, taken apart without asking any resolver.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// DNS's limit on a whole name (RFC 1035, section 2.3.4), without the root's dot.
const MAX_HOST_LENGTH: usize = 253;

/// A host (name, IPv4 or IPv6 address, the last without its brackets) and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// As it goes to the resolver and into TLS's server name; never empty.
    pub host: String,
    /// 0 only where one listens: any free port.
    pub port: u16,
}

impl Address {
    /// Takes `host:port` or `[ipv6]:port` apart; `None` where it is neither.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').filter(|inner| is_ipv6(inner))?,
            None if is_name_or_ipv4(host) => host,
            None => return None,
        };
        // `u16::from_str` would also take "+1".
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self {
            host: host.to_owned(),
            port: port.parse().ok()?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A link-local address may carry its zone (`fe80::1%eth0`).
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "0"));
    address.parse::<Ipv6Addr>().is_ok()
        && !zone.is_empty()
        && zone.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_name_or_ipv4(text: &str) -> bool {
    // No top-level domain is a number (RFC 3696, section 2): whatever ends in one
    // was meant as an IPv4 address and must be a whole one.
    let last_label = text.rsplit('.').next().unwrap_or_default();
    if !last_label.is_empty() && last_label.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse::<Ipv4Addr>().is_ok();
    }
    !text.is_empty()
        && text.len() <= MAX_HOST_LENGTH
        && !text.starts_with('.')
        && !text.contains("..")
        // Underscores are common in names of containers.
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}
