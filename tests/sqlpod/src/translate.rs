//! Turns PostgreSQL's spelling into SQLite's, token by token.
//!
//! Casts are honoured by the function `sqlpod_cast`, which reads text as the
//! wire's parameters are read. What has no counterpart is left to SQLite,
//! whose error the client then sees.

use crate::lexer::{Kind, Token, text};
use crate::types;

/// Words that name no value or function, so that a cast does not reach past
/// them.
const KEYWORDS: &[&str] = &[
    "select",
    "where",
    "and",
    "or",
    "not",
    "in",
    "values",
    "as",
    "on",
    "from",
    "then",
    "when",
    "else",
    "case",
    "between",
    "like",
    "is",
    "set",
    "returning",
    "having",
    "by",
];

/// The statement in SQLite's dialect.
pub(crate) fn translate(tokens: &[Token<'_>]) -> String {
    let ddl = starts(tokens, &["create", "alter"]);
    let mut input = tokens;
    let mut out: Vec<String> = Vec::new();
    if starts(tokens, &["truncate"]) {
        let table = tokens
            .iter()
            .filter(|t| t.kind != Kind::Space && !t.is("table"))
            .nth(1);
        return format!("DELETE FROM {}", table.map_or("", |token| token.text));
    }
    if starts(tokens, &["upsert"]) {
        out.push("INSERT OR REPLACE".to_owned());
        input = tail(
            tokens,
            tokens
                .iter()
                .position(|t| t.is("upsert"))
                .map_or(0, |at| at + 1),
        );
    }
    while let Some((token, rest)) = input.split_first() {
        input = rest;
        let next = rest.first();
        match token.kind {
            Kind::Param => out.push(token.text.replacen('$', "?", 1)),
            Kind::Text => out.push(format!("'{}'", token.value().replace('\'', "''"))),
            Kind::Op if token.text == "::" && !rest.is_empty() => input = cast(&mut out, rest),
            Kind::Word if next.is_some_and(|next| next.is(".")) => match token.value().as_str() {
                "pg_catalog" | "public" => input = tail(rest, 1),
                "crdb_internal" => {
                    let name = rest.get(1).map_or(String::new(), Token::value);
                    out.push(format!("\"crdb_internal.{name}\""));
                    input = tail(rest, 2);
                }
                _ => out.push(token.text.to_owned()),
            },
            Kind::Word => match token.value().as_str() {
                "current_user" | "session_user" => out.push("current_user()".to_owned()),
                "ilike" => out.push("LIKE".to_owned()),
                "for" if rest.iter().any(|t| t.is("update") || t.is("share")) => input = &[],
                "string" if ddl && types_a_column(&out) => out.push("TEXT".to_owned()),
                "serial" | "bigserial" if ddl && types_a_column(&out) => {
                    out.push("INTEGER".to_owned())
                }
                "now" if rest.iter().take(2).map(|t| t.text).eq(["(", ")"]) => {
                    out.push("strftime('%Y-%m-%d %H:%M:%f+00', 'now')".to_owned());
                    input = tail(rest, 2);
                }
                "generate_series" if next.is_some_and(|next| next.is("(")) => {
                    input = series(&mut out, rest)
                }
                _ => out.push(token.text.to_owned()),
            },
            _ => out.push(token.text.to_owned()),
        }
    }
    out.concat()
}

/// True where a column's type may follow: after its name.
fn types_a_column(out: &[String]) -> bool {
    let last = out
        .iter()
        .rev()
        .map(|piece| piece.trim())
        .find(|piece| !piece.is_empty());
    let name = |last: &str| last.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '"');
    last.is_some_and(|last| name(last) && !last.eq_ignore_ascii_case("column"))
}

fn starts(tokens: &[Token<'_>], words: &[&str]) -> bool {
    let first = tokens.iter().find(|token| token.kind != Kind::Space);
    first.is_some_and(|first| words.iter().any(|word| first.is(word)))
}

fn tail<'t, 'a>(tokens: &'t [Token<'a>], from: usize) -> &'t [Token<'a>] {
    tokens.get(from..).unwrap_or_default()
}

/// Wraps the operand that `out` ends with, and returns what follows the type.
fn cast<'t, 'a>(out: &mut Vec<String>, rest: &'t [Token<'a>]) -> &'t [Token<'a>] {
    let (oid, after) = type_name(rest);
    let mut start = out.len();
    let mut depth = 0_i32;
    for (at, piece) in out.iter().enumerate().rev() {
        let blank = piece.trim().is_empty();
        let word = piece.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '"');
        let keyword = KEYWORDS.contains(&piece.to_ascii_lowercase().as_str());
        match piece.as_str() {
            ")" => depth += 1,
            "(" => depth -= 1,
            // A function's name or a qualified name belongs to its operand.
            _ if depth == 0 && start < out.len() => {
                let called = out.get(start).is_some_and(|piece| piece == "(") && word && !keyword;
                let dotted = piece == "." || out.get(start).is_some_and(|piece| piece == ".");
                if !called && !dotted {
                    break;
                }
            }
            _ => {}
        }
        if depth < 0 {
            break;
        }
        if !blank {
            start = at;
        }
    }
    let operand = out.split_off(start).concat();
    let typed = types::by_name(&text(type_tokens(rest)));
    out.push(match typed {
        Some(_) => format!("sqlpod_cast({operand}, {oid})"),
        None => operand,
    });
    after
}

