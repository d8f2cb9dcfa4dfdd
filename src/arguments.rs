//! The command line.
//!
//! Used by `main` alone. The help text is the operator's first manual page, so
//! it also lists signals and exit codes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::control::protocol::Command;
use crate::control_client::Format;

const AFTER_HELP: &str = "\
Signals:
  SIGUSR1          Move every session to another active backend, where one can be
                   reached; the log tells the outcome of each and of the round
  SIGHUP           Read the configuration and the certificates again; an error keeps
                   everything as it was; sessions on a backend that became draining
                   or vanished are moved
  SIGINT, SIGTERM  Take no new clients, end each session at its next safe point; at
                   shutdown_grace, or at the second signal, close the rest

Exit codes:
  0  Ended by a signal, or --check-config found nothing wrong; a command: done
  1  A command: not done; it says who or what stands in the way
  2  Could not start: the command line, the configuration or a limit of the machine
     is wrong, or an address is in use; a command: could not ask; one line on stderr
     says which

Environment:
  RUST_LOG  What is logged to stderr: error, warn, info (default), debug, trace";

/// Carries SQL sessions and moves them live between CockroachDB or PostgreSQL nodes.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "sqlproxy", version, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The configuration file; relative paths inside it start from its directory
    #[arg(long, value_name = "FILE", default_value = "proxy.conf")]
    pub config: PathBuf,

    /// Check the configuration file, say what is wrong with it, and start nothing
    #[arg(long)]
    pub check_config: bool,

    /// What the running proxy is asked for; without one a proxy is started
    #[command(subcommand)]
    pub command: Option<Subcommands>,
}

/// Commands to the running proxy, through the `control_socket` of its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Subcommands {
    /// Show backends, sessions in all, and the last rounds
    Status(Output),
    /// List sessions: who, where, what they do, and why they cannot move
    Sessions {
        /// Those on this backend
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
        /// Those that have been asked to move and have not
        #[arg(long)]
        waiting: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Move sessions to other backends, and wait for the outcome
    Migrate {
        /// Those on this backend
        #[arg(long, value_name = "NAME", conflicts_with = "conn")]
        backend: Option<String>,
        /// This one
        #[arg(long, value_name = "N")]
        conn: Option<u64>,
        /// How long a busy session may take [default: migration.wait]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
        #[command(flatten)]
        output: Output,
    },
    /// Take a backend out: no new sessions, those it has are moved
    Drain {
        /// The backend
        name: String,
        /// How long that may take [default: migration.wait]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
        #[command(flatten)]
        output: Output,
    },
    /// Put a backend back: it takes sessions again
    Ready {
        /// The backend
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Capture and hold the sessions of a backend that is about to restart
    Hold {
        /// The backend
        name: String,
        /// How long a busy session may take [default: migration.wait]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
        #[command(flatten)]
        output: Output,
    },
    /// Let the sessions of a held backend go on
    Release {
        /// The backend
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// End one session
    Kill {
        /// Its number, as `sessions` and the log show it
        conn: u64,
        #[command(flatten)]
        output: Output,
    },
    /// Read the configuration and the certificates again
    Reload(Output),
}

/// How a command's answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct Output {
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

impl Subcommands {
    /// What the running proxy is sent, and how its answer is printed.
    #[must_use]
    pub fn into_command(self) -> (Command, Format) {
        let (command, output) = match self {
            Self::Status(output) => (Command::Status, output),
            Self::Sessions {
                backend,
                waiting,
                output,
            } => (Command::Sessions { backend, waiting }, output),
            Self::Migrate {
                backend,
                conn,
                wait,
                output,
            } => (
                Command::Migrate {
                    backend,
                    conn,
                    wait,
                },
                output,
            ),
            Self::Drain { name, wait, output } => (Command::Drain { name, wait }, output),
            Self::Ready { name, output } => (Command::Ready { name }, output),
            Self::Hold { name, wait, output } => (Command::Hold { name, wait }, output),
            Self::Release { name, output } => (Command::Release { name }, output),
            Self::Kill { conn, output } => (Command::Kill { conn }, output),
            Self::Reload(output) => (Command::Reload, output),
        };
        let format = match output.json {
            true => Format::Json,
            false => Format::Text,
        };
        (command, format)
    }
}

impl Arguments {
    /// Reads the process's own command line. Ends the process after `--help` and
    /// `--version` (exit code 0) and after a wrong command line (exit code 2).
    #[must_use]
    pub fn from_command_line() -> Self {
        Self::parse()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn command_lines_and_what_they_mean() {
        let arguments = |config: &str, check_config| Arguments {
            config: config.into(),
            check_config,
            command: None,
        };
        let table: &[(&[&str], Result<Arguments, ErrorKind>)] = &[
            (&[], Ok(arguments("proxy.conf", false))),
            (&["--config", "a.conf"], Ok(arguments("a.conf", false))),
            (
                &["--check-config", "--config=b.conf"],
                Ok(arguments("b.conf", true)),
            ),
            (&["--help"], Err(ErrorKind::DisplayHelp)),
            (&["--version"], Err(ErrorKind::DisplayVersion)),
            (&["--config"], Err(ErrorKind::InvalidValue)),
            (&["--confg", "a"], Err(ErrorKind::UnknownArgument)),
            (&["a.conf"], Err(ErrorKind::InvalidSubcommand)),
            (&["drain"], Err(ErrorKind::MissingRequiredArgument)),
            (
                &["migrate", "--conn", "1", "--backend", "a"],
                Err(ErrorKind::ArgumentConflict),
            ),
        ];
        for (words, expected) in table {
            let words = std::iter::once(&"sqlproxy").chain(*words);
            let found = Arguments::try_parse_from(words).map_err(|error| error.kind());
            assert_eq!(&found, expected);
        }
    }

    #[test]
    fn the_help_lists_every_signal_and_exit_code() {
        let help = Arguments::command().render_help().to_string();
        for word in [
            "SIGUSR1",
            "SIGHUP",
            "SIGINT",
            "SIGTERM",
            "\n  0 ",
            "\n  1 ",
            "\n  2 ",
            "RUST_LOG",
            "--config <FILE>",
            "--check-config",
            "[default: proxy.conf]",
        ] {
            assert!(help.contains(word), "{word:?} is missing from:\n{help}");
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }
}
