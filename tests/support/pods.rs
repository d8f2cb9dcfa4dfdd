//! Pods of one tenant: several `sqlpod`s over one database, inside the test.

use std::net::SocketAddr;

use sqlpod::{Config, Pod};
use tempfile::TempDir;

/// Pods that share a database; `pod-0`, `pod-1` and so on, as the proxy's file
/// has them.
pub(crate) struct Pods {
    pods: Vec<Pod>,
    // Dropped behind the pods that have it open.
    directory: TempDir,
}

impl Pods {
    pub(crate) fn start(count: usize) -> Self {
        Self::start_with(count, |config| config)
    }

    /// Starts them with what `adapt` makes of their configuration.
    pub(crate) fn start_with(count: usize, adapt: impl Fn(Config) -> Config) -> Self {
        let directory = TempDir::new().unwrap();
        let database = directory.path().join("tenant.db");
        let pods = (0..count)
            .map(|number| {
                let config = Config::new(&format!("pod-{number}"), &database);
                Pod::start(adapt(config)).unwrap()
            })
            .collect();
        Self { pods, directory }
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.pods.iter().map(Pod::address).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter()
    }

    /// The pod of that name.
    pub(crate) fn named(&self, name: &str) -> &Pod {
        let number: usize = name.strip_prefix("pod-").unwrap().parse().unwrap();
        &self.pods[number]
    }

    /// Starts the pod of that name again, where it was.
    pub(crate) fn restart(&mut self, name: &str) {
        let number: usize = name.strip_prefix("pod-").unwrap().parse().unwrap();
        let address = self.pods[number].address().to_string();
        let database = self.directory.path().join("tenant.db");
        let config = Config::new(name, &database).listen(&address);
        self.pods[number] = Pod::start(config).unwrap();
    }

    /// Kills the pod of that name with its connections.
    pub(crate) fn kill(&mut self, name: &str) {
        let number: usize = name.strip_prefix("pod-").unwrap().parse().unwrap();
        self.pods[number].kill();
    }
}
