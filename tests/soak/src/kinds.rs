//! What each kind of client does, and what must come of it. Pipelined clients
//! stand in `pipeline`, the sudden ends in `leaving`.

use std::time::{Duration, Instant};

use postgres_protocol::message::frontend;

use crate::board::Kind;
use crate::client::{Client, keep};
use crate::wire::{self, Result, Wire, wrong};

/// A cancel may come before its query has begun, and is void then. It is sent
/// again after this time.
const CANCEL_AGAIN: Duration = Duration::from_secs(2);
/// The query that is to be cancelled.  A cancel without effect shows by its row, and a
/// session whose client has left it behind ends with it: before the proxy has to be quiet.
const CANCELLED_QUERY: &str = "SELECT pg_sleep(15)";

impl Client {
    /// One operation of this client's kind. `None`: it has left.
    pub(crate) fn operate(&mut self, mut wire: Wire) -> Result<Option<Wire>> {
        match self.kind {
            Kind::PingPong => self.ping(&mut wire)?,
            Kind::Pipelined => self.pipeline(&mut wire)?,
            Kind::Transaction if fastrand::u8(..) < 50 => self.write_transaction(&mut wire)?,
            Kind::Transaction => self.read_transaction(&mut wire)?,
            Kind::Copy => self.copy(&mut wire)?,
            Kind::Long => self.long(&mut wire)?,
            Kind::Cancel => self.cancelled(&mut wire)?,
            Kind::Leaver => return self.leave_or_stay(wire),
        }
        Ok(Some(wire))
    }

    /// A question and its answer, one way or another.
    pub(crate) fn ping(&mut self, wire: &mut Wire) -> Result<()> {
        let value = self.text();
        let began = Instant::now();
        match fastrand::u8(0..8) {
            0 => {
                self.pulse.note("the kept statement");
                wire.send(|buffer| keep(buffer, &value))?;
                let answer = wire.answer()?;
                answer.must_be("2DC", 'I', "the kept statement")?;
                answer.must_have(&[&self.kept(&value)], "the kept statement")?;
            }
            1 => {
                let sql = format!("SELECT * FROM \"{value}\"");
                let answer = wire.query(&sql)?;
                answer.must_be("E", 'I', &sql)?;
                let (code, text) = answer.error.unwrap_or_default();
                if code != "42P01" || !text.contains(&value) {
                    return wrong(format!("{sql}: {code} {text}"));
                }
            }
            _ => wire.ask(&format!("SELECT '{value}'"), &value, 'I')?,
        }
        self.done(began);
        self.rest(30);
        Ok(())
    }

    /// Two statements that must see the same, with some time between them.
    fn read_transaction(&mut self, wire: &mut Wire) -> Result<()> {
        let began = Instant::now();
        wire.run("BEGIN", 'T')?;
        self.check_account(wire, 'T')?;
        self.rest(150);
        let value = self.text();
        wire.ask(&format!("SELECT '{value}'"), &value, 'T')?;
        if fastrand::u8(0..4) == 0 {
            wire.query("SELECT nothing")?
                .must_be("E", 'E', "SELECT nothing")?;
            self.rest(20);
            wire.query("SELECT 1")?.must_be("E", 'E', "SELECT 1")?;
            wire.run("ROLLBACK", 'I')?;
        } else {
            wire.run("COMMIT", 'I')?;
        }
        self.done(began);
        self.rest(500);
        Ok(())
    }

    /// Adds one to the client's own account.
    fn write_transaction(&mut self, wire: &mut Wire) -> Result<()> {
        let began = Instant::now();
        // Where the last session ended in a COMMIT, this tells what became of it.
        self.check_account(wire, 'I')?;
        let (before, _) = self.account;
        let number = self.number;
        wire.run("BEGIN", 'T')?;
        let update = format!("UPDATE soak_accounts SET n = n + 1 WHERE client = {number}");
        let answer = wire.query(&update)?;
        if self.is_contention(answer.error.as_ref()) {
            return wire.run("ROLLBACK", 'I');
        }
        answer.must_be("C", 'T', &update)?;
        if answer.commands != ["UPDATE 1"] {
            return wrong(format!("{update}: {}", answer.shown()));
        }
        self.account = (before + 1, before + 1);
        let seen = self.check_account(wire, 'T');
        // From here to the answer nobody knows.
        self.account = (before, before + 1);
        seen?;
        let answer = wire.query("COMMIT")?;
        if self.is_contention(answer.error.as_ref()) {
            self.account = (before, before);
            return Ok(());
        }
        answer.must_be("C", 'I', "COMMIT")?;
        self.account = (before + 1, before + 1);
        self.check_account(wire, 'I')?;
        self.done(began);
        self.rest(2000);
        Ok(())
    }

