//! What a message costs the machine: counted, not timed.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::proxy::{Proxy, Setup};
use crate::support::server::Server;

const TRANSACTIONS: usize = 50;

/// strace on a running proxy.
struct Trace {
    strace: Child,
    file: tempfile::NamedTempFile,
}

impl Trace {
    /// Begins once all threads are traced.  `None`, and a word of why, where this
    /// machine has no strace or forbids it.
    fn attach(proxy: &Proxy) -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        // What a lock does that is contended, which is the scheduler's to say.
        let strace = Command::new("strace")
            .args(["-f", "-e", "trace=!futex,sched_yield", "-o"])
            .arg(file.path())
            .args(["-p", &proxy.pid().to_string()])
            .stderr(Stdio::piped())
            .spawn();
        let mut strace = match strace {
            Ok(strace) => strace,
            Err(error) => {
                eprintln!("skipped: strace: {error}");
                return None;
            }
        };
        let mut lines = BufReader::new(strace.stderr.take().unwrap()).lines();
        // "strace: Process 12 attached with 7 threads".
        let line = lines.next().map(Result::unwrap).unwrap_or_default();
        if !line.contains("attached") {
            assert!(line.contains("ermitted"), "{line}");
            eprintln!("skipped: {line}");
            strace.wait().unwrap();
            return None;
        }
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { strace, file })
    }

    /// Ends the trace; the names of the thread's calls, in their order, that ended
    /// meanwhile.
    fn calls(&mut self, thread: i32) -> Vec<String> {
        let strace = Pid::from_raw(i32::try_from(self.strace.id()).unwrap());
        if self.strace.try_wait().unwrap().is_none() {
            kill(strace, Signal::SIGINT).unwrap();
            self.strace.wait().unwrap();
        }
        let mut text = String::new();
        let mut file = self.file.reopen().unwrap();
        file.read_to_string(&mut text).unwrap();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines
            // A call that another thread's line has cut in two ends with the second.
            .filter(|(number, call)| {
                *number == thread.to_string()
                    && !call.contains("<unfinished")
                    && !call.contains("<detached")
            })
            .map(|(_, call)| {
                let call = call.trim_start();
                let call = call.strip_prefix("<... ").unwrap_or(call);
                call.split(['(', ' ']).next().unwrap().to_owned()
            })
            .collect()
    }
}

#[test]
fn a_message_costs_two_system_calls() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = proxy.login("maria");
    proxy.wait_opened(&client);
    proxy.resources_at_rest(1);
    let Some(mut trace) = Trace::attach(&proxy) else {
        return;
    };
    for number in 0..TRANSACTIONS {
        let query = format!("SELECT {number}");
        assert_eq!(client.value(&query), query);
    }
    for direction in ["request-", "response-"] {
        let calls = trace.calls(proxy.thread(direction));
        // The call that strace finds under way, it may interrupt or not see.
        let sends = |call: &String| call == "sendto";
        let first = calls.iter().position(sends).unwrap();
        let last = calls.iter().rposition(sends).unwrap();
        let mut wanted = ["sendto", "recvfrom"].repeat(TRANSACTIONS);
        wanted.pop();
        assert_eq!(calls[first..=last], wanted, "{direction}");
    }
}
