//! Makes what a package of the proxy holds beside the binary, into the folder that is
//! given: its manual pages, its shell completions, and the `proxy.conf` that it is
//! installed with.  `scripts/package` runs it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;
use sqlproxy::internal::Arguments;

mod configuration;
mod manual;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [folder] = arguments.as_slice() else {
        eprintln!("usage: package-files FOLDER");
        return ExitCode::from(2);
    };
    match make(&PathBuf::from(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("package-files: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(folder: &Path) -> io::Result<()> {
    let manuals = folder.join("man");
    let completions = folder.join("completions");
    std::fs::create_dir_all(&manuals)?;
    std::fs::create_dir_all(&completions)?;
    manual::write_pages(Arguments::command(), &manuals)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Arguments::command(), "sqlproxy", &completions)?;
    }
    let configuration = configuration::installed().map_err(io::Error::other)?;
    std::fs::write(folder.join("proxy.conf"), configuration)
}