    fn check_account(&mut self, wire: &mut Wire, status: char) -> Result<()> {
        let sql = format!("SELECT n FROM soak_accounts WHERE client = {}", self.number);
        let answer = wire.query(&sql)?;
        answer.must_be("TDC", status, &sql)?;
        let value = match answer.rows.as_slice() {
            [row] => row.first().and_then(|value| value.as_deref()?.parse().ok()),
            _ => None,
        };
        let (low, high) = self.account;
        match value {
            Some(value) if value == low || value == high => {
                self.account = (value, value);
                Ok(())
            }
            _ => wrong(format!("not {low} or {high}: {}", answer.shown())),
        }
    }

    fn copy(&mut self, wire: &mut Wire) -> Result<()> {
        match fastrand::u8(0..6) {
            0 => self.copy_out(wire)?,
            1 => self.copy_in_fails(wire)?,
            _ => self.copy_in(wire)?,
        }
        self.rest(3000);
        Ok(())
    }

    /// A long result that touches no table.
    fn copy_out(&mut self, wire: &mut Wire) -> Result<()> {
        let (began, count) = (Instant::now(), fastrand::u32(1..4000));
        let sql = format!("COPY (SELECT * FROM generate_series(1, {count})) TO STDOUT");
        let answer = wire.query(&sql)?;
        answer.must_be("HdcC", 'I', &sql)?;
        let expected: String = (1..=count).map(|line| format!("{line}\n")).collect();
        if answer.copied != expected.as_bytes() || answer.commands != [format!("COPY {count}")] {
            return wrong(format!("{sql}: {}", answer.shown()));
        }
        self.done(began);
        Ok(())
    }

    /// Begins a COPY and gives the lines' source in return.
    pub(crate) fn begin_copy(&mut self, wire: &mut Wire) -> Result<String> {
        let batch = self.text();
        let sql = "COPY soak_lines (batch, line, text) FROM STDIN";
        self.pulse.note(sql);
        wire.send(|buffer| frontend::query(sql, buffer))?;
        match wire.message()? {
            message if message.tag == b'G' => Ok(batch),
            message => wrong(format!("{sql}: {}", message.shown())),
        }
    }

    /// Lines in several messages that end anywhere; some time between them.
    pub(crate) fn send_lines(&self, wire: &mut Wire, lines: &str) -> Result<()> {
        for piece in lines.as_bytes().chunks(fastrand::usize(100..4000)) {
            wire.send(|buffer| {
                frontend::CopyData::new(piece)?.write(buffer);
                Ok::<_, std::io::Error>(())
            })?;
            if fastrand::u8(0..8) == 0 {
                self.rest(5);
            }
        }
        Ok(())
    }

    /// Rows in, the same rows out, and away with them.
    fn copy_in(&mut self, wire: &mut Wire) -> Result<()> {
        let began = Instant::now();
        let batch = self.begin_copy(wire)?;
        let count = fastrand::u32(1..300);
        let out: String = (0..count)
            .map(|line| format!("{line}\t{batch} line {line}\n"))
            .collect();
        let lines: String = out
            .lines()
            .map(|line| format!("{batch}\t{line}\n"))
            .collect();
        self.send_lines(wire, &lines)?;
        self.pulse.note("the end of a COPY");
        wire.send(|buffer| {
            frontend::copy_done(buffer);
            Ok::<_, std::io::Error>(())
        })?;
        let answer = wire.answer()?;
        if self.is_contention(answer.error.as_ref()) {
            return Ok(());
        }
        answer.must_be("C", 'I', "COPY FROM STDIN")?;
        if answer.commands != [format!("COPY {count}")] {
            return wrong(format!("{count} lines in: {}", answer.shown()));
        }
        let sql = format!(
            "COPY (SELECT line, text FROM soak_lines WHERE batch = '{batch}' ORDER BY line) TO STDOUT"
        );
        let answer = wire.query(&sql)?;
        answer.must_be("HdcC", 'I', &sql)?;
        if answer.copied != out.as_bytes() {
            return wrong(format!("{sql}: {}", answer.shown()));
        }
        self.done(began);
        self.delete(wire, &batch, count)
    }

