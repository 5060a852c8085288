//! From a positioned tree to typed values: one declaration a message gives its struct, its decoder and its field list.
//!
//! `message!` declares a struct with the status of every field, `enumeration!`
//! an enum with its accepted spellings. [`Decode`] turns a node into the value and gathers every mistake in a
//! [`Context`] instead of stopping at the first.
#[macro_use]
mod macros;
pub mod context;
pub mod decode;
pub mod field;
pub mod path;

pub use context::Context;
pub use decode::{Base64Bytes, Decode, IntOrString};
pub use field::{Field, Message, Shape, Status};
