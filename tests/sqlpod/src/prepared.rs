//! Prepared statements, and the types of their parameters and columns.
//!
//! SQLite types values, not expressions: what a client must be told before
//! the first row is read off the statement's text and its tables' columns.

use std::sync::OnceLock;

use rusqlite::Connection;

use crate::error::PgError;
use crate::lexer::{Kind, Token, lex, significant};
use crate::scope::Scope;
use crate::statement::{Statement, parse};
use crate::types;

/// A result column; the OID is 0 while its type is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) oid: u32,
}

impl Column {
    pub(crate) fn text(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            oid: types::TEXT,
        }
    }
}

/// A statement that was parsed, and may be run many times.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// In the client's own words.
    pub(crate) sql: String,
    pub(crate) statement: Statement,
    /// OIDs of the parameters.
    pub(crate) params: Vec<u32>,
    /// Set when first described; binding from then on.
    pub(crate) described: OnceLock<Vec<Column>>,
}

impl Prepared {
    /// For a single run by the simple protocol, which has no parameters.
    pub(crate) fn simple(sql: &str) -> Result<Self, PgError> {
        Self::restored(sql, Vec::new())
    }

    /// With types known from another session.
    pub(crate) fn restored(sql: &str, params: Vec<u32>) -> Result<Self, PgError> {
        let (sql, statement) = (sql.to_owned(), parse(sql)?);
        Ok(Self {
            sql,
            statement,
            params,
            described: OnceLock::new(),
        })
    }

    /// With types as declared, and found out where 0 or not declared.
    pub(crate) fn typed(sql: &str, declared: &[u32], db: &Connection) -> Result<Self, PgError> {
        let mut prepared = Self::simple(sql)?;
        let tokens = lex(sql)?;
        let tokens = significant(&tokens);
        let count = tokens.iter().filter_map(Token::param).max().unwrap_or(0);
        // The protocol counts parameters in 16 bits.
        if count > usize::from(u16::MAX) {
            return Err(PgError::new("42P02", "too many parameters"));
        }
        let mut params = vec![types::UNKNOWN; count.max(declared.len())];
        if !params.is_empty() {
            let scope = Scope::new(&tokens, db);
            for at in 0..tokens.len() {
                let slot = tokens
                    .get(at)
                    .and_then(Token::param)
                    .and_then(|n| n.checked_sub(1));
                if let Some(slot) = slot.and_then(|slot| params.get_mut(slot))
                    && *slot == types::UNKNOWN
                {
                    *slot = scope.param(&tokens, at);
                }
            }
            for (slot, oid) in params.iter_mut().zip(declared) {
                if *oid != types::UNKNOWN {
                    *slot = *oid;
                }
            }
        }
        prepared.params = params
            .iter()
            .map(|oid| {
                if *oid == types::UNKNOWN {
                    types::TEXT
                } else {
                    *oid
                }
            })
            .collect();
        Ok(prepared)
    }

    /// The columns of a statement for SQLite, as far as they are known
    /// without running it. `deep` looks at the tables' columns too.
    pub(crate) fn columns(
        &self,
        statement: &rusqlite::Statement<'_>,
        tables: Option<&Connection>,
    ) -> Vec<Column> {
        let tokens = lex(&self.sql).unwrap_or_default();
        let tokens = significant(&tokens);
        let mut scope = tables.map_or_else(Scope::default, |db| Scope::new(&tokens, db));
        scope.params.clone_from(&self.params);
        let items = select_items(&tokens);
        let known = items.len() == statement.column_count();
        let columns = statement.columns();
        let column = |(at, column): (usize, &rusqlite::Column<'_>)| {
            let item = if known {
                items.get(at).copied().unwrap_or_default()
            } else {
                &[]
            };
            let (expression, aliased) = without_alias(item);
            let declared = column.decl_type().filter(|name| !name.is_empty());
            let oid = match declared {
                Some(name) => types::by_name(name).unwrap_or(types::TEXT),
                None => scope.expression(expression),
            };
            let name = if aliased {
                None
            } else {
                expression_name(expression)
            };
            Column {
                name: name.unwrap_or_else(|| column.name().to_owned()),
                oid,
            }
        };
        columns.iter().enumerate().map(column).collect()
    }
}

/// The items of the select list or of RETURNING.
fn select_items<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    const END: &[&str] = &[
        "from",
        "where",
        "union",
        "except",
        "intersect",
        "order",
        "limit",
        "group",
        "having",
    ];
    let mut depth = 0_i32;
    let mut start = None;
    let mut items = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        depth += i32::from(token.is("(")) - i32::from(token.is(")"));
        if depth != 0 {
            continue;
        }
        match start {
            None if token.is("select") || token.is("returning") => {
                let more = tokens
                    .get(at + 1)
                    .is_some_and(|t| t.is("distinct") || t.is("all"));
                start = Some(at + 1 + usize::from(more));
            }
            Some(from) if END.iter().any(|word| token.is(word)) => {
                items.push(tokens.get(from..at).unwrap_or_default());
                return items;
            }
            Some(from) if token.is(",") => {
                items.push(tokens.get(from..at).unwrap_or_default());
                start = Some(at + 1);
            }
            _ => {}
        }
    }
    items.extend(start.and_then(|from| tokens.get(from..)));
    items
}

/// The expression of a select item, and whether it had an alias.
fn without_alias<'t, 'a>(item: &'t [Token<'a>]) -> (&'t [Token<'a>], bool) {
    const ENDS: &[&str] = &["null", "true", "false", "end", "isnull", "notnull"];
    if let [expression @ .., word, _] = item
        && word.is("as")
    {
        return (expression, true);
    }
    match item {
        [expression @ .., before, last]
            if matches!(last.kind, Kind::Word | Kind::Quoted)
                && !ENDS.iter().any(|word| last.is(word))
                && (before.kind != Kind::Op || before.is(")")) =>
        {
            // `x::text` ends with a word as well, but after an operator.
            let length = expression.len() + 1;
            (item.get(..length).unwrap_or_default(), true)
        }
        _ => (item, false),
    }
}

/// What PostgreSQL calls a column without an alias; `None` leaves the name
/// to SQLite.
fn expression_name(tokens: &[Token<'_>]) -> Option<String> {
    match tokens {
        [] => None,
        [.., star] if star.is("*") => None,
        [one] if matches!(one.kind, Kind::Word | Kind::Quoted) => match one.value().as_str() {
            "true" | "false" => Some("bool".to_owned()),
            "null" => Some("?column?".to_owned()),
            _ => Some(one.value()),
        },
        [.., dot, last] if dot.is(".") => Some(last.value()),
        [schema, dot, name, open, ..] if dot.is(".") && open.is("(") => {
            let catalog = schema.is("pg_catalog");
            Some(if catalog {
                name.value()
            } else {
                format!("{}.{}", schema.value(), name.value())
            })
        }
        [case, .., end] if case.is("case") && end.is("end") => Some("case".to_owned()),
        [name, open, .., close] if name.kind == Kind::Word && open.is("(") && close.is(")") => {
            Some(name.value())
        }
        [name, cast, ..] if name.kind == Kind::Word && cast.is("::") => Some(name.value()),
        _ => Some("?column?".to_owned()),
    }
}
