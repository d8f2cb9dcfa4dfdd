//! The life of the process: arguments, then a command to the running proxy, or
//! configuration, limits, signals, serve.

use std::process::ExitCode;

use sqlproxy::internal::{
    Arguments, Config, Server, TlsContexts, ask, check_limits, check_users, flush_log, init_log,
    install_signals, share_heaps,
};

/// A configuration or a machine that the proxy cannot run with.
const BAD_START: u8 = 2;

fn main() -> ExitCode {
    share_heaps();
    let arguments = Arguments::from_command_line();
    let ended = match arguments.command {
        Some(command) => {
            let (command, format) = command.into_command();
            ask(&arguments.config, &command, format)
        }
        None => run(&arguments).map(|()| 0),
    };
    flush_log();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(message) => {
            eprintln!("sqlproxy: {message}");
            ExitCode::from(BAD_START)
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let config = Config::load(&arguments.config).map_err(|error| error.to_string())?;
    check_limits(&config).map_err(|error| error.to_string())?;
    init_log(config.log).map_err(|error| format!("cannot start a thread: {error}"))?;
    let tls = TlsContexts::load(config.client_tls.as_ref(), &config.server_tls)
        .map_err(|error| error.to_string())?;
    check_users(&config).map_err(|error| error.to_string())?;
    if arguments.check_config {
        println!("{}: ok", arguments.config.display());
        return Ok(());
    }
    // Before the listeners, so that no early signal ends the process.
    let signals = install_signals().map_err(|error| error.to_string())?;
    let server =
        Server::start(config, tls, &arguments.config).map_err(|error| error.to_string())?;
    server.run(&signals);
    Ok(())
}
