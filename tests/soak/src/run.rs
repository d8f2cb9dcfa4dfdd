//! The run: warm-up, quiet, load, quiet; and the loop that reads the log, calls
//! for rounds and looks for whoever stands still.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use demo::children::{Child, Event};
use demo::log_line::Line;
use demo::{Result, Stop, failed};
use rustix::process::Signal;

use crate::board::Board;
use crate::client::Client;
use crate::options::Options;
use crate::pods::{Outages, Pods};
use crate::proxy::{self, Usage};
use crate::strangers;
use crate::table;
use crate::watch::Watch;
use crate::wire::{Trouble, Wire};

/// Without a sign of life for this long, a client stands still.
const STILL: Duration = Duration::from_secs(30);
/// The least and the most milliseconds from one SIGUSR1 to the next. The shorter
/// ones overlap a round that still waits.
const BETWEEN_ROUNDS_MS: std::ops::Range<u64> = 100..2_000;
/// How long the load runs before the first sample: what is made at the first use
/// stays.
const WARM_UP: Duration = Duration::from_secs(20);
/// How long the proxy has to let go of everything once all clients have left.
const QUIET: Duration = Duration::from_secs(20);
/// How much more resident memory than after the warm-up is still called flat:
/// what the allocator keeps depends on the moment's peaks, a leak grows with
/// every session and round.
const MEMORY_SLACK_KIB: u64 = 6 * 1024;
const PODS: usize = 3;
const PROXY: &str = "sqlproxy";

/// Everything that the run has.
pub(crate) struct Run {
    options: Options,
    interrupted: Arc<AtomicBool>,
    pub(crate) board: Arc<Board>,
    pub(crate) outages: Arc<Outages>,
    pub(crate) watch: Watch,
    inbox: Receiver<Event>,
    proxy: Child,
    address: SocketAddr,
    admin: SocketAddr,
    next_round: Instant,
    next_look: Instant,
    pub(crate) signals: u64,
    pub(crate) begin: Usage,
    pub(crate) peak: Usage,
    pub(crate) end: Usage,
    pub(crate) lasted: Duration,
}

/// Runs all of it; whether it was clean.
pub(crate) fn soak(options: Options, directory: &Path, stop: Arc<AtomicBool>) -> Result<bool> {
    let pods = Pods::start(PODS, &directory.join("tenant.db"))?;
    let file = directory.join("proxy.conf");
    let max_connections = match options.strangers {
        // Strangers find no more room than they are allowed.
        true => options.clients + 20,
        // Lost sessions and their successors overlap.
        false => options.clients * 2 + 100,
    };
    proxy::write_config(&file, &pods.addresses(), max_connections)?;
    let (events, inbox) = std::sync::mpsc::channel();
    let arguments = ["--config".to_owned(), file.display().to_string()];
    let proxy = Child::start(PROXY, PROXY, &arguments, &events)?;
    let (address, admin) = addresses(&inbox)?;
    println!(
        "soak: {} clients, {PODS} pods, {} minutes; sqlproxy pid {}",
        options.clients,
        options.time.as_secs() / 60,
        proxy.pid()
    );

    let log = options.log.as_ref().map(File::create).transpose()?;
    let board = Board::new(options.clients);
    let outages = Arc::new(Outages::default());
    let mut run = Run {
        watch: Watch::new(&board, &outages, log, options.strangers),
        options,
        interrupted: stop,
        board,
        outages,
        inbox,
        proxy,
        address,
        admin,
        next_round: Instant::now(),
        next_look: Instant::now(),
        signals: 0,
        begin: Usage::default(),
        peak: Usage::default(),
        end: Usage::default(),
        lasted: Duration::ZERO,
    };
    make_tables(run.address, run.options.clients)?;
    let clients = (0..run.options.clients).map(|number| Client::new(number, address, &run.board));
    let clients: Vec<_> = clients.collect();

    let (clients, pods) = run.load(clients, pods, WARM_UP)?;
    run.begin = run.quiet(None)?;
    let began = Instant::now();
    let time = run.options.time;
    run.load(clients, pods, time)?;
    run.lasted = began.elapsed();
    run.end = run.quiet(Some(run.begin))?;
    run.check_metrics()?;
    print!("{}", table::summary(&run));
    Ok(run.board.errors() == 0)
}

