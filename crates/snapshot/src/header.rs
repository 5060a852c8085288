//! Header mutations whose values may hold `%COMMAND%` substitutions, parsed once.
use http::{HeaderName, HeaderValue};

/// Changes to apply to a header map, in order: removals first, then additions (as Envoy does).
#[derive(Debug, Clone, Default)]
pub struct HeaderMutations {
    pub remove: Vec<HeaderName>,
    pub add: Vec<HeaderAddition>,
}

impl HeaderMutations {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

#[derive(Debug, Clone)]
pub struct HeaderAddition {
    pub name: HeaderName,
    pub value: HeaderTemplate,
    pub action: AppendAction,
    pub keep_empty: bool,
}

/// Envoy `HeaderAppendAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}

/// A header value: fixed text, or text with substitutions.
#[derive(Debug, Clone)]
pub enum HeaderTemplate {
    Fixed(HeaderValue),
    /// Formatted per request with the access-log operators of `lateen-telemetry`.
    Format(std::sync::Arc<str>),
}
