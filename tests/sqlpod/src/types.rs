//! Types: their names and OIDs, values to and from the wire's two formats.
//!
//! OIDs are PostgreSQL's own (pg_type.dat), the only ones that client
//! libraries know without asking the catalog.

use rusqlite::types::Value;

use crate::error::PgError;
use crate::wire::{Fields, utf8};

/// Not known yet.
pub(crate) const UNKNOWN: u32 = 0;
pub(crate) const BOOL: u32 = 16;
pub(crate) const BYTEA: u32 = 17;
pub(crate) const INT8: u32 = 20;
pub(crate) const INT2: u32 = 21;
pub(crate) const INT4: u32 = 23;
pub(crate) const TEXT: u32 = 25;
const OID: u32 = 26;
const FLOAT4: u32 = 700;
pub(crate) const FLOAT8: u32 = 701;
/// PostgreSQL's pseudo-type of an untyped literal.
const UNTYPED: u32 = 705;
pub(crate) const UUID: u32 = 2950;
pub(crate) const NUMERIC: u32 = 1700;

/// Type names, lower case, as CockroachDB reads them: INT and INTEGER are
/// eight bytes wide.
const NAMES: &[(&str, u32)] = &[
    ("int", INT8),
    ("integer", INT8),
    ("bigint", INT8),
    ("int8", INT8),
    ("int64", INT8),
    ("serial", INT8),
    ("bigserial", INT8),
    ("int2", INT2),
    ("smallint", INT2),
    ("int4", INT4),
    ("text", TEXT),
    ("string", TEXT),
    ("varchar", 1043),
    ("character", 1043),
    ("char", 1042),
    ("name", 19),
    ("float", FLOAT8),
    ("float8", FLOAT8),
    ("double", FLOAT8),
    ("float4", FLOAT4),
    ("real", FLOAT4),
    ("numeric", NUMERIC),
    ("decimal", NUMERIC),
    ("bool", BOOL),
    ("boolean", BOOL),
    ("bytea", BYTEA),
    ("bytes", BYTEA),
    ("blob", BYTEA),
    ("uuid", UUID),
    ("oid", OID),
    ("json", 114),
    ("jsonb", 3802),
    ("date", 1082),
    ("time", 1083),
    ("timestamp", 1114),
    ("timestamptz", 1184),
];

/// The OID of a type name; `VARCHAR(10)` and `double precision` are read by
/// their first word.
pub(crate) fn by_name(name: &str) -> Option<u32> {
    let lower = name.trim().to_ascii_lowercase();
    if lower.starts_with("timestamp with time") {
        return Some(1184);
    }
    let word = lower.split([' ', '(', '[']).next()?;
    NAMES
        .iter()
        .find(|(known, _)| *known == word)
        .map(|(_, oid)| *oid)
}

/// Bytes of a value of this type; -1 where it varies.
pub(crate) fn size(oid: u32) -> i16 {
    match oid {
        BOOL => 1,
        INT2 => 2,
        INT4 | FLOAT4 | OID => 4,
        INT8 | FLOAT8 => 8,
        UUID => 16,
        _ => -1,
    }
}

/// The type of a value that has no declared one; NULL tells nothing.
pub(crate) fn of_value(value: &Value) -> u32 {
    match value {
        Value::Null => UNKNOWN,
        Value::Integer(_) => INT8,
        Value::Real(_) => FLOAT8,
        Value::Text(_) => TEXT,
        Value::Blob(_) => BYTEA,
    }
}

/// A value in the wire's text format, `None` for NULL.
pub(crate) fn to_text(value: &Value, oid: u32) -> Option<Vec<u8>> {
    let text = match (value, oid) {
        (Value::Null, _) => return None,
        (Value::Integer(number), BOOL) => if *number == 0 { "f" } else { "t" }.to_owned(),
        (Value::Integer(number), _) => number.to_string(),
        (Value::Real(number), _) => float_text(*number),
        (Value::Text(text), BOOL) => match parse_bool(text) {
            Some(flag) => if flag { "t" } else { "f" }.to_owned(),
            None => text.clone(),
        },
        // An untyped literal in a column of this type.
        (Value::Text(text), BYTEA) if text.starts_with("\\x") => text.clone(),
        (Value::Text(text), BYTEA) => hex(text.as_bytes()),
        (Value::Text(text), _) => return Some(text.clone().into_bytes()),
        (Value::Blob(bytes), _) => hex(bytes),
    };
    Some(text.into_bytes())
}

