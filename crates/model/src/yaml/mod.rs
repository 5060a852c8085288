//! YAML and JSON text to a tree whose every node knows its line and column.
mod json;
pub mod reader;
pub mod scalar;
pub mod tree;

pub use reader::{Document, Limits, ReadError, read};
pub use tree::{Entry, Node, Number, Position, Value};
