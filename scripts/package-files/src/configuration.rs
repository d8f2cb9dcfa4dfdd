//! The `proxy.conf` that a package installs: the repository's own, but for what an
//! installed proxy has and a checkout has not.

const REPOSITORYS: &str = include_str!("../../../proxy.conf");

/// Each stands in the file once, and is replaced.
const CHANGES: [(&str, &str); 3] = [
    (
        "As it stands it serves the demo: two SQL pods\n\
         # on this machine. Check a changed file with `sqlproxy --check-config`; a running\n\
         # proxy reads it again on SIGHUP. Durations",
        "The backends at its end are examples: put\n\
         # yours there. Check a changed file with `sqlproxy --config FILE --check-config`; a\n\
         # running proxy reads it again by `systemctl reload sqlproxy`.\n\
         # Durations",
    ),
    // The unit's RuntimeDirectory; its ExecReload asks there.
    (
        "# control_socket = \"/run/sqlproxy/control.sock\"",
        "control_socket = \"/run/sqlproxy/control.sock\"",
    ),
    (
        "shutdown_grace = \"30s\"",
        "# The unit's TimeoutStopSec= has to be longer than this and drain_delay together.\n\
         shutdown_grace = \"30s\"",
    ),
];

/// The file's text.
///
/// # Errors
/// The repository's file has changed so that it is not known what to replace.
pub(crate) fn installed() -> Result<String, String> {
    change(REPOSITORYS)
}

fn change(text: &str) -> Result<String, String> {
    let mut changed = text.to_owned();
    for (from, to) in CHANGES {
        match text.matches(from).count() {
            1 => changed = changed.replace(from, to),
            count => {
                return Err(format!(
                    "proxy.conf: expected once, found {count} times: {from:?}"
                ));
            }
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        reason = "a failed expectation is the test's failure"
    )]

    use sqlproxy::internal::Config;

    use super::*;

    #[test]
    fn the_proxy_takes_it_and_listens_for_commands() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("proxy.conf");
        std::fs::write(&file, installed().unwrap()).unwrap();
        let config = Config::load(&file).unwrap();
        let socket = config.control_socket.unwrap();
        assert_eq!(socket.to_str(), Some("/run/sqlproxy/control.sock"));
    }

    #[test]
    fn a_file_that_says_it_otherwise_is_refused() {
        for (from, _) in CHANGES {
            let error = change(&REPOSITORYS.replace(from, "")).unwrap_err();
            assert!(error.contains("found 0 times"), "{error}");
        }
        let twice = format!("{REPOSITORYS}{REPOSITORYS}");
        assert!(change(&twice).unwrap_err().contains("found 2 times"));
    }
}
