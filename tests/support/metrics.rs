//! What the proxy tells Prometheus.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use super::poll_kernel;
use super::proxy::Proxy;

/// For [`super::proxy::Setup::top`]: without it there is nothing to scrape.
pub(crate) const ADMIN: &str = "admin_listen = \"127.0.0.1:0\"";

/// Asks the admin for `path`: status and body.
pub(crate) fn http_get(proxy: &Proxy, path: &str) -> (u16, String) {
    let line = proxy.wait_log(0, |line| line.is("admin listening"));
    let mut stream = TcpStream::connect(line.get("address")).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// One scrape: the plain samples, without histograms' buckets.
#[derive(Debug)]
pub(crate) struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    pub(crate) fn of(proxy: &Proxy) -> Self {
        let (status, body) = http_get(proxy, "/metrics");
        assert_eq!(status, 200, "{body}");
        let samples = body
            .lines()
            .filter(|line| !line.starts_with('#') && !line.contains('{'))
            .filter_map(|line| line.split_once(' '))
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
        Self(samples.collect())
    }

    /// A counter, a gauge, or a histogram's `_count` or `_sum`.
    pub(crate) fn get(&self, name: &str) -> f64 {
        match self.0.get(name) {
            Some(value) => *value,
            None => panic!("no {name} in {:?}", self.0),
        }
    }

    /// What has been counted since `before`, without the sums of histograms, and
    /// with every level that is not at zero.
    fn since(&self, before: &Self) -> BTreeMap<String, i64> {
        let is_counted = |name: &str| {
            !name.ends_with("_sum") && !OF_THE_PROCESS.iter().any(|start| name.starts_with(start))
        };
        let samples = self.0.iter().filter(|(name, _)| is_counted(name));
        samples
            .map(|(name, value)| {
                let earlier = match name.as_str() {
                    name if LEVELS.contains(&name) => 0.0,
                    name => before.get(name),
                };
                (name.clone(), (value - earlier) as i64)
            })
            .filter(|(_, more)| *more != 0)
            .collect()
    }

    /// Waits until exactly this has been counted since this scrape.
    ///
    /// # Panics
    /// If it does not come to that.
    pub(crate) fn wait_counted(&self, proxy: &Proxy, expected: &[(&str, i64)]) {
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|(name, more)| ((*name).to_owned(), *more))
            .collect();
        let counted = || Self::of(proxy).since(self);
        poll_kernel(
            || counted() == expected,
            || format!("{:#?} instead of {expected:#?}", counted()),
        );
    }

    /// # Panics
    /// Unless every transfer that was attempted is counted with one outcome.
    pub(crate) fn assert_consistent(&self) {
        let sum: f64 = ["success", "error_recoverable", "error_fatal"]
            .iter()
            .map(|outcome| self.get(&format!("proxy_conn_migration_{outcome}")))
            .sum();
        let attempted = self.get("proxy_conn_migration_attempted");
        assert!((attempted - sum).abs() < 0.5, "{self:?}");
    }
}

/// What goes up and down.
/// What is counted by others, or says how the proxy is set.
const OF_THE_PROCESS: [&str; 3] = ["process_", "sqlproxy_sessions_max", "sqlproxy_config_"];

const LEVELS: [&str; 3] = [
    "proxy_sql_conns",
    "proxy_balancer_rebalance_queued",
    "proxy_balancer_rebalance_running",
];

/// Waits until nobody is connected and nothing is under way any more.
pub(crate) fn wait_quiet(proxy: &Proxy) {
    poll_kernel(
        || {
            let scrape = Scrape::of(proxy);
            scrape.assert_consistent();
            LEVELS.iter().all(|name| scrape.get(name) == 0.0)
        },
        || format!("not at zero: {:?}", Scrape::of(proxy)),
    );
}
