//! The map in `src/lib.rs` against the code: import order, file sizes, threads,
//! locks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A file above this does two jobs.
const MAX_LINES: usize = 450;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every file of the proxy but its unit tests, with its path below `src`.
fn files() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![source()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|end| end != "rs") {
                continue;
            }
            let name = path.strip_prefix(source()).unwrap().to_str().unwrap();
            let is_test = ["tests", "model"].iter().any(|test| {
                name.contains(&format!("/{test}.rs")) || name.contains(&format!("/{test}/"))
            });
            if !is_test {
                found.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

/// A file without its comments and its unit tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn modules(lib: &str) -> Vec<String> {
    code(lib)
        .split("pub mod internal")
        .next()
        .unwrap()
        .lines()
        .filter_map(|line| {
            let line = line.trim().strip_prefix("mod ")?;
            Some(line.trim_end_matches(';').to_owned())
        })
        .collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// The first cells of the table below `heading` in the crate's documentation.
fn table(lib: &str, heading: &str) -> Vec<String> {
    lib.lines()
        .skip_while(|line| *line != format!("//! # {heading}"))
        .skip(1)
        .take_while(|line| !line.starts_with("//! # ") && line.starts_with("//!"))
        .filter_map(|line| line.strip_prefix("//! | ")?.split(" | ").next())
        .skip(1)
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_file_uses_only_modules_that_stand_after_its_own() {
    let files = files();
    let order = modules(&files["lib.rs"]);
    assert!(order.len() > 30, "{order:?}");
    let place = |module: &str| order.iter().position(|known| known == module);
    let mut wrong = Vec::new();
    for (name, text) in &files {
        let own = name.split('/').next().unwrap().trim_end_matches(".rs");
        let Some(own_place) = place(own) else {
            assert!(
                ["lib", "main"].contains(&own),
                "{name} is in no module of lib.rs"
            );
            continue;
        };
        let code = code(text);
        for used in code.split("crate::").skip(1) {
            let module = words(used).next().unwrap();
            match place(module) {
                Some(other) if other >= own_place => {}
                Some(_) => wrong.push(format!("{name} uses {module}")),
                None => wrong.push(format!("{name} uses {module}, which is no module")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_is_too_long() {
    let long: Vec<_> = files()
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn the_thread_table_names_every_thread() {
    let files = files();
    let listed: BTreeSet<String> = table(&files["lib.rs"], "Threads")
        .iter()
        .flat_map(|cell| cell.split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    // Not started here: main, the one that ctrlc keeps, and those that wait for work.
    let others = ["main", "ctrl-c", "spare"];
    let mut started = BTreeSet::from(others.map(str::to_owned));
    for text in files.values() {
        // By those of `crate::threads`, which are called by their work.
        for work in code(text).split(".start(format!(\"").skip(1) {
            let name = work.split('{').next().unwrap();
            started.insert(name.trim_end_matches('-').to_owned());
        }
        for spawned in code(text).split("threads::spawn(").skip(1) {
            let spawned = spawned.trim_start().trim_start_matches("format!(");
            let Some((name, _)) = spawned.strip_prefix('"').and_then(|it| it.split_once('"'))
            else {
                panic!("a thread without a name: {spawned}");
            };
            let base = name.split('{').next().unwrap().trim_end_matches('-');
            started.insert(base.to_owned());
        }
    }
    assert_eq!(listed, started);
}

/// Std ends the process where it finds no memory map for a thread's signal stack.
#[test]
fn no_thread_is_one_of_std() {
    for (name, text) in files() {
        for std in ["thread::Builder", "thread::spawn("] {
            let found = code(&text).contains(std) && !name.starts_with("forwarder/model");
            assert!(!found, "{name} has a {std}");
        }
    }
}

#[test]
fn the_lock_table_names_every_lock() {
    let files = files();
    let listed = table(&files["lib.rs"], "Locks").join(" ");
    let listed: BTreeSet<&str> = words(&listed).collect();
    let mut missing = Vec::new();
    for (name, text) in &files {
        for line in code(text).lines() {
            let line = line
                .trim()
                .trim_start_matches("pub ")
                .trim_start_matches("pub(crate) ");
            let Some((field, kind)) = line.split_once(": ") else {
                continue;
            };
            let is_field = words(field).eq([field]) && line.ends_with(',') && !line.contains('&');
            let is_lock = words(kind).any(|word| ["Mutex", "RwLock"].contains(&word));
            if is_field && is_lock && !line.contains("::new(") && !listed.contains(field) {
                missing.push(format!("{name}: {field}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
