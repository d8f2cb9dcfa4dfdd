//! Whether a server is one that a session may be moved to.

use std::fmt;

use super::state::Place;

/// Why a server is not the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongTarget {
    /// Another system identifier, or a database in another encoding.
    OtherCluster,
    /// A standby, where the session's server is none.
    Standby,
    /// Read-only by its configuration, where the session's server is not.
    ReadOnly,
    /// It has not got yet all that the session may have written.
    Behind {
        /// Bytes of WAL that it lacks.
        bytes: u64,
    },
}

impl fmt::Display for WrongTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherCluster => f.write_str("it belongs to another cluster"),
            Self::Standby => f.write_str("it is a read-only standby"),
            Self::ReadOnly => f.write_str("it is read-only by default"),
            Self::Behind { bytes } => write!(f, "it is {bytes} bytes of WAL behind"),
        }
    }
}

/// Whether a session may go from `old` to `new`.
///
/// # Errors
/// The first reason against it.  [`WrongTarget::Behind`] may pass with time.
pub(super) fn check(old: &Place, new: &Place, allow_standby: bool) -> Result<(), WrongTarget> {
    // An identifier that may not be read is not a different one.
    let other = old.system.zip(new.system).is_some_and(|(a, b)| a != b);
    if other || old.encoding != new.encoding {
        return Err(WrongTarget::OtherCluster);
    }
    if !allow_standby && new.in_recovery && !old.in_recovery {
        return Err(WrongTarget::Standby);
    }
    if new.read_only && !old.read_only {
        return Err(WrongTarget::ReadOnly);
    }
    match end_of_records(old.wal).checked_sub(new.wal) {
        None | Some(0) => Ok(()),
        Some(bytes) => Err(WrongTarget::Behind { bytes }),
    }
}

/// Where the last record before `position` ends.
///
/// A server that stands at the end of a page names the place of the next
/// record, which is behind the next page's header; a standby has nothing to
/// replay there until that record comes.
const fn end_of_records(position: u64) -> u64 {
    /// PostgreSQL's default (configure, --with-wal-blocksize).
    const PAGE_BYTES: u64 = 8192;
    /// Sizes of a page's header: `SizeOfXLogShortPHD`, and at the start of a
    /// file `SizeOfXLogLongPHD` (xlog_internal.h).
    const HEADERS: [u64; 2] = [24, 40];
    let into_page = position % PAGE_BYTES;
    if into_page == HEADERS[0] || into_page == HEADERS[1] {
        position - into_page
    } else {
        position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_goes_where_all_is_that_it_has_written() {
        let old = Place {
            system: Some(1),
            wal: 100,
            ..Place::default()
        };
        let changed = |change: fn(&mut Place)| {
            let mut new = old.clone();
            change(&mut new);
            check(&old, &new, false)
        };
        assert_eq!(changed(|_| {}), Ok(()));
        assert_eq!(changed(|new| new.system = None), Ok(()));
        assert_eq!(changed(|new| new.wal = 101), Ok(()));
        assert_eq!(
            changed(|new| new.system = Some(2)),
            Err(WrongTarget::OtherCluster)
        );
        assert_eq!(
            changed(|new| new.encoding = b"LATIN1".to_vec()),
            Err(WrongTarget::OtherCluster)
        );
        assert_eq!(
            changed(|new| new.in_recovery = true),
            Err(WrongTarget::Standby)
        );
        assert_eq!(
            changed(|new| new.read_only = true),
            Err(WrongTarget::ReadOnly)
        );
        assert_eq!(
            changed(|new| new.wal = 90),
            Err(WrongTarget::Behind { bytes: 10 })
        );
        let standby = Place {
            in_recovery: true,
            ..old.clone()
        };
        assert_eq!(check(&old, &standby, true), Ok(()));
        assert_eq!(check(&standby, &standby, false), Ok(()));
    }

    #[test]
    fn an_empty_page_is_not_waited_for() {
        for (position, end) in [
            (0x2000 + 24, 0x2000),
            (0x0100_0028, 0x0100_0000),
            (0x2030, 0x2030),
        ] {
            assert_eq!(end_of_records(position), end);
        }
    }
}
