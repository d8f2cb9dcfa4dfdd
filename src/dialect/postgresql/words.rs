//! A few tokens of SQL, as far as the proxy has to find its way in a client's text
//! (scan.l).

/// What follows white space and comments.
pub(super) fn skip_space(mut sql: &[u8]) -> &[u8] {
    loop {
        sql = sql.trim_ascii_start();
        if sql.starts_with(b"--") {
            let line = sql.iter().position(|byte| b"\r\n".contains(byte));
            sql = line.and_then(|end| sql.get(end..)).unwrap_or_default();
        } else if sql.starts_with(b"/*") {
            sql = behind_comment(sql);
        } else {
            return sql;
        }
    }
}

/// What follows the comment that `sql` begins with; comments nest.
fn behind_comment(mut sql: &[u8]) -> &[u8] {
    let mut depth = 0_usize;
    loop {
        if let Some(rest) = sql.strip_prefix(b"/*") {
            depth += 1;
            sql = rest;
        } else if let Some(rest) = sql.strip_prefix(b"*/") {
            depth -= 1;
            sql = rest;
            if depth == 0 {
                return sql;
            }
        } else {
            match sql.split_first() {
                Some((_, rest)) => sql = rest,
                None => return sql,
            }
        }
    }
}

/// The first word of a text of SQL, behind white space and comments.
pub(super) fn first_word(sql: &[u8]) -> &[u8] {
    let sql = skip_space(sql);
    let end = sql.iter().position(|byte| !byte.is_ascii_alphabetic());
    sql.get(..end.unwrap_or(sql.len())).unwrap_or_default()
}

/// Whether a byte belongs to the same word as a letter before it.
pub(super) const fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// The identifier that `sql` begins with, and what follows it.  In quotes or not; without
/// them the server folds its case.
pub(super) fn identifier(sql: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    /// Longer ones are cut (pg_config_manual.h, `NAMEDATALEN`).
    const LONGEST: usize = 63;
    let (mut name, rest) = match sql.split_first()? {
        (b'"', quoted) => {
            let (name, rest) = until_quote(quoted, b'"')?;
            (name, rest)
        }
        (first, _) if is_of_word(*first) && !first.is_ascii_digit() => {
            let is_end = |byte: &u8| !is_of_word(*byte) && *byte != b'$';
            let end = sql.iter().position(is_end).unwrap_or(sql.len());
            let (name, rest) = sql.split_at_checked(end)?;
            (name.to_ascii_lowercase(), rest)
        }
        _ => return None,
    };
    name.truncate(LONGEST);
    Some((name, rest))
}

/// What stands before the closing `quote`, which is doubled within, and what follows it.
fn until_quote(mut sql: &[u8], quote: u8) -> Option<(Vec<u8>, &[u8])> {
    let mut within = Vec::new();
    loop {
        let end = sql.iter().position(|byte| *byte == quote)?;
        within.extend_from_slice(sql.get(..end)?);
        sql = sql.get(end + 1..)?;
        match sql.strip_prefix(&[quote]) {
            Some(rest) => {
                within.push(quote);
                sql = rest;
            }
            None => return Some((within, sql)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_stands_behind_white_space_and_comments() {
        for (text, word) in [
            ("PREPARE a AS SELECT 1", "PREPARE"),
            (" \n-- no\nprepare a", "prepare"),
            ("/* a /* b */ c */ PREPARE(", "PREPARE"),
            ("INSERT INTO a", "INSERT"),
            ("/* open", ""),
            ("-- open", ""),
            ("", ""),
        ] {
            assert_eq!(first_word(text.as_bytes()), word.as_bytes(), "{text}");
        }
    }

    #[test]
    fn an_identifier_is_in_quotes_or_not() {
        let long = "x".repeat(70);
        let table = [
            ("App.x", Some(("app", ".x"))),
            ("_a$1=", Some(("_a$1", "="))),
            ("\"App\" x", Some(("App", " x"))),
            ("\"a\"\"b\"", Some(("a\"b", ""))),
            (&long, Some((&long[..63], ""))),
            ("\"open", None),
            ("1a", None),
            (".a", None),
            ("", None),
        ];
        for (text, expected) in table {
            let found = identifier(text.as_bytes());
            let expected = expected.map(|(name, rest)| (name.as_bytes().to_vec(), rest.as_bytes()));
            assert_eq!(found, expected, "{text}");
        }
    }
}
