//! Tells statements apart: what the session does itself, and what goes to
//! SQLite.

use crate::error::PgError;
use crate::lexer::{Kind, Token, lex, significant, split, text};
use crate::translate::translate;
use crate::types;

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
}

impl Sql {
    /// True for statements that may take SQLite's write lock.
    pub(crate) fn writes(&self) -> bool {
        !matches!(self.tag.as_str(), "SELECT" | "VALUES" | "EXPLAIN")
    }

    fn new(tokens: &[Token<'_>]) -> Self {
        let text = translate(tokens);
        let restores = text.contains("crdb_internal.deserialize_session");
        Self {
            text,
            tag: tag(&significant(tokens)),
            restores,
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

struct Parser<'t, 'a> {
    tokens: &'t [Token<'a>],
}

impl<'a> Parser<'_, 'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(*first)
    }

    fn eat(&mut self, word: &str) -> bool {
        let found = self.tokens.first().is_some_and(|token| token.is(word));
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, word: &str) -> Result<(), PgError> {
        if self.eat(word) {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn unexpected(&self) -> PgError {
        match self.tokens.first() {
            Some(token) => PgError::syntax(format!("syntax error at or near \"{}\"", token.text)),
            None => PgError::syntax("syntax error at end of input"),
        }
    }

    fn name(&mut self) -> Result<String, PgError> {
        match self.tokens.first().map(|token| token.kind) {
            Some(Kind::Word | Kind::Quoted) => {
                Ok(self.next().map(|t| t.value()).unwrap_or_default())
            }
            _ => Err(self.unexpected()),
        }
    }

    fn setting_name(&mut self) -> Result<String, PgError> {
        let mut name = self.name()?;
        while self.eat(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name.to_ascii_lowercase())
    }

    fn set(&mut self) -> Result<Statement, PgError> {
        let local = self.eat("local");
        let session = !local && self.eat("session");
        if self.eat("transaction") || (session && self.eat("characteristics")) {
            return Ok(Statement::Ignored("SET"));
        }
        let name = if self.eat("time") {
            self.expect("zone")?;
            "timezone".to_owned()
        } else {
            let name = self.setting_name()?;
            if !self.eat("=") {
                self.expect("to")?;
            }
            name
        };
        if self.tokens.is_empty() {
            return Err(self.unexpected());
        }
        if let [token] = self.tokens
            && token.is("default")
        {
            return Ok(Statement::Set {
                name,
                value: None,
                local,
            });
        }
        let parts = self.tokens.iter().map(|token| match token.text {
            "," => ", ".to_owned(),
            _ if token.kind == Kind::Word => token.text.to_owned(),
            _ => token.value(),
        });
        Ok(Statement::Set {
            name,
            value: Some(parts.collect()),
            local,
        })
    }

    fn show(&mut self) -> Result<Statement, PgError> {
        if self.eat("transfer") {
            self.expect("state")?;
            let key = match (self.eat("with"), self.next()) {
                (false, None) => None,
                (true, Some(token)) if token.kind == Kind::Text => Some(token.value()),
                _ => return Err(self.unexpected()),
            };
            return Ok(Statement::ShowTransferState { key });
        }
        if self.eat("time") {
            return Ok(Statement::Show("timezone".to_owned()));
        }
        if self.eat("tables") {
            let query = "SELECT name AS table_name FROM sqlite_master WHERE type = 'table' \
                         AND name NOT LIKE 'sqlpod_%' AND name NOT LIKE 'sqlite_%' ORDER BY name";
            let (text, tag) = (query.to_owned(), "SHOW TABLES".to_owned());
            return Ok(Statement::Sql(Sql {
                text,
                tag,
                restores: false,
            }));
        }
        self.setting_name().map(Statement::Show)
    }

    fn prepare(&mut self, all: &[Token<'_>]) -> Result<Statement, PgError> {
        let name = self.name()?;
        let mut types = Vec::new();
        if self.eat("(") {
            for part in self.list() {
                let word: Vec<_> = part.iter().map(|token| token.text).collect();
                let oid = types::by_name(&word.join(" ")).ok_or_else(|| {
                    PgError::new(
                        "42704",
                        format!("type \"{}\" does not exist", word.concat()),
                    )
                })?;
                types.push(oid);
            }
        }
        self.expect("as")?;
        // The first AS ends the head: neither name nor types may contain it.
        let body = all
            .iter()
            .position(|token| token.is("as"))
            .and_then(|at| all.get(at + 1..));
        Ok(Statement::Prepare {
            name,
            types,
            body: text(body.unwrap_or_default()).trim().to_owned(),
        })
    }

    fn execute(&mut self) -> Result<Statement, PgError> {
        let name = self.name()?;
        let args = if self.eat("(") {
            self.list()
        } else {
            Vec::new()
        };
        let args = args
            .iter()
            .map(|tokens| translate(&spaced(tokens)))
            .collect();
        Ok(Statement::Execute { name, args })
    }

    fn copy(&mut self) -> Result<Statement, PgError> {
        let query = if self.eat("(") {
            let inner: Vec<Vec<Token<'_>>> = self.list();
            let inner: Vec<_> = inner.join(&Token {
                kind: Kind::Op,
                text: ",",
            });
            let query = Sql::new(&spaced(&inner));
            self.expect("to")?;
            query
        } else {
            let mut table = self.name()?;
            if self.eat(".") {
                table = self.name()?;
            }
            let columns: Vec<String> = if self.eat("(") {
                self.list()
                    .iter()
                    .filter_map(|part| Some(part.first()?.value()))
                    .collect()
            } else {
                Vec::new()
            };
            if self.eat("from") {
                self.expect("stdin")?;
                self.copy_options()?;
                return Ok(Statement::CopyIn { table, columns });
            }
            self.expect("to")?;
            let list: Vec<_> = columns.iter().map(|name| quote(name)).collect();
            let list = if list.is_empty() {
                "*".to_owned()
            } else {
                list.join(", ")
            };
            let text = format!("SELECT {list} FROM {}", quote(&table));
            Sql {
                text,
                tag: "COPY".to_owned(),
                restores: false,
            }
        };
        self.expect("stdout")?;
        self.copy_options()?;
        Ok(Statement::CopyOut { query })
    }

    fn copy_options(&self) -> Result<(), PgError> {
        let known = ["with", "(", ")", "format", "text"];
        match self
            .tokens
            .iter()
            .find(|token| !known.iter().any(|word| token.is(word)))
        {
            Some(token) => Err(PgError::unsupported(&format!(
                "COPY option \"{}\"",
                token.text
            ))),
            None => Ok(()),
        }
    }

    /// What stands up to the closing parenthesis, cut at its commas.
    fn list(&mut self) -> Vec<Vec<Token<'a>>> {
        let mut parts = vec![Vec::new()];
        let mut depth = 0_usize;
        while let Some(token) = self.next() {
            if token.is("(") {
                depth += 1;
            } else if token.is(")") {
                match depth.checked_sub(1) {
                    Some(less) => depth = less,
                    None => break,
                }
            }
            match parts.last_mut() {
                Some(part) if depth > 0 || !token.is(",") => part.push(token),
                _ => parts.push(Vec::new()),
            }
        }
        parts.retain(|part| !part.is_empty());
        parts
    }
}

/// Puts blanks back between significant tokens.
fn spaced<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let blank = Token {
        kind: Kind::Space,
        text: " ",
    };
    tokens.iter().flat_map(|token| [*token, blank]).collect()
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
