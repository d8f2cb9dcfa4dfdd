//! The README's reference against the code: keys, commands, log lines.  Metrics have a
//! test of their own (`metrics`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::proxy::command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The lines of the README's chapter `heading`, up to the next of its level.
fn chapter(heading: &str) -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let from = readme
        .split_once(&format!("\n## {heading}\n"))
        .expect(heading)
        .1;
    from.split("\n## ").next().unwrap().to_owned()
}

/// What stands in backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    let words = text.split('`').skip(1).step_by(2);
    words.map(str::to_owned).collect()
}

fn sources() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                found.push(code.to_owned());
            }
        }
    }
    found
}

/// The string literals of a call whose arguments begin here, up to its end.
fn literals(arguments: &str) -> Vec<String> {
    let (mut depth, mut literal) = (1, None::<String>);
    let mut found = Vec::new();
    let mut characters = arguments.chars();
    while let Some(c) = characters.next() {
        match (&mut literal, c) {
            (Some(text), '\\') => text.extend(characters.next()),
            (Some(_), '"') => found.extend(literal.take()),
            (Some(text), _) => text.push(c),
            (None, '"') => literal = Some(String::new()),
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, _) => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// The words of every event at level info or above.
fn events() -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for source in sources() {
        for start in ["log::info!(", "log::warn!(", "log::error!("] {
            for call in source.split(start).skip(1) {
                words.extend(literals(call).pop());
            }
        }
        // Not its definition, nor another name that ends so.
        for start in [" event(", "connection_event("] {
            for call in source.split(start).skip(1) {
                words.extend(literals(call).into_iter().next());
            }
        }
    }
    // Put together at run time.
    words.retain(|event| !event.contains('{') && !event.is_empty());
    words
}

#[test]
fn every_log_line_is_in_the_readme() {
    let events = events();
    assert!(events.len() > 40, "{events:?}");
    assert!(events.contains("session opened") && events.contains("transfer finished"));
    let told = quoted(&chapter("Log"));
    // A long one may be cut.
    let is_told = |event: &&String| {
        told.contains(*event)
            || told.iter().any(|told| {
                let start = told.strip_suffix('…');
                start.is_some_and(|start| event.starts_with(start))
            })
    };
    let missing: Vec<_> = events.iter().filter(|event| !is_told(event)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_command_and_option_is_in_the_readme() {
    let help = |arguments: &[&str]| {
        let output = command().args(arguments).arg("--help").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = help(&[]);
    let list = text.split_once("Commands:\n").unwrap().1;
    let commands: Vec<&str> = list
        .lines()
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| *word != "help" && !word.starts_with('-'))
        .collect();
    assert!(commands.len() >= 9, "{text}");
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let told = quoted(&readme);
    for command in commands {
        let row = |quote: &String| quote.split(' ').next() == Some(command);
        assert!(told.iter().any(row), "{command} is not in the README");
        let options = help(&[command]);
        let options = options
            .split_whitespace()
            .filter(|word| word.starts_with("--"));
        for option in options {
            let option = option.trim_end_matches([',', '.', ']']);
            let is_told = readme.contains(option);
            assert!(is_told, "{command} {option} is not in the README");
        }
    }
}

#[test]
fn every_key_is_in_the_readme() {
    let told = quoted(&chapter("Configuration"));
    let mut missing = BTreeSet::new();
    // A file that says nothing but a wrong key hears of the right ones.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("proxy.conf");
    let sections = [
        "",
        "client_tls",
        "server_tls",
        "migration",
        "limits",
        "log",
        "login",
        "shutdown",
        "[peer]",
        "[backend]",
    ];
    for section in sections {
        let head = match section {
            "" => String::new(),
            name => format!("[{name}]\n"),
        };
        fs::write(&file, format!("{head}wrong = 1\n")).unwrap();
        let output = command().arg("--config").arg(&file).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let keys = text
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|key| *key != "wrong");
        let mut count = 0;
        for key in keys {
            count += 1;
            let tables = [
                "client_tls",
                "server_tls",
                "migration",
                "limits",
                "log",
                "login",
            ];
            let is_section = section.is_empty()
                && (tables.contains(&key) || ["shutdown", "peer", "backend"].contains(&key));
            let known = match is_section {
                true => told.contains(&format!("[{key}]")) || told.contains(&format!("[[{key}]]")),
                false => told.contains(key),
            };
            if !known {
                missing.insert(format!("{section} {key}"));
            }
        }
        assert!(count > 0, "{section}: {text}");
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