fn float_text(number: f64) -> String {
    // PostgreSQL switches to an exponent outside this range.
    if number == 0.0 || (1e-4..1e15).contains(&number.abs()) {
        return number.to_string();
    }
    let text = format!("{number:e}");
    if text.contains("e-") {
        text
    } else {
        text.replace('e', "e+")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// A value in the wire's binary format, `None` for NULL.
///
/// # Errors
/// 22003 where the number does not fit, 22P02 where a text is no such value,
/// 0A000 for a type without a binary format here.
pub(crate) fn to_binary(value: &Value, oid: u32) -> Result<Option<Vec<u8>>, PgError> {
    let value = match value {
        Value::Null => return Ok(None),
        // A column's declared type does not bind SQLite's values.
        Value::Text(text) if !is_text(oid) => &from_text(oid, text)?,
        other => other,
    };
    let range = || PgError::new("22003", "integer out of range");
    let bytes = match (oid, value) {
        (BOOL, Value::Integer(number)) => vec![u8::from(*number != 0)],
        (INT2, Value::Integer(number)) => i16::try_from(*number)
            .map_err(|_| range())?
            .to_be_bytes()
            .into(),
        (INT4, Value::Integer(number)) => i32::try_from(*number)
            .map_err(|_| range())?
            .to_be_bytes()
            .into(),
        (OID, Value::Integer(number)) => u32::try_from(*number)
            .map_err(|_| range())?
            .to_be_bytes()
            .into(),
        (INT8, Value::Integer(number)) => number.to_be_bytes().into(),
        (FLOAT8, Value::Integer(number)) => as_float(*number).to_be_bytes().into(),
        (FLOAT8, Value::Real(number)) => number.to_be_bytes().into(),
        (FLOAT4, Value::Integer(number)) => as_float4(as_float(*number)).to_be_bytes().into(),
        (FLOAT4, Value::Real(number)) => as_float4(*number).to_be_bytes().into(),
        (BYTEA, Value::Blob(bytes)) => bytes.clone(),
        (UUID, Value::Text(text)) => uuid::Uuid::parse_str(text)
            .map_err(|_| invalid("uuid", text))?
            .as_bytes()
            .to_vec(),
        (oid, value) if is_text(oid) => return Ok(to_text(value, oid)),
        (3802, Value::Text(text)) => [&[1], text.as_bytes()].concat(),
        (oid, _) => {
            return Err(PgError::unsupported(&format!(
                "binary format of type {oid} for this value"
            )));
        }
    };
    Ok(Some(bytes))
}

#[allow(
    clippy::cast_precision_loss,
    reason = "what PostgreSQL's own cast does"
)]
fn as_float(number: i64) -> f64 {
    number as f64
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "what PostgreSQL's own cast does"
)]
fn as_float4(number: f64) -> f32 {
    number as f32
}

/// Types whose binary format is their text.
fn is_text(oid: u32) -> bool {
    matches!(oid, UNKNOWN | TEXT | 19 | 114 | 1042 | 1043 | UNTYPED)
}

/// Reads a value in text format.
///
/// # Errors
/// 22P02 where the text is no value of that type.
pub(crate) fn from_text(oid: u32, text: &str) -> Result<Value, PgError> {
    let trimmed = text.trim();
    Ok(match oid {
        INT2 | INT4 | INT8 | OID => {
            Value::Integer(trimmed.parse().map_err(|_| invalid("integer", text))?)
        }
        FLOAT4 | FLOAT8 => Value::Real(trimmed.parse().map_err(|_| invalid("double", text))?),
        NUMERIC => match (trimmed.parse::<i64>(), trimmed.parse::<f64>()) {
            (Ok(number), _) => Value::Integer(number),
            (_, Ok(number)) => Value::Real(number),
            _ => return Err(invalid("numeric", text)),
        },
        BOOL => Value::Integer(
            parse_bool(trimmed)
                .ok_or_else(|| invalid("boolean", text))?
                .into(),
        ),
        BYTEA => Value::Blob(match text.strip_prefix("\\x") {
            Some(digits) => unhex(digits).ok_or_else(|| invalid("bytea", text))?,
            None => text.as_bytes().to_vec(),
        }),
        UUID => {
            let uuid = uuid::Uuid::parse_str(trimmed).map_err(|_| invalid("uuid", text))?;
            Value::Text(uuid.to_string())
        }
        _ => Value::Text(text.to_owned()),
    })
}

fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "t" | "true" | "yes" | "on" | "1" | "y" => Some(true),
        "f" | "false" | "no" | "off" | "0" | "n" => Some(false),
        _ => None,
    }
}

/// Bytes from pairs of hexadecimal digits.
pub(crate) fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// Reads a value in binary format.
///
/// # Errors
/// 22P03 for a wrong length, 0A000 for a type without a binary format here.
pub(crate) fn from_binary(oid: u32, bytes: &[u8]) -> Result<Value, PgError> {
    let mut fields = Fields(bytes);
    let value = match oid {
        BOOL => fields.u8().map(|byte| Value::Integer((byte != 0).into())),
        INT2 => fields.i16().map(|number| Value::Integer(number.into())),
        INT4 => fields.i32().map(|number| Value::Integer(number.into())),
        OID => fields.u32().map(|number| Value::Integer(number.into())),
        INT8 => fields
            .array()
            .map(|bytes| Value::Integer(i64::from_be_bytes(bytes))),
        FLOAT4 => fields
            .array()
            .map(|bytes| Value::Real(f32::from_be_bytes(bytes).into())),
        FLOAT8 => fields
            .array()
            .map(|bytes| Value::Real(f64::from_be_bytes(bytes))),
        UUID => fields
            .array()
            .map(|id| Value::Text(uuid::Uuid::from_bytes(id).to_string())),
        BYTEA => return Ok(Value::Blob(bytes.to_vec())),
        3802 => {
            return Ok(Value::Text(
                utf8(bytes.get(1..).unwrap_or_default())?.to_owned(),
            ));
        }
        oid if is_text(oid) => return Ok(Value::Text(utf8(bytes)?.to_owned())),
        _ => {
            return Err(PgError::unsupported(&format!(
                "binary format of type {oid}"
            )));
        }
    };
    match value {
        Ok(value) if fields.0.is_empty() => Ok(value),
        _ => Err(PgError::new(
            "22P03",
            "incorrect binary data format in bind parameter",
        )),
    }
}

fn invalid(kind: &str, text: &str) -> PgError {
    PgError::new(
        "22P02",
        format!("invalid input syntax for type {kind}: \"{text}\""),
    )
}
