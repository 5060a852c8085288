//! Names of routes and endpoints that files hold: they are apart from those of the aggregated stream, and of other files,
//! which may be the same.
use super::invalid::{Invalid, Result};

/// Stands between path and name. No path has it, and no other name may.
const BETWEEN: char = '\0';

/// What something is known as that is in this file.
pub fn in_file(path: &str, name: &str) -> String {
    format!("{path}{BETWEEN}{name}")
}

/// The file that something known as `key` is in, if any, and its name.
pub fn file_and_name(key: &str) -> (Option<&str>, &str) {
    key.split_once(BETWEEN).map_or((None, key), |(path, name)| (Some(path), name))
}

/// A name that came from outside.
pub(crate) fn check(name: &str) -> Result<()> {
    if name.contains(BETWEEN) { Err(Invalid::new("holds a zero byte")) } else { Ok(()) }
}
