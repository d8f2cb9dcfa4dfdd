//! The command line, and files the proxy does not start with.

use std::process::Output;

use tempfile::TempDir;

use crate::support::proxy::{Setup, command};

fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

/// Runs over a file of that content, which must not be accepted, and gives
/// what was said.
fn refusal(content: &str, arguments: &[&str]) -> String {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("proxy.conf"), content).unwrap();
    let output = command()
        .current_dir(directory.path())
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!message.contains("listening"), "something was started");
    message
}

const VALID: &str = "listen = \"127.0.0.1:0\"\n\
    [[backend]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n";

#[test]
fn says_its_version_and_its_options() {
    let version = run(&["--version"]);
    assert!(version.status.success());
    let text = String::from_utf8(version.stdout).unwrap();
    assert_eq!(
        text.trim_end(),
        concat!("sqlproxy ", env!("CARGO_PKG_VERSION"))
    );

    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for option in [
        "--config",
        "--check-config",
        "--version",
        "--help",
        "SIGUSR1",
    ] {
        assert!(text.contains(option), "no {option} in:\n{text}");
    }
}

#[test]
fn an_unknown_option_is_refused() {
    let output = run(&["--confg", "x"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--confg"), "{text}");
}

#[test]
fn checks_a_file_without_starting() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("proxy.conf"), VALID).unwrap();
    let output = command()
        .current_dir(directory.path())
        .arg("--check-config")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("listening"), "{said}");
}

#[test]
fn a_bad_file_is_one_message_with_file_line_and_key() {
    let cases = [
        ("an unknown key", "listne = \"127.0.0.1:0\"\n", 1, "listne"),
        (
            "an unknown section",
            "[migrations]\nwait = \"1s\"\n",
            1,
            "migrations",
        ),
        (
            "an unknown key of a section",
            "[migration]\n\nwiat = \"1s\"\n",
            3,
            "wiat",
        ),
        (
            "a wrong type",
            "max_connections = \"many\"\n",
            1,
            "max_connections",
        ),
        (
            "a bare duration",
            "handshake_timeout = \"10\"\n",
            1,
            "handshake_timeout",
        ),
        (
            "a bad size",
            "[migration]\nmax_state_size = \"16 apples\"\n",
            2,
            "max_state_size",
        ),
        (
            "a bad state",
            "[[backend]]\nname = \"b\"\naddress = \"h:1\"\nstate = \"off\"\n",
            4,
            "state",
        ),
        (
            "no port",
            "[[backend]]\nname = \"b\"\naddress = \"nowhere\"\n",
            3,
            "address",
        ),
        ("a bad dialect", "dialect = \"oracle\"\n", 1, "dialect"),
    ];
    for (name, lines, line, key) in cases {
        // The case's lines come first or, where they open a section, last.
        let (content, line) = if lines.starts_with('[') {
            (format!("{VALID}{lines}"), VALID.lines().count() + line)
        } else {
            (
                format!("{lines}{}", VALID.replace("listen = \"127.0.0.1:0\"\n", "")),
                line,
            )
        };
        for arguments in [&[][..], &["--check-config"]] {
            let message = refusal(&content, arguments);
            assert_eq!(message.trim_end().lines().count(), 1, "{name}: {message}");
            assert!(
                message.contains(&format!("proxy.conf:{line}")),
                "{name}: {message}"
            );
            assert!(message.contains(key), "{name}: {message}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = run(&["--config", "no-such-file.conf"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("no-such-file.conf"), "{text}");
}

#[test]
fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("proxy.conf");
    let text = Setup::new(&[]).text().replace("127.0.0.1:0", &address);
    let backend = "[[backend]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n";
    std::fs::write(&file, format!("{text}{backend}")).unwrap();
    let output = command().arg("--config").arg(&file).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&address), "{said}");
}