/// Where the proxy listens, as it says.
fn addresses(inbox: &Receiver<Event>) -> Result<(SocketAddr, SocketAddr)> {
    let (mut clients, mut admin) = (None, None);
    loop {
        if let (Some(clients), Some(admin)) = (clients, admin) {
            return Ok((clients, admin));
        }
        let line = match inbox.recv_timeout(STILL) {
            Ok(Event::Line { text, .. }) => text,
            Ok(Event::Ended { .. } | Event::Interrupt) | Err(_) => {
                return failed("the proxy does not begin to listen");
            }
        };
        let line = Line::parse(&line);
        let Some(address) = line.value("address") else {
            eprintln!("{}", line.raw);
            continue;
        };
        match line.event.as_str() {
            "admin listening" => admin = Some(address.parse()?),
            "listening" => clients = Some(address.parse()?),
            _ => {}
        }
    }
}

/// Through the proxy, as everything.
fn make_tables(proxy: SocketAddr, clients: usize) -> Result<()> {
    let make = || {
        let mut wire = Wire::dial(proxy, &Arc::default())?;
        wire.login("soak")?;
        for sql in [
            "CREATE TABLE soak_accounts (client INT PRIMARY KEY, n INT)".to_owned(),
            "CREATE TABLE soak_lines (batch TEXT, line INT, text TEXT)".to_owned(),
            "CREATE INDEX soak_batches ON soak_lines (batch)".to_owned(),
            format!(
                "INSERT INTO soak_accounts SELECT value, 0 FROM generate_series(0, {clients}) AS value"
            ),
        ] {
            wire.run(&sql, 'I')?;
        }
        wire.terminate()
    };
    make().map_err(|trouble: Trouble| Stop::Failed(format!("cannot make the tables: {trouble}")))
}

