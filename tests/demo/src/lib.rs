//! What the demo, the soak and the bench share: the programs they start and the log
//! that these write.

pub mod children;
pub mod log_line;
pub mod postgresql;

/// Why a run ends before its end.
#[derive(Debug)]
pub enum Stop {
    /// Ctrl-C, or another signal that asks to end.
    Interrupted,
    /// Something did not hold; the text says what was expected and what came.
    Failed(String),
}

/// With [`Stop`] for an error.
pub type Result<T> = std::result::Result<T, Stop>;

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Failed(text)
    }
}

/// Fails with `text`.
///
/// # Errors
///
/// Always.
pub fn failed<T>(text: impl Into<String>) -> Result<T> {
    Err(Stop::Failed(text.into()))
}
