//! Why something failed, in three parts: the cause, the evidence for it, and what to do.

use std::fmt;

/// One explained failure, displayed as one line: cause, evidence, advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    pub cause: String,
    /// Codes, values, quoted text. Foreign text in it is escaped and bounded already.
    pub evidence: String,
    pub advice: String,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        if !self.evidence.is_empty() {
            write!(f, ": {}", self.evidence)?;
        }
        if !self.advice.is_empty() {
            write!(f, ": {}", self.advice)?;
        }
        Ok(())
    }
}
