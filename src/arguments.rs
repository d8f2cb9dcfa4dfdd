//! The command line.
//!
//! Used by `main` alone. The help text is the operator's first manual page, so
//! it also lists signals and exit codes.

use std::path::PathBuf;

use clap::Parser;

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
  0  Ended by a signal, or --check-config found nothing wrong
  2  Could not start: the command line, the configuration or a limit of the machine
     is wrong, or an address is in use; one line on stderr says which

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
            (&["a.conf"], Err(ErrorKind::UnknownArgument)),
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