impl Run {
    /// All clients, all disturbances, for this long; then everybody leaves.
    fn load(
        &mut self,
        clients: Vec<Client>,
        pods: Pods,
        time: Duration,
    ) -> Result<(Vec<Client>, Pods)> {
        self.board.open(clients.len());
        let (strangers, killer) = if self.options.strangers {
            let strangers = strangers::send(&self.board, self.address, self.admin)?;
            (strangers, pods.leave_alone())
        } else {
            let (board, outages) = (Arc::clone(&self.board), Arc::clone(&self.outages));
            (Vec::new(), pods.harass(board, outages))
        };
        let mut threads = Vec::new();
        for mut client in clients {
            let board = Arc::clone(&self.board);
            threads.push(
                thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || {
                        client.live();
                        board.stopped();
                        client
                    })?,
            );
        }
        let deadline = Instant::now() + time;
        while Instant::now() < deadline && !self.interrupted.load(Ordering::Relaxed) {
            self.step(true)?;
        }
        self.board.stop();
        while self.board.running() > 0 {
            self.step(true)?;
        }
        let panicked = || Stop::Failed("a thread of the soak has panicked".to_owned());
        let mut back = Vec::new();
        for thread in threads {
            back.push(thread.join().map_err(|_| panicked())?);
        }
        for stranger in strangers {
            stranger.join().map_err(|_| panicked())?;
        }
        Ok((back, killer.join().map_err(|_| panicked())?))
    }

    /// Waits until nothing is left of the load, and samples. Where more is in use
    /// than `before`, that is an error.
    fn quiet(&mut self, before: Option<Usage>) -> Result<Usage> {
        let deadline = Instant::now() + QUIET;
        let mut calm = Instant::now();
        let mut last = self.usage()?;
        loop {
            self.step(false)?;
            let now = self.usage()?;
            let sessions = proxy::scrape(self.admin)?.get("proxy_sql_conns").copied();
            if (now.threads, now.descriptors) != (last.threads, last.descriptors)
                || sessions != Some(0.0)
                || self.watch.open_losses() > 0
            {
                calm = Instant::now();
            }
            last = now;
            // Long enough for what is about to end to have ended.
            if calm.elapsed() > Duration::from_secs(3) {
                break;
            }
            if Instant::now() > deadline {
                let text =
                    format!("no quiet after all clients left: {sessions:?} sessions, {now:?}");
                self.board.error(None, &text);
                print!("{}", proxy::threads(self.proxy.pid(), ""));
                break;
            }
        }
        let Some(before) = before else {
            return Ok(last);
        };
        for (what, before, now) in [
            ("threads", before.threads, last.threads),
            ("descriptors", before.descriptors, last.descriptors),
            ("KiB of memory", before.kib + MEMORY_SLACK_KIB, last.kib),
        ] {
            if now > before {
                let text = format!("the proxy had up to {before} {what} and has {now}");
                self.board.error(None, &text);
            }
        }
        Ok(last)
    }

    /// The metrics must say what the log said.
    fn check_metrics(&mut self) -> Result<()> {
        let metrics = proxy::scrape(self.admin)?;
        let seen = self.watch.transfers;
        for (name, expected) in [
            ("attempted", seen.success + seen.recoverable + seen.fatal),
            ("success", seen.success),
            ("error_recoverable", seen.recoverable),
            ("error_fatal", seen.fatal),
        ] {
            let name = format!("proxy_conn_migration_{name}");
            let found = metrics.get(&name).copied();
            #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
            if found != Some(expected as f64) {
                let text = format!("{name} is {found:?}, the log has {expected}");
                self.board.error(None, &text);
            }
        }
        for level in [
            "sql_conns",
            "balancer_rebalance_queued",
            "balancer_rebalance_running",
        ] {
            let found = metrics.get(&format!("proxy_{level}"));
            if found != Some(&0.0) {
                self.board
                    .error(None, &format!("proxy_{level} is {found:?} at the end"));
            }
        }
        Ok(())
    }

    fn usage(&mut self) -> Result<Usage> {
        let now = Usage::of(self.proxy.pid())?;
        self.peak = self.peak.max(now);
        Ok(now)
    }

    /// One line of the log, or a moment without one; and what is due.
    fn step(&mut self, rounds: bool) -> Result<()> {
        match self.inbox.recv_timeout(Duration::from_millis(50)) {
            Ok(Event::Line { text, .. }) => self.watch.line(&text),
            Ok(Event::Interrupt) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Event::Ended { .. }) | Err(RecvTimeoutError::Disconnected) => {
                return failed("the proxy has ended by itself");
            }
        }
        let now = Instant::now();
        if rounds && now >= self.next_round {
            self.proxy.signal(Signal::USR1)?;
            self.signals += 1;
            self.next_round = now + Duration::from_millis(fastrand::u64(BETWEEN_ROUNDS_MS));
        }
        if now >= self.next_look {
            self.next_look = now + Duration::from_secs(1);
            self.usage()?;
            self.watch.check_losses();
            self.look_for_the_still()?;
        }
        Ok(())
    }

    /// The watchdog.
    fn look_for_the_still(&mut self) -> Result<()> {
        let mut still = Vec::new();
        for (number, pulse) in self.board.pulses.iter().enumerate() {
            if let Some(waiting) = pulse.waiting().filter(|waiting| *waiting > STILL) {
                still.push((number, waiting, pulse.now()));
            }
        }
        if still.is_empty() {
            return Ok(());
        }
        // Where the log lags behind, it is read first: it says whose threads to show.
        while let Ok(Event::Line { text, .. }) = self.inbox.try_recv() {
            self.watch.line(&text);
        }
        for (number, waiting, now) in still.iter().take(10) {
            let local = now.local.map(|local| local.to_string()).unwrap_or_default();
            let conn = self.watch.conn_of(&local).unwrap_or_default();
            let kind = crate::board::Kind::of(*number);
            let text = format!(
                "{} client {number} ({local}, conn {conn}) stands still for {waiting:.0?}, waiting for: {}",
                kind.name(),
                now.what
            );
            self.board.error(Some(kind), &text);
            for line in self.watch.lines_of(&conn) {
                println!("    {line}");
            }
            print!("{}", proxy::threads(self.proxy.pid(), &conn));
        }
        print!("{}", table::summary(self));
        failed(format!("{} clients stand still", still.len()))
    }
}
