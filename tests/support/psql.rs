//! psql as a process that is spoken to line by line.

use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::log::Log;
use super::soon;

pub(crate) struct Psql {
    child: Child,
    input: ChildStdin,
    output: Log,
    errors: Log,
    questions: usize,
}

impl Psql {
    /// Starts it with a connection string.
    pub(crate) fn connect(conninfo: &str) -> Self {
        let mut child = Command::new("psql")
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"])
            .arg(conninfo)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql is installed");
        Self {
            input: child.stdin.take().unwrap(),
            output: Log::read(child.stdout.take().unwrap()),
            errors: Log::read(child.stderr.take().unwrap()),
            child,
            questions: 0,
        }
    }

    /// Has `input` executed and gives the lines that came out.
    ///
    /// # Panics
    /// If psql complains of anything.
    pub(crate) fn run(&mut self, input: &str) -> Vec<String> {
        self.questions += 1;
        let marker = format!("answer {}", self.questions);
        let position = self.output.position();
        writeln!(self.input, "{input}\n\\echo {marker}").unwrap();
        let end = self
            .output
            .wait(position, soon(), |line| line.raw == marker);
        assert!(end.is_some(), "{input}: {}", self.errors.text());
        assert_eq!(self.errors.text(), "", "{input}");
        let lines = self.output.since(position).into_iter();
        lines
            .map(|line| line.raw)
            .take_while(|line| *line != marker)
            .collect()
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        // Both fail only where the process is already gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
