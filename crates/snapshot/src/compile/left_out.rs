//! What a resource asks for and does not get though it is taken in use: told once for each version, where it is compiled.
use std::cell::RefCell;

use super::invalid::Invalid;

/// So much is remembered of one resource: more is of the same kind.
const MOST: usize = 64;

thread_local! {
    /// Of the resource that is being compiled; compiling does not wait, and what is left out is rare.
    static NOTED: RefCell<Vec<Invalid>> = const { RefCell::new(Vec::new()) };
}

/// Remembers it until its resource is done.
pub(crate) fn note(what: Invalid) {
    NOTED.with_borrow_mut(|noted| {
        if noted.len() < MOST {
            noted.push(what);
        }
    });
}

/// How much has been noted so far.
pub(crate) fn count() -> usize {
    NOTED.with_borrow(Vec::len)
}

/// Says of what was noted since then that it stands in this item of a list.
pub(crate) fn within_item(since: usize, field: &str, index: usize) {
    NOTED.with_borrow_mut(|noted| {
        for what in noted.iter_mut().skip(since) {
            *what = std::mem::replace(what, Invalid::new("")).inside(&format!("{field}[{index}]"));
        }
    });
}

/// All that was noted, which is forgotten.
pub(crate) fn take() -> Vec<Invalid> {
    NOTED.take()
}

/// Tells of what was left out of a resource that is in use now.
pub(crate) fn tell(type_name: &str, name: &str) {
    for what in take() {
        tracing::warn!("{type_name} {name}: {what}");
    }
}
