//! What is told to the user about their configuration: who, where, what, and how to mend it.
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::yaml::Position;

/// How bad it is. An error leaves the resource (or, where Istio would only warn, the field) out; the rest is advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// The resource a message is about; `namespace` is empty for cluster-scoped kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ResourceId {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.namespace.as_str(), self.name.as_str()) {
            ("", "") => f.write_str(&self.kind),
            ("", name) => write!(f, "{} {name}", self.kind),
            (namespace, name) => write!(f, "{} {namespace}/{name}", self.kind),
        }
    }
}

/// One message about one place of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The code Istio's analyzers give the same finding, e.g. `IST0101`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    pub file: Arc<str>,
    /// Counted from 1; 0 when the message is about the whole file.
    pub line: u32,
    /// Counted from 1, in characters; 0 when the message is about the whole file.
    pub column: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourceId>,
    /// The field in the form `spec.http[0].route[1].weight`; empty for the whole resource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_path: String,
    pub message: String,
    /// What to write instead, when that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

impl Diagnostic {
    /// A message about a place of a file; add the rest with the `with_` methods.
    pub fn new(severity: Severity, file: &Arc<str>, at: Position, message: impl Into<String>) -> Self {
        Self {
            severity,
            code: None,
            file: Arc::clone(file),
            line: at.line,
            column: at.column,
            resource: None,
            field_path: String::new(),
            message: message.into(),
            suggestion: None,
        }
    }

    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    #[must_use]
    pub fn with_resource(mut self, resource: ResourceId) -> Self {
        self.resource = Some(resource);
        self
    }

    #[must_use]
    pub fn with_path(mut self, path: impl Into<String>) -> Self {
        self.field_path = path.into();
        self
    }

    #[must_use]
    pub fn with_suggestion(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(suggestion.into());
        self
    }

    /// Whether it keeps something from taking effect.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.severity)?;
        if let Some(code) = self.code {
            write!(f, " [{code}]")?;
        }
        if let Some(resource) = &self.resource {
            write!(f, ": {resource}")?;
        }
        if !self.field_path.is_empty() {
            write!(f, ": {}", self.field_path)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; {suggestion}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_as_text_and_as_json() {
        let id = ResourceId { kind: "VirtualService".into(), namespace: "default".into(), name: "v".into() };
        let diagnostic =
            Diagnostic::new(Severity::Warning, &Arc::from("f.yaml"), Position { line: 3, column: 7 }, "there is no Gateway x/y")
                .with_code("IST0101")
                .with_resource(id)
                .with_path("spec.gateways[0]");
        assert_eq!(
            diagnostic.to_string(),
            "f.yaml:3:7: warning [IST0101]: VirtualService default/v: spec.gateways[0]: there is no Gateway x/y"
        );
        assert_eq!(
            serde_json::to_value(&diagnostic).unwrap(),
            serde_json::json!({
                "severity": "warning", "code": "IST0101", "file": "f.yaml", "line": 3, "column": 7,
                "resource": {"kind": "VirtualService", "namespace": "default", "name": "v"},
                "field_path": "spec.gateways[0]", "message": "there is no Gateway x/y"
            })
        );
        let whole = Diagnostic::new(Severity::Error, &Arc::from("f.yaml"), Position::default(), "cannot be read");
        assert_eq!(whole.to_string(), "f.yaml: error: cannot be read");
    }
}
