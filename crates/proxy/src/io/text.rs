//! Text that shares the buffer it was read into: checked for UTF-8 once, cloned without copying.
#![allow(unsafe_code)]
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

/// Bytes known to be UTF-8.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Text(Bytes);

impl Text {
    pub(crate) const EMPTY: Self = Self(Bytes::new());

    /// `None` when the bytes are not UTF-8.
    pub(crate) fn new(bytes: Bytes) -> Option<Self> {
        (bytes.is_ascii() || std::str::from_utf8(&bytes).is_ok()).then_some(Self(bytes))
    }

    pub(crate) const fn fixed(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }

    pub(crate) fn as_str(&self) -> &str {
        // SAFETY: every constructor takes text or checks for UTF-8, and `Bytes` never changes.
        unsafe { std::str::from_utf8_unchecked(&self.0) }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}
