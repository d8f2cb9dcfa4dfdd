//! The file read again.

use std::sync::Arc;

use super::Server;
use crate::config::Config;
use crate::control::Reloaded;
use crate::limits;
use crate::logging;
use crate::passfile::Passfile;
use crate::sweep;
use crate::tls::{TlsContexts, valid_until};
use crate::users::Source;

impl Server {
    /// Reads the file again.
    ///
    /// # Errors
    /// What is wrong with it; then nothing has changed.
    pub(super) fn reload(&self) -> Result<Reloaded, String> {
        let file = self.config_path.display().to_string();
        self.service_manager.reloading();
        let reloaded = self.try_reload();
        self.service_manager.ready();
        match &reloaded {
            Ok(Reloaded { changed, later }) => {
                for keys in later {
                    log::warn!(file; "{keys}");
                }
                let changed = changed.join(", ");
                log::info!(file, changed; "configuration reloaded");
                self.move_leaving(self.state.sessions.snapshot());
                self.empty("SIGHUP", true);
            }
            Err(reason) => {
                self.state.metrics.config_read(false, &[]);
                log::error!(file, reason; "reload failed, nothing changed");
            }
        }
        reloaded
    }

    fn try_reload(&self) -> Result<Reloaded, String> {
        let config = Config::load(&self.config_path).map_err(|error| error.to_string())?;
        let tls = TlsContexts::load(config.client_tls.as_ref(), &config.server_tls)
            .map_err(|error| error.to_string())?;
        let passfile = config.login.passfile.as_deref().map(Passfile::load);
        let passfile = passfile.transpose().map_err(|error| error.to_string())?;
        let users = Source::load(&config.login).map_err(|error| error.to_string())?;
        limits::check(&config).map_err(|error| error.to_string())?;
        let old = Arc::clone(&self.state.config.read());
        let mut later = Vec::new();
        if config.listen != old.listen
            || config.admin_listen != old.admin_listen
            || config.control_socket != old.control_socket
        {
            later.push("listen, admin_listen and control_socket take effect at the next start");
        }
        if config.reuse_port && !old.reuse_port {
            later.push(
                "reuse_port lets another process listen only if this one was started with it",
            );
        }
        if config.peers.own != old.peers.own
            || config.peers.own_address() != old.peers.own_address()
        {
            later.push("peer_id and this process's own [[peer]] take effect at the next start");
        }
        if config.dialect != old.dialect {
            later.push("dialect takes effect for new sessions");
        }
        let changed = old.changes(&config);
        self.state.connector.balancer().configure(&config.backends);
        self.state.connector.configure(&config, &tls, passfile);
        self.state.users.configure(users);
        *self.state.tls.write() = Arc::new(tls);
        self.state
            .rounds
            .workers()
            .set_limit(config.migration.workers);
        self.state.session_limit.set(config.max_connections);
        self.handshakes.set_max_connections(config.max_connections);
        self.state.cancel_keys.peers().configure(&config.peers);
        self.state.custom_names.configure(&config.custom_settings);
        logging::configure(config.log);
        self.health.probe(&config);
        self.state.rounds.workers().set_rate(config.migration.rate);
        self.state.metrics.config_read(true, &certificates(&config));
        *self.state.config.write() = Arc::new(config);
        for session in self.state.sessions.snapshot() {
            session.check_network();
        }
        if let Err(error) = sweep::start(&self.state) {
            // All the rest has changed.
            log::error!(reason:% = error; "idle sessions are not looked at: no thread");
        }
        Ok(Reloaded { changed, later })
    }
}

/// The files with certificates that the configuration names, and until when each is
/// valid.
pub(super) fn certificates(config: &Config) -> Vec<(String, i64)> {
    let client = config.client_tls.as_ref();
    let files = [
        client.map(|tls| &tls.cert_file),
        client.and_then(|tls| tls.client_ca_file.as_ref()),
        config.server_tls.cert_file.as_ref(),
        config.server_tls.ca_file.as_ref(),
    ];
    let files = files.into_iter().flatten();
    files
        .filter_map(|file| Some((file.display().to_string(), valid_until(file)?)))
        .collect()
}
