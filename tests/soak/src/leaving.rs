//! Clients that leave without a word, at every moment.

use std::time::Instant;

use postgres_protocol::message::frontend;

use crate::client::{Client, keep};
use crate::wire::{Result, Wire};

impl Client {
    /// Leaves before it has a session.
    pub(crate) fn leave_early(&mut self, mut wire: Wire) -> Result<()> {
        let began = Instant::now();
        match fastrand::u8(0..4) {
            // A health probe.
            0 => drop(wire),
            1 => wire.reset(),
            // Half a startup packet.
            2 => wire.send_bytes(&[0, 0, 0, 100, 0, 3, 0, 0, b'u'])?,
            // All of one, and gone while the server is asked.
            _ => {
                let parameters = [("user", "leaver"), ("database", "defaultdb")];
                wire.send(|buffer| frontend::startup_message(parameters, buffer))?;
                if fastrand::bool() {
                    wire.reset();
                }
            }
        }
        self.done(began);
        self.rest(500);
        Ok(())
    }

    /// Works a little, then leaves in one of many ways.
    pub(crate) fn leave_or_stay(&mut self, mut wire: Wire) -> Result<Option<Wire>> {
        if fastrand::u8(0..5) > 0 {
            self.ping(&mut wire)?;
            return Ok(Some(wire));
        }
        let began = Instant::now();
        match fastrand::u8(0..9) {
            0 => wire.terminate()?,
            1 => drop(wire),
            2 => wire.reset(),
            3 => {
                wire.send(|buffer| frontend::query("SELECT 'nobody reads this'", buffer))?;
                self.drop_or_reset(wire);
            }
            4 => {
                wire.run("BEGIN", 'T')?;
                wire.ask("SELECT 'open'", "open", 'T')?;
                self.drop_or_reset(wire);
            }
            5 => {
                let batch = self.begin_copy(&mut wire)?;
                self.send_lines(&mut wire, &format!("{batch}\t1\tlost\n").repeat(10))?;
                self.drop_or_reset(wire);
            }
            6 => {
                for _ in 0..20 {
                    let value = self.text();
                    wire.send(|buffer| keep(buffer, &value))?;
                }
                self.drop_or_reset(wire);
            }
            // The first bytes of a query.
            7 => {
                wire.send_bytes(&[b'Q', 0, 0, 1, 0, b'S', b'E', b'L'])?;
                self.drop_or_reset(wire);
            }
            _ => {
                wire.send(|buffer| frontend::query("SELECT pg_sleep(2)", buffer))?;
                self.rest(100);
                self.drop_or_reset(wire);
            }
        }
        self.done(began);
        self.rest(500);
        Ok(None)
    }

    fn drop_or_reset(&self, wire: Wire) {
        if fastrand::bool() {
            wire.reset();
        }
    }
}
