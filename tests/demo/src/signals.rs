//! Ends the demo in time, whatever it is doing: on Ctrl-C and on a deadline.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use demo::Result;
use demo::children::Event;

/// How long the orderly end may take before it is cut short. The proxy's own
/// stop is bounded below this.
const ORDERLY_END: Duration = Duration::from_secs(20);

/// How long `--once` may take in all. A whole run takes seconds; this is for a
/// query that is never answered, which nothing else here would end.
const ONCE_LIMIT: Duration = Duration::from_secs(120);

/// Turns signals that ask to end into [`Event::Interrupt`]. A second one, or an
/// end that takes too long, ends the process at once.
pub(crate) fn watch(events: Sender<Event>, directory: &Path, once: bool) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let directory = directory.to_owned();
    if once {
        end_after(ONCE_LIMIT, &directory, "the whole demo took too long");
    }
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut asked = false;
            for _ in &mut signals {
                if asked {
                    end_now(&directory, "asked to end twice");
                }
                asked = true;
                end_after(ORDERLY_END, &directory, "the orderly end took too long");
                // Nobody listens any more where the demo is ending already.
                let _ = events.send(Event::Interrupt);
            }
        })?;
    Ok(())
}

fn end_after(limit: Duration, directory: &Path, why: &'static str) {
    let directory: PathBuf = directory.to_owned();
    thread::spawn(move || {
        thread::sleep(limit);
        end_now(&directory, why);
    });
}

/// The children end with this process: see [`demo::children::become_child`].
fn end_now(directory: &Path, why: &str) -> ! {
    eprintln!("\ndemo: ended at once: {why}");
    // The children may still be writing; what cannot be removed stays.
    let _ = std::fs::remove_dir_all(directory);
    std::process::exit(1);
}
