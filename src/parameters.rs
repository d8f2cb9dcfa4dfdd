//! What a client has been told by ParameterStatus.

use std::collections::BTreeMap;

use crate::message::put_parameter_status;

/// The server parameters a client knows of, with their last values.
///
/// A pooler-less client takes `server_version`, `TimeZone` and the like from
/// ParameterStatus only, so after a transfer it has to hear what differs on the
/// new server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters(BTreeMap<Vec<u8>, Vec<u8>>);

impl Parameters {
    /// Notes a value.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.0.get_mut(name) {
            Some(known) => {
                known.clear();
                known.extend_from_slice(value);
            }
            None => {
                self.0.insert(name.to_vec(), value.to_vec());
            }
        }
    }

    /// Takes over the values of `new`, and appends to `out` a ParameterStatus
    /// for each that the client does not know yet.
    pub fn update(&mut self, new: &Self, out: &mut Vec<u8>) {
        for (name, value) in &new.0 {
            if self.0.get(name) != Some(value) {
                put_parameter_status(out, name, value);
                self.set(name, value);
            }
        }
    }
}
