//! What a reload changed, in the file's own words.

use super::{BackendConfig, Config};

impl Config {
    /// The keys and sections whose meaning differs in `new`, in the file's order; a
    /// backend by its name.
    #[must_use]
    pub(crate) fn changes(&self, new: &Self) -> Vec<String> {
        let keys = [
            ("listen", self.listen != new.listen),
            ("admin_listen", self.admin_listen != new.admin_listen),
            ("control_socket", self.control_socket != new.control_socket),
            (
                "max_connections",
                self.max_connections != new.max_connections,
            ),
            (
                "handshake_timeout",
                self.handshake_timeout != new.handshake_timeout,
            ),
            (
                "connect_timeout",
                self.connect_timeout != new.connect_timeout,
            ),
            ("shutdown_grace", self.shutdown.grace != new.shutdown.grace),
            ("drain_delay", self.shutdown.delay != new.shutdown.delay),
            (
                "on_shutdown",
                self.shutdown.sessions != new.shutdown.sessions,
            ),
            ("reuse_port", self.reuse_port != new.reuse_port),
            (
                "tcp_user_timeout",
                self.tcp_user_timeout != new.tcp_user_timeout,
            ),
            (
                "health_interval",
                self.health_interval != new.health_interval,
            ),
            ("health_fall", self.health_fall != new.health_fall),
            ("idle_timeout", self.idle_timeout != new.idle_timeout),
            ("dialect", self.dialect != new.dialect),
            (
                "custom_settings",
                self.custom_settings != new.custom_settings,
            ),
            ("[client_tls]", self.client_tls != new.client_tls),
            ("[server_tls]", self.server_tls != new.server_tls),
            ("[login]", self.login != new.login),
            ("[limits]", self.limits != new.limits),
            ("[log]", self.log != new.log),
            ("[shutdown]", self.shutdown.rate != new.shutdown.rate),
            ("peer_id", self.peers.own != new.peers.own),
            ("[peer]", self.peers.peers != new.peers.peers),
            ("[migration]", self.migration != new.migration),
        ];
        let changed = keys.into_iter().filter(|(_, changed)| *changed);
        let mut words: Vec<String> = changed.map(|(key, _)| key.to_owned()).collect();
        let find = |backends: &[BackendConfig], name: &str| {
            let mut found = backends.iter().filter(|backend| backend.name == name);
            found.next().cloned()
        };
        for backend in &new.backends {
            match find(&self.backends, &backend.name) {
                None => words.push(format!("backend {} added", backend.name)),
                Some(old) if old != *backend => words.push(format!("backend {}", backend.name)),
                Some(_) => {}
            }
        }
        let removed = self.backends.iter();
        let removed = removed.filter(|old| find(&new.backends, &old.name).is_none());
        words.extend(removed.map(|old| format!("backend {} removed", old.name)));
        words
    }
}
