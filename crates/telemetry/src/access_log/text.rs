//! Log lines, and headers, formed from a format string.
use super::compile::{InvalidFormat, compile};
use super::op::{Found, Op};
use super::record::Record;

/// A compiled text format. The line ends as the format says: give it a `\n`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFormat {
    ops: Vec<Op>,
    missing: &'static [u8],
}

impl TextFormat {
    /// Compiles a format whose missing values print as `-`.
    ///
    /// # Errors
    /// [`InvalidFormat`] naming the operator at fault.
    pub fn compile(format: &str) -> Result<Self, InvalidFormat> {
        Ok(Self { ops: compile(format)?, missing: b"-" })
    }

    /// Missing values print as nothing (`omit_empty_values` of Envoy, and headers made from a format).
    pub fn omit_missing(mut self) -> Self {
        self.leave_missing_out();
        self
    }

    pub(super) fn leave_missing_out(&mut self) {
        self.missing = b"";
    }

    /// Whether nothing of it depends on the request.
    pub fn is_literal(&self) -> bool {
        self.ops.iter().all(|op| matches!(op, Op::Literal(_)))
    }

    /// Whether it is one operator and nothing else.
    pub fn is_one_operator(&self) -> bool {
        self.single().is_some()
    }

    /// Appends the line.
    pub fn write<R: Record + ?Sized>(&self, record: &R, out: &mut Vec<u8>) {
        for op in &self.ops {
            match op {
                Op::Literal(text) => out.extend_from_slice(text),
                Op::Field(field, limit) => {
                    if field.write(record, *limit, out) == Found::Missing {
                        out.extend_from_slice(self.missing);
                    }
                }
            }
        }
    }

    /// The piece itself when the format is one operator and nothing else: JSON keeps its type.
    pub(super) fn single(&self) -> Option<&Op> {
        match &self.ops[..] {
            [op @ Op::Field(..)] => Some(op),
            _ => None,
        }
    }
}
