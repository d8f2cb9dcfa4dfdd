//! The manual pages: sqlproxy(1), and one for each command, sqlproxy-drain(1) say.
//!
//! clap_mangen knows options and commands.  The text after the options it would run
//! together, so that is taken apart here: signals, exit codes, environment.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

const MANUAL: &str = "sqlproxy's manual";

/// What an installed proxy has.
const FILES: [(&str, &str); 2] = [
    (
        "/etc/sqlproxy/proxy.conf",
        "The configuration of the service; it explains each key in place.",
    ),
    (
        "/run/sqlproxy/control.sock",
        "Where the service takes commands, of root and of its own user.",
    ),
];

/// Part of the text after the options: a title, and what stands below it.
#[derive(Debug, PartialEq, Eq)]
struct Section {
    title: String,
    items: Vec<(String, String)>,
}

/// Writes all pages into `folder`.
///
/// # Errors
/// A file cannot be written, or the text after the options has a shape that is not
/// known.
pub(crate) fn write_pages(command: Command, folder: &Path) -> io::Result<()> {
    let mut command = command
        .disable_help_subcommand(true)
        .subcommand_help_heading("COMMANDS");
    command.build();
    let source = format!("sqlproxy {}", command.get_version().unwrap_or_default());
    let page = |command: &Command| {
        let usage = usage(command);
        let name = command.get_display_name().unwrap_or("sqlproxy");
        Man::new(command.clone().override_usage(usage))
            .title(name.to_uppercase())
            // Where there is none, roff takes the next word for it.
            .date(" ")
            .source(source.as_str())
            .manual(MANUAL)
    };

    let man = page(&command);
    let mut file = File::create(folder.join(man.get_filename()))?;
    man.render_title(&mut file)?;
    man.render_name_section(&mut file)?;
    man.render_synopsis_section(&mut file)?;
    man.render_description_section(&mut file)?;
    man.render_options_section(&mut file)?;
    man.render_subcommands_section(&mut file)?;
    let after = command.get_after_help().map(ToString::to_string);
    let sections = sections(&after.unwrap_or_default()).map_err(io::Error::other)?;
    for Section { title, items } in &sections {
        let items = items
            .iter()
            .map(|(term, text)| (term.as_str(), text.as_str()));
        write_list(&mut file, title, items)?;
    }
    write_list(&mut file, "FILES", FILES)?;

    for subcommand in command.get_subcommands() {
        let man = page(subcommand);
        let mut file = File::create(folder.join(man.get_filename()))?;
        man.render(&mut file)?;
        let mut roff = Roff::new();
        roff.control("SH", ["SEE ALSO"]);
        roff.text([bold("sqlproxy"), roman("(1)")]);
        roff.to_writer(&mut file)?;
    }
    Ok(())
}

/// The ways to call it, one a line.
fn usage(command: &Command) -> String {
    if command.has_subcommands() {
        return "sqlproxy [--config FILE] [--check-config]\n\
                sqlproxy [--config FILE] COMMAND"
            .to_owned();
    }
    let mut usage = format!("sqlproxy [--config FILE] {}", command.get_name());
    for argument in command.get_arguments() {
        let values = argument.get_value_names().unwrap_or_default();
        let value = match argument.get_action().takes_values() {
            true => values.iter().map(|name| format!(" {name}")).collect(),
            false => String::new(),
        };
        match argument.get_long() {
            Some("help") => {}
            Some(long) => usage.push_str(&format!(" [--{long}{value}]")),
            None => usage.push_str(&value),
        }
    }
    usage
}

fn write_list<'a>(
    file: &mut impl Write,
    title: &str,
    items: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [title.to_uppercase().as_str()]);
    for (term, text) in items {
        roff.control("TP", []);
        roff.text([bold(term)]);
        roff.text([roman(text)]);
    }
    roff.to_writer(file)
}

/// Takes apart what stands after the options: `Title:`, and below it lines that are
/// indented by two, a term and after two spaces or more its text, which goes on in lines
/// that are indented further.
fn sections(text: &str) -> Result<Vec<Section>, String> {
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let unknown = || format!("the text after the options: not known what this is: {line:?}");
        let words = line.trim_start();
        match line.len() - words.len() {
            0 => sections.push(Section {
                title: words.strip_suffix(':').ok_or_else(unknown)?.to_owned(),
                items: Vec::new(),
            }),
            2 => {
                let (term, text) = words.split_once("  ").ok_or_else(unknown)?;
                let item = (term.to_owned(), text.trim_start().to_owned());
                let section = sections.last_mut().ok_or_else(unknown)?;
                section.items.push(item);
            }
            _ => {
                let section = sections.last_mut().ok_or_else(unknown)?;
                let (_, text) = section.items.last_mut().ok_or_else(unknown)?;
                text.push(' ');
                text.push_str(words);
            }
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        reason = "a failed expectation is the test's failure"
    )]

    use clap::CommandFactory;
    use sqlproxy::internal::Arguments;

    use super::*;

    #[test]
    fn every_command_has_a_page_and_stands_in_the_first() {
        let folder = tempfile::TempDir::new().unwrap();
        write_pages(Arguments::command(), folder.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let first = read("sqlproxy.1");
        for section in [
            "NAME",
            "OPTIONS",
            "COMMANDS",
            "SIGNALS",
            "\"EXIT CODES\"",
            "ENVIRONMENT",
            "FILES",
        ] {
            assert!(
                first.contains(&format!(".SH {section}\n")),
                "{section}: {first}"
            );
        }
        assert!(read("sqlproxy-drain.1").contains(
            "sqlproxy [\\-\\-config FILE] drain NAME [\\-\\-wait DURATION] [\\-\\-json]"
        ));
        for command in Arguments::command().get_subcommands() {
            let name = command.get_name();
            assert!(first.contains(&format!("sqlproxy\\-{name}(1)")), "{name}");
            let page = read(&format!("sqlproxy-{name}.1"));
            let about = command.get_about().unwrap().to_string();
            assert!(page.contains(&about), "{name}: {page}");
        }
    }

    #[test]
    fn a_text_in_sections_is_taken_apart() {
        let text = "Signals:\n  SIGUSR1      Move every\n               session\n  SIGINT, SIGTERM  End\n\n\
                    Exit codes:\n  0  Ended";
        let item = |term: &str, text: &str| (term.to_owned(), text.to_owned());
        let expected = [
            Section {
                title: "Signals".to_owned(),
                items: vec![
                    item("SIGUSR1", "Move every session"),
                    item("SIGINT, SIGTERM", "End"),
                ],
            },
            Section {
                title: "Exit codes".to_owned(),
                items: vec![item("0", "Ended")],
            },
        ];
        assert_eq!(sections(text).unwrap(), expected);
    }

    #[test]
    fn a_text_of_another_shape_is_refused() {
        for text in [
            "Signals",
            "  A  b",
            "Signals:\n  SIGUSR1",
            "Signals:\n      more",
        ] {
            assert!(sections(text).is_err(), "{text:?}");
        }
    }
}
