//! What a type cannot say: required fields, ranges, fields that need or exclude each other. One file a kind.
use crate::diagnostic::Diagnostic;
use crate::resource::AnyResource;

/// Checks one resource by itself.
pub fn validate(resource: &AnyResource) -> Vec<Diagnostic> {
    let _ = resource;
    Vec::new()
}
