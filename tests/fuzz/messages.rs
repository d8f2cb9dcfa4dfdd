//! The parsers of single messages: what they accept is what their writers make,
//! byte for byte, and what they refuse does no harm.

use bolero::check;
use sqlproxy::internal::SqlState;
use sqlproxy::internal::{
    ErrorFields, data_row, fatal_error, parameter_status, put_parameter_status, row_description,
};
use sqlproxy::internal::{HEADER_BYTES, Header};
use sqlproxy::internal::{Startup, cancel_request};

use super::{INPUTS, Input};

/// Changes one byte, so that what is nearly right is met as well.
fn damage(input: &mut Input<'_>, mut message: Vec<u8>) -> Vec<u8> {
    let at = usize::from(input.byte());
    let by = input.byte();
    if let Some(byte) = message.get_mut(at) {
        *byte ^= by;
    }
    message
}

/// Pieces of the input, ended by bytes of 255.
fn pieces<'a>(input: &Input<'a>) -> Vec<&'a [u8]> {
    input.0.split(|&byte| byte == 255).take(20).collect()
}

#[test]
fn startup_packets() {
    check!(name = "startup_packets")
        .with_iterations(INPUTS)
        .for_each(|bytes: &[u8]| {
            check_startup(bytes);
            let mut input = Input(bytes);
            let mut packet = vec![0, 3, 0, input.below(4) as u8];
            let head = Input(input.0.get(..2).unwrap_or_default());
            for piece in pieces(&input) {
                packet.extend_from_slice(piece);
                packet.push(0);
            }
            packet.push(0);
            check_startup(&packet);
            check_startup(&damage(&mut Input(head.0), packet));
        });
}

fn check_startup(body: &[u8]) {
    match Startup::parse(body) {
        Ok(Startup::Session(mut packet)) => {
            assert_eq!(&packet.to_bytes()[4..], body, "not what was sent");
            for (name, _) in &packet.parameters {
                let upper = name.to_ascii_uppercase();
                assert!(packet.has_ignoring_case(&upper));
                assert!(packet.get(name).is_some());
            }
            // For the log, whatever they are.
            let _ = (packet.user(), packet.database(), format!("{packet:?}"));
            if let Some((name, _)) = packet.parameters.first().cloned() {
                packet.set_ignoring_case(&name, b"new");
                let same = |known: &&(Vec<u8>, Vec<u8>)| known.0.eq_ignore_ascii_case(&name);
                assert_eq!(packet.parameters.iter().filter(same).count(), 1);
                assert_eq!(packet.get(&name), Some(&b"new"[..]));
                let again = Startup::parse(&packet.to_bytes()[4..]);
                assert!(matches!(again, Ok(Startup::Session(read)) if read == packet));
            }
        }
        Ok(Startup::Cancel(key)) => {
            assert_eq!(&cancel_request(&key)[4..], body);
            assert!((5..=260).contains(&key.len()));
        }
        Ok(Startup::Ssl | Startup::GssEncryption) => assert_eq!(body.len(), 4),
        // Its client is told.
        Err(error) => assert!(error.client_report().is_some()),
    }
}

#[test]
fn rows() {
    check!(name = "rows")
        .with_iterations(INPUTS)
        .for_each(|bytes: &[u8]| {
            check_rows(bytes);
            let mut input = Input(bytes);
            let head = Input(input.0.get(..2).unwrap_or_default());
            let kind = input.byte();
            let values = pieces(&input);
            let mut message = (values.len() as u16).to_be_bytes().to_vec();
            for value in &values {
                match kind % 3 {
                    0 => {
                        message.extend(value.iter().filter(|&&byte| byte != 0));
                        message.extend([0; 19]);
                    }
                    _ if value.is_empty() => message.extend((-1i32).to_be_bytes()),
                    _ => {
                        message.extend((value.len() as i32).to_be_bytes());
                        message.extend_from_slice(value);
                    }
                }
            }
            if kind % 3 == 0 {
                assert!(row_description(&message).is_some());
            } else {
                let expected = values
                    .iter()
                    .map(|value| (!value.is_empty()).then_some(*value));
                assert_eq!(data_row(&message), Some(expected.collect()));
            }
            check_rows(&damage(&mut Input(head.0), message));
        });
}

fn check_rows(body: &[u8]) {
    let count = body.first_chunk().map(|count| u16::from_be_bytes(*count));
    if let Some(values) = data_row(body) {
        let mut again = body[..2].to_vec();
        for value in &values {
            let length = value.map_or(-1, |value| value.len() as i32);
            again.extend(length.to_be_bytes());
            again.extend_from_slice(value.unwrap_or_default());
        }
        assert_eq!(again, body);
        assert_eq!(count, Some(values.len() as u16));
    }
    if let Some(names) = row_description(body) {
        let bytes: usize = names.iter().map(|name| name.len() + 1 + 18).sum();
        assert_eq!(bytes + 2, body.len());
        assert_eq!(count, Some(names.len() as u16));
        assert!(names.iter().all(|name| !name.contains(&0)));
    }
}

#[test]
fn texts() {
    check!(name = "texts")
        .with_iterations(INPUTS)
        .for_each(|bytes: &[u8]| {
            check_texts(bytes);
            let input = Input(bytes);
            let [name, value] = [0, 1].map(|at| {
                let piece = pieces(&input).get(at).copied().unwrap_or_default();
                let text = piece.iter().copied().filter(|&byte| byte != 0);
                text.collect::<Vec<_>>()
            });
            let mut message = Vec::new();
            put_parameter_status(&mut message, &name, &value);
            let header = Header::parse(&message).unwrap().unwrap();
            assert_eq!(header.body_bytes + HEADER_BYTES, message.len());
            let body = &message[HEADER_BYTES..];
            assert_eq!(parameter_status(body), Some((&name[..], &value[..])));
            check_texts(&damage(&mut Input(bytes), body.to_vec()));

            let text = String::from_utf8_lossy(&value);
            let message = fatal_error(SqlState::CONNECTION_FAILURE, &text);
            let fields = ErrorFields::parse(&message[HEADER_BYTES..]);
            assert!(fields.is_fatal());
            assert_eq!((&*fields.sqlstate, &*fields.message), ("08006", &*text));
            check_texts(&damage(&mut Input(bytes), message));
        });
}

fn check_texts(body: &[u8]) {
    if let Some((name, value)) = parameter_status(body) {
        let mut again = Vec::new();
        put_parameter_status(&mut again, name, value);
        assert_eq!(&again[HEADER_BYTES..], body);
    }
    // Malformed, it stays empty.
    let fields = ErrorFields::parse(body);
    assert!(fields.message.len() <= 3 * body.len());
}
