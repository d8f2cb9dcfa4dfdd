//! `sqlpod`: one pod as a process.

use std::process::ExitCode;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use sqlpod::{Config, Health, Pod, Rule};

const USAGE: &str = "\
usage: sqlpod --database FILE [--listen ADDRESS] [--name NAME]
              [--auth trust|password|scram-sha-256] [--user NAME=PASSWORD]...
              [--tls-cert FILE --tls-key FILE] [--no-tokens] [--max-state-size BYTES]
              [--server-version VERSION] [--fault RULE]...
              [--health-listen ADDRESS] [--initial-wait SECONDS]

  --health-listen   GET / answers 200, and 503 once the pod has been told to end
  --initial-wait    for so long it still serves SQL then; a second signal ends it";

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
    let Some(Options {
        config,
        rules,
        health_listen,
        initial_wait,
    }) = options().map_err(|error| format!("{error}\n{USAGE}"))?
    else {
        println!("{USAGE}");
        return Ok(());
    };
    let (name, listen) = (config.name.clone(), config.listen.clone());
    // Signals are caught before anything can be interrupted by one.
    let mut signals = Signals::new([SIGINT, SIGTERM])
        .map_err(|error| format!("cannot catch signals: {error}"))?;
    let (signalled, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || signals.forever().try_for_each(|_| signalled.send(())));
    let health = health_listen.map(|address| {
        let started = Health::start(&address);
        started.map_err(|error| format!("cannot start on {address}: {error}"))
    });
    let health = health.transpose()?;
    let mut pod =
        Pod::start(config).map_err(|error| format!("cannot start on {listen}: {error}"))?;
    for rule in rules {
        pod.faults().add(rule);
    }
    eprintln!("sqlpod listening name={name} address={}", pod.address());
    if let Some(health) = &health {
        eprintln!("sqlpod health name={name} address={}", health.address());
    }
    let _ = ends.recv();
    if let Some(health) = &health {
        health.leave();
        eprintln!("sqlpod leaving name={name}");
        let _ = ends.recv_timeout(initial_wait);
    }
    pod.stop();
    eprintln!("sqlpod stopped name={name}");
    Ok(())
}

/// What the command line says.
struct Options {
    config: Config,
    /// Faults to start with.
    rules: Vec<Rule>,
    health_listen: Option<String>,
    initial_wait: Duration,
}

/// `None` where help was asked for.
fn options() -> Result<Option<Options>, lexopt::Error> {
    use lexopt::prelude::*;

    let mut config = Config::new("pod", "");
    let mut rules = Vec::new();
    let (mut health_listen, mut initial_wait) = (None, Duration::ZERO);
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
            Long("health-listen") => health_listen = Some(parser.value()?.string()?),
            Long("initial-wait") => initial_wait = Duration::from_secs(parser.value()?.parse()?),
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
    Ok(Some(Options {
        config,
        rules,
        health_listen,
        initial_wait,
    }))
}