    fn delete(&mut self, wire: &mut Wire, batch: &str, count: u32) -> Result<()> {
        let sql = format!("DELETE FROM soak_lines WHERE batch = '{batch}'");
        loop {
            let answer = wire.query(&sql)?;
            if self.is_contention(answer.error.as_ref()) {
                continue;
            }
            answer.must_be("C", 'I', &sql)?;
            if answer.commands != [format!("DELETE {count}")] {
                return wrong(format!("{count} lines: {}", answer.shown()));
            }
            return Ok(());
        }
    }

    /// The client takes its lines back, or sends some that are none.
    fn copy_in_fails(&mut self, wire: &mut Wire) -> Result<()> {
        let began = Instant::now();
        let batch = self.begin_copy(wire)?;
        let broken = fastrand::bool();
        let lines = if broken {
            format!("{batch}\t1\n").repeat(20)
        } else {
            format!("{batch}\t1\tgood\n").repeat(20)
        };
        self.send_lines(wire, &lines)?;
        self.pulse.note("the failure of a COPY");
        wire.send(|buffer| match broken {
            true => {
                frontend::copy_done(buffer);
                Ok(())
            }
            false => frontend::copy_fail("changed my mind", buffer),
        })?;
        let answer = wire.answer()?;
        if self.is_contention(answer.error.as_ref()) {
            return Ok(());
        }
        answer.must_be("E", 'I', "a COPY that fails")?;
        let code = answer.error.unwrap_or_default().0;
        if code != if broken { "22P04" } else { "57014" } {
            return wrong(format!("a COPY that fails: {code}"));
        }
        let sql = format!("SELECT count(*) FROM soak_lines WHERE batch = '{batch}'");
        wire.ask(&sql, "0", 'I')?;
        self.done(began);
        Ok(())
    }

    fn long(&mut self, wire: &mut Wire) -> Result<()> {
        let began = Instant::now();
        if fastrand::u8(0..3) == 0 {
            let count = fastrand::usize(1000..5000);
            let sql = format!("SELECT * FROM generate_series(1, {count})");
            let answer = wire.query(&sql)?;
            answer.must_be("TDC", 'I', &sql)?;
            let expected = (1..=count).map(|number| vec![Some(number.to_string())]);
            if !answer.rows.iter().cloned().eq(expected) {
                return wrong(format!("{sql}: {}", answer.shown()));
            }
        } else {
            let seconds = fastrand::u32(1..30) / 10;
            wire.ask(&format!("SELECT pg_sleep({seconds}.3)"), "", 'I')?;
        }
        self.done(began);
        self.rest(300);
        Ok(())
    }

    /// A query that would take long, ended by a cancel: this one, and no other.
    fn cancelled(&mut self, wire: &mut Wire) -> Result<()> {
        let began = Instant::now();
        let mut sent = 0;
        self.pulse.note(CANCELLED_QUERY);
        wire.send(|buffer| frontend::query(CANCELLED_QUERY, buffer))?;
        self.board
            .pause(Duration::from_millis(fastrand::u64(20..300)));
        let answer = loop {
            wire::cancel(self.proxy, wire.key)?;
            sent += 1;
            if let Some(answer) = wire.answer_within(CANCEL_AGAIN)? {
                break answer;
            }
        };
        answer.must_be("E", 'I', CANCELLED_QUERY)?;
        if answer.error.as_ref().map(|error| error.0.as_str()) != Some("57014") {
            return wrong(format!("a cancelled query: {}", answer.shown()));
        }
        self.done(began);
        if sent > 1 {
            // An early one may have been on its way all the time, and may hit
            // what comes next.
            self.rest(500);
            wire.query("SELECT 'late cancels'")?;
        }
        self.rest(1000);
        let value = self.text();
        wire.ask(&format!("SELECT '{value}'"), &value, 'I')
    }
}
