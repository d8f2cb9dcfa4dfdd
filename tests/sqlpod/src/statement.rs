//! Tells statements apart: what the session does itself, and what goes to
//! SQLite.

use crate::error::PgError;
use crate::lexer::{Token, lex, significant, split, text};
use crate::parser::Parser;
use crate::translate::translate;

/// One statement, ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    Empty,
    Begin,
    Commit,
    Rollback,
    /// SAVEPOINT, RELEASE and ROLLBACK TO, which SQLite knows.
    Savepoint {
        sql: String,
        tag: &'static str,
    },
    /// `value` is `None` for DEFAULT.
    Set {
        name: String,
        value: Option<String>,
        local: bool,
    },
    /// `None` is ALL.
    Reset(Option<String>),
    Show(String),
    ShowTransferState {
        key: Option<String>,
    },
    DiscardAll,
    Prepare {
        name: String,
        types: Vec<u32>,
        body: String,
    },
    Execute {
        name: String,
        args: Vec<String>,
    },
    /// `None` is ALL.
    Deallocate(Option<String>),
    CopyIn {
        table: String,
        columns: Vec<String>,
    },
    CopyOut {
        query: Sql,
    },
    /// Taken without effect; only the tag is answered.
    Ignored(&'static str),
    Sql(Sql),
}

impl Statement {
    /// True for statements after which no portal is left.
    pub(crate) fn ends_transaction(&self) -> bool {
        matches!(self, Self::Commit | Self::Rollback | Self::DiscardAll)
    }
}

/// A statement for SQLite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sql {
    /// In SQLite's dialect.
    pub(crate) text: String,
    /// The command tag without its count.
    pub(crate) tag: String,
    /// True where it calls the restore function.
    pub(crate) restores: bool,
    /// True where it calls the function that gives the state.
    pub(crate) serializes: bool,
}

impl Sql {
    /// True for statements that may take SQLite's write lock.
    pub(crate) fn writes(&self) -> bool {
        !matches!(self.tag.as_str(), "SELECT" | "VALUES" | "EXPLAIN")
    }

    pub(crate) fn new(tokens: &[Token<'_>]) -> Self {
        let text = translate(tokens);
        let calls = |name: &str| tokens.iter().any(|token| token.is(name));
        let restores = calls("deserialize_session");
        let serializes = calls("serialize_session");
        Self {
            text,
            tag: tag(&significant(tokens)),
            restores,
            serializes,
        }
    }
}

/// Cuts a query text into its statements' texts.
pub(crate) fn statements(sql: &str) -> Result<Vec<String>, PgError> {
    let tokens = lex(sql)?;
    let pieces = split(&tokens);
    Ok(pieces
        .iter()
        .filter(|piece| !significant(piece).is_empty())
        .map(|piece| text(piece))
        .collect())
}

/// Reads one statement.
///
/// # Errors
/// 42601 for a statement of the session's own that is malformed, 0A000 for
/// what PostgreSQL has and this does not. SQLite judges the rest.
pub(crate) fn parse(sql: &str) -> Result<Statement, PgError> {
    let all = lex(sql)?;
    let all: Vec<_> = all.into_iter().filter(|token| !token.is(";")).collect();
    let tokens = significant(&all);
    let mut parser = Parser { tokens: &tokens };
    let Some(first) = parser.next() else {
        return Ok(Statement::Empty);
    };
    let word = first.text.to_ascii_lowercase();
    match word.as_str() {
        "begin" | "start" => Ok(Statement::Begin),
        "commit" | "end" => Ok(Statement::Commit),
        "abort" => Ok(Statement::Rollback),
        "rollback" if tokens.iter().any(|token| token.is("to")) => Ok(Statement::Savepoint {
            sql: text(&all),
            tag: "ROLLBACK",
        }),
        "rollback" => Ok(Statement::Rollback),
        "savepoint" => Ok(Statement::Savepoint {
            sql: text(&all),
            tag: "SAVEPOINT",
        }),
        "release" => Ok(Statement::Savepoint {
            sql: text(&all),
            tag: "RELEASE",
        }),
        "set" => parser.set(),
        "reset" if parser.eat("all") => Ok(Statement::Reset(None)),
        "reset" => Ok(Statement::Reset(Some(parser.setting_name()?))),
        "show" => parser.show(),
        "discard" if parser.eat("all") => Ok(Statement::DiscardAll),
        "prepare" => parser.prepare(&all),
        "execute" => parser.execute(),
        "deallocate" => {
            parser.eat("prepare");
            let name = parser.name()?;
            let all = tokens.last().is_some_and(|token| token.is("all"));
            Ok(Statement::Deallocate((!all).then_some(name)))
        }
        "copy" => parser.copy(),
        "analyze" | "vacuum" => Ok(Statement::Ignored("ANALYZE")),
        _ => Ok(Statement::Sql(Sql::new(&all))),
    }
}

/// A name as SQLite's quoted identifier.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The command tag, without the count that may follow.
fn tag(tokens: &[Token<'_>]) -> String {
    let word = |at: usize| {
        tokens
            .get(at)
            .map_or(String::new(), |t| t.text.to_ascii_uppercase())
    };
    let first = word(0);
    match first.as_str() {
        "WITH" => {
            let mut depth = 0_i32;
            for token in tokens {
                depth += i32::from(token.is("(")) - i32::from(token.is(")"));
                let verb = ["SELECT", "INSERT", "UPDATE", "DELETE"]
                    .iter()
                    .find(|v| token.is(v));
                if let (0, Some(verb)) = (depth, verb) {
                    return (*verb).to_owned();
                }
            }
            first
        }
        "UPSERT" | "REPLACE" => "INSERT".to_owned(),
        "VALUES" | "TABLE" | "(" => "SELECT".to_owned(),
        "TRUNCATE" => "TRUNCATE TABLE".to_owned(),
        "CREATE" | "DROP" | "ALTER" => {
            let skip = ["TEMP", "TEMPORARY", "UNIQUE", "OR", "REPLACE"];
            let object = (1..6).map(word).find(|word| !skip.contains(&word.as_str()));
            format!("{first} {}", object.unwrap_or_default())
        }
        _ => first,
    }
}