fn type_tokens<'t, 'a>(tokens: &'t [Token<'a>]) -> &'t [Token<'a>] {
    let after = type_name(tokens).1.len();
    tokens
        .get(..tokens.len().saturating_sub(after))
        .unwrap_or_default()
}

/// Reads a type name: its OID (text if unknown) and what follows it.
pub(crate) fn type_name<'t, 'a>(tokens: &'t [Token<'a>]) -> (u32, &'t [Token<'a>]) {
    let mut end = tokens
        .iter()
        .position(|t| t.kind != Kind::Space)
        .unwrap_or(0);
    let word = tokens.get(end).map_or(String::new(), Token::value);
    end += 1;
    let follows = |at: usize, word: &str| {
        let rest = tail(tokens, at);
        let skip = rest
            .iter()
            .position(|token| token.kind != Kind::Space)
            .unwrap_or(0);
        rest.get(skip)
            .is_some_and(|token| token.is(word))
            .then_some(at + skip + 1)
    };
    let mut oid = types::by_name(&word).unwrap_or(types::TEXT);
    let second = match word.as_str() {
        "double" => follows(end, "precision"),
        "character" => follows(end, "varying"),
        _ => None,
    };
    end = second.unwrap_or(end);
    if word.starts_with("time")
        && let Some(zone) = follows(end, "with").or_else(|| follows(end, "without"))
        && let Some(zone) = follows(zone, "time").and_then(|at| follows(at, "zone"))
    {
        if follows(end, "with").is_some() {
            oid = types::by_name("timestamptz").unwrap_or(oid);
        }
        end = zone;
    }
    if let Some(open) = follows(end, "(").filter(|_| word != "text") {
        let close = tail(tokens, open).iter().position(|token| token.is(")"));
        end = close.map_or(end, |close| open + close + 1);
    }
    (oid, tail(tokens, end))
}

/// PostgreSQL names the column of `generate_series` after the alias, SQLite
/// calls it `value` and has it in FROM only.
fn series<'t, 'a>(out: &mut Vec<String>, rest: &'t [Token<'a>]) -> &'t [Token<'a>] {
    let mut depth = 0_i32;
    let end = rest.iter().position(|token| {
        depth += i32::from(token.is("(")) - i32::from(token.is(")"));
        depth == 0 && token.is(")")
    });
    let Some(end) = end else {
        out.push("generate_series".to_owned());
        return rest;
    };
    let call = format!(
        "generate_series{}",
        translate(rest.get(..=end).unwrap_or_default())
    );
    let after = tail(rest, end + 1);
    let before = out.iter().rev().find(|piece| !piece.trim().is_empty());
    let selected = before.is_some_and(|piece| piece.eq_ignore_ascii_case("select"));
    if selected && after.iter().all(|token| token.kind == Kind::Space) {
        out.push(format!("value AS generate_series FROM {call}"));
        return after;
    }
    let mut parts = after
        .iter()
        .enumerate()
        .filter(|(_, token)| token.kind != Kind::Space);
    let mut alias = parts.next();
    if alias.is_some_and(|(_, token)| token.is("as")) {
        alias = parts.next();
    }
    const CLAUSES: &[&str] = &[
        "where", "order", "limit", "group", "join", "cross", "on", "union",
    ];
    let named = alias.filter(|(_, token)| {
        matches!(token.kind, Kind::Word | Kind::Quoted)
            && !CLAUSES.iter().any(|clause| token.is(clause))
    });
    let Some((at, name)) = named else {
        out.push(format!(
            "(SELECT value AS generate_series FROM {call}) AS generate_series"
        ));
        return after;
    };
    // `AS g(i)`: a column alias of its own.
    let column = match (parts.next(), parts.next(), parts.next()) {
        (Some((_, open)), Some((_, column)), Some((close, end))) if open.is("(") && end.is(")") => {
            Some((column.text, close))
        }
        _ => None,
    };
    let (column, last) = column.unwrap_or((name.text, at));
    out.push(format!(
        "(SELECT value AS {column} FROM {call}) AS {}",
        name.text
    ));
    tail(after, last + 1)
}
