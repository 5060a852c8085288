//! YAML to resources with their diagnostics: the model's parser, with the limits that the runner sets.
use lateen_model::yaml::Limits;
use lateen_model::{AnyResource, Diagnostic};

/// Parses one text; a bad document gives diagnostics, the others their resources.
pub fn documents(file: &str, text: &str, namespace: &str) -> (Vec<AnyResource>, Vec<Diagnostic>) {
    let parsed = lateen_model::parse::parse_in(file, text.as_bytes(), namespace, &Limits::default());
    (parsed.resources, parsed.diagnostics)
}
