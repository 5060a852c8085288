//! Why a resource cannot be taken in use: the field path, and what to do about it.
use std::fmt;

use super::left_out;

/// A refusal. The path grows as the error travels outwards, so that compiling without errors pays nothing for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// `filter_chains[0].filters[1].route_config`; empty for the resource itself.
    pub path: String,
    pub reason: String,
}

pub(crate) type Result<T> = std::result::Result<T, Invalid>;

impl Invalid {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { path: String::new(), reason: reason.into() }
    }

    /// A problem with one field of the message at hand.
    pub(crate) fn field(field: &str, reason: impl Into<String>) -> Self {
        Self::new(reason).inside(field)
    }

    /// A field that would change behaviour and is not honoured.
    pub(crate) fn unsupported(field: &str) -> Self {
        Self::field(field.trim_start_matches("r#"), "is not supported; remove it")
    }

    /// The same problem, for a message that stands where `path` says without its first segment.
    pub(crate) fn without_first_segment(mut self) -> Self {
        self.path = self.path.split_once('.').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        self
    }

    /// The same problem, seen from the message that holds `segment`.
    #[must_use]
    pub(crate) fn inside(mut self, segment: &str) -> Self {
        self.path = match self.path.chars().next() {
            None => segment.to_owned(),
            Some('[') => format!("{segment}{}", self.path),
            Some(_) => format!("{segment}.{}", self.path),
        };
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

impl std::error::Error for Invalid {}

/// Adds the place to an error on its way out.
pub(crate) trait Within<T> {
    fn within(self, field: &str) -> Result<T>;
    fn within_item(self, field: &str, index: usize) -> Result<T>;
}

impl<T> Within<T> for Result<T> {
    fn within(self, field: &str) -> Result<T> {
        self.map_err(|e| e.inside(field))
    }

    fn within_item(self, field: &str, index: usize) -> Result<T> {
        self.map_err(|e| e.inside(&format!("{field}[{index}]")))
    }
}

/// What each of a list's messages compiles to. Collected from an iterator it could keep the room of the messages, which are a
/// hundred times as large.
pub(crate) fn each<P, T>(values: Vec<P>, field: &str, mut compile: impl FnMut(P) -> Result<T>) -> Result<Vec<T>> {
    let mut made = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let noted = left_out::count();
        made.push(compile(value).within_item(field, index)?);
        left_out::within_item(noted, field, index);
    }
    Ok(made)
}

/// Whether a protobuf field carries more than its default.
pub(crate) trait IsSet {
    fn is_set(&self) -> bool;
}

macro_rules! is_set {
    ($($type:ty: $test:expr),* $(,)?) => { $(impl IsSet for $type {
        fn is_set(&self) -> bool {
            let test: fn(&Self) -> bool = $test;
            test(self)
        }
    })* };
}

is_set! {
    bool: |b| *b,
    i32: |n| *n != 0,
    i64: |n| *n != 0,
    u32: |n| *n != 0,
    u64: |n| *n != 0,
    String: |s| !s.is_empty(),
}

impl<T: 'static> IsSet for Option<T> {
    /// Every switch we refuse is off by default, so an explicit `false` changes nothing.
    fn is_set(&self) -> bool {
        match self {
            None => false,
            Some(value) => (value as &dyn std::any::Any).downcast_ref::<bool>() != Some(&false),
        }
    }
}

impl<T: IsSet> IsSet for &T {
    fn is_set(&self) -> bool {
        (**self).is_set()
    }
}

impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> IsSet for std::collections::HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

/// Refuses each named field that is set: a field whose effect we do not have must not be ignored.
macro_rules! refuse {
    ($($field:ident),+ $(,)?) => { $(
        if $crate::compile::invalid::IsSet::is_set(&$field) {
            return Err($crate::compile::invalid::Invalid::unsupported(stringify!($field)));
        }
    )+ };
}

/// Names fields that are accepted without effect, because nothing a caller can observe depends on them.
macro_rules! harmless {
    ($($field:ident),+ $(,)?) => { let _ = ($(&$field,)+); };
}

pub(crate) use {harmless, refuse};
