//! `sqlpod`: one pod as a process.

use std::process::ExitCode;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use sqlpod::{Config, Pod, Rule};

const USAGE: &str = "\
usage: sqlpod --database FILE [--listen ADDRESS] [--name NAME]
              [--auth trust|password|scram-sha-256] [--user NAME=PASSWORD]...
              [--tls-cert FILE --tls-key FILE] [--no-tokens] [--max-state-size BYTES]
              [--server-version VERSION] [--fault RULE]...";

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("sqlpod: {message}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), String> {
    let Some((config, rules)) = options().map_err(|error| format!("{error}\n{USAGE}"))? else {
        println!("{USAGE}");
        return Ok(());
    };
    let (name, listen) = (config.name.clone(), config.listen.clone());
    // Signals are caught before anything can be interrupted by one.
    let mut signals = Signals::new([SIGINT, SIGTERM])
        .map_err(|error| format!("cannot catch signals: {error}"))?;
    let mut pod =
        Pod::start(config).map_err(|error| format!("cannot start on {listen}: {error}"))?;
    for rule in rules {
        pod.faults().add(rule);
    }
    eprintln!("sqlpod listening name={name} address={}", pod.address());
    signals.forever().next();
    pod.stop();
    eprintln!("sqlpod stopped name={name}");
    Ok(())
}

/// The configuration and faults to start with; `None` where help was asked for.
fn options() -> Result<Option<(Config, Vec<Rule>)>, lexopt::Error> {
    use lexopt::prelude::*;

    let mut config = Config::new("pod", "");
    let mut rules = Vec::new();
    let (mut cert_file, mut key_file) = (None, None);
    let mut parser = lexopt::Parser::from_env();
    while let Some(option) = parser.next()? {
        match option {
            Long("listen") => config.listen = parser.value()?.string()?,
            Long("database") => config.database = parser.value()?.into(),
            Long("name") => config.name = parser.value()?.string()?,
            Long("auth") => config.auth = parser.value()?.parse()?,
            Long("user") => {
                let user = parser.value()?.string()?;
                let (name, password) = user.split_once('=').ok_or("--user takes NAME=PASSWORD")?;
                config.users.insert(name.to_owned(), password.to_owned());
            }
            Long("tls-cert") => cert_file = Some(parser.value()?),
            Long("tls-key") => key_file = Some(parser.value()?),
            Long("no-tokens") => config.tokens = false,
            Long("max-state-size") => config.max_state_size = parser.value()?.parse()?,
            Long("server-version") => config.server_version = parser.value()?.string()?,
            Long("fault") => rules.push(parser.value()?.parse()?),
            Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    if config.database.as_os_str().is_empty() {
        return Err("--database is missing".into());
    }
    match (cert_file, key_file) {
        (None, None) => {}
        (Some(cert_file), Some(key_file)) => config = config.tls(cert_file, key_file),
        _ => return Err("--tls-cert and --tls-key go together".into()),
    }
    Ok(Some((config, rules)))
}
