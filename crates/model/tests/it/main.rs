//! The crate as others use it: text in, resources and messages out.
mod analysis;
mod arbitrary;
mod bad;
mod corpus;
mod documents;
mod fields;

use lateen_model::{Limits, Parsed, ResourceSet};

/// Parses a text as the file `f.yaml`.
fn parse(text: &str) -> Parsed {
    lateen_model::parse("f.yaml", text.as_bytes(), &Limits::default())
}

/// The messages of a text, as people see them.
fn messages(text: &str) -> Vec<String> {
    parse(text).diagnostics.iter().map(ToString::to_string).collect()
}

/// The resources of a text that must have no error.
fn set(text: &str) -> ResourceSet {
    let parsed = parse(text);
    let errors: Vec<_> = parsed.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let (resources, duplicates) = lateen_model::load::gather(Parsed { resources: parsed.resources, diagnostics: Vec::new() });
    assert!(duplicates.is_empty(), "{duplicates:#?}");
    resources
}

/// A VirtualService whose spec is given, indented by two.
fn virtual_service(spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: v\nspec:\n{spec}")
}

/// A DestinationRule whose spec is given, indented by two.
fn destination_rule(spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: d\nspec:\n{spec}")
}
