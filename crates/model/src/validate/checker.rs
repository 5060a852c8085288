//! Collects what is wrong with one resource, with the place of each field.
use crate::diagnostic::{Diagnostic, Severity};
use crate::resource::AnyResource;

/// Messages about one resource; beyond that it is all wrong.
const MAX_DIAGNOSTICS: usize = 100;

/// The resource under examination and the messages so far.
pub(super) struct Checker<'a> {
    resource: &'a AnyResource,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(resource: &'a AnyResource) -> Self {
        Self { resource, diagnostics: Vec::new() }
    }

    pub(super) fn finish(self) -> Vec<Diagnostic> {
        self.diagnostics
    }

    fn push(&mut self, severity: Severity, path: &str, message: String) -> Option<&mut Diagnostic> {
        if self.diagnostics.len() > MAX_DIAGNOSTICS {
            return None;
        }
        let message = match self.diagnostics.len() {
            MAX_DIAGNOSTICS => format!("more than {MAX_DIAGNOSTICS} mistakes; the others are not listed"),
            _ => message,
        };
        // The last message stands for unknown others, so it must keep the resource out.
        let severity = if self.diagnostics.len() == MAX_DIAGNOSTICS { Severity::Error } else { severity };
        self.diagnostics.push(self.resource.report(severity, path, message));
        self.diagnostics.last_mut()
    }

    /// A mistake that keeps the resource out.
    pub(super) fn error(&mut self, path: &str, message: impl Into<String>) {
        self.push(Severity::Error, path, message.into());
    }

    /// A mistake and its remedy.
    pub(super) fn error_with(&mut self, path: &str, message: impl Into<String>, suggestion: impl Into<String>) {
        if let Some(diagnostic) = self.push(Severity::Error, path, message.into()) {
            diagnostic.suggestion = Some(suggestion.into());
        }
    }

    /// Something that works and is probably not meant.
    pub(super) fn warning(&mut self, path: &str, message: impl Into<String>) {
        self.push(Severity::Warning, path, message.into());
    }

    /// A warning that Istio's analyzers give under a code.
    pub(super) fn coded_warning(&mut self, code: &'static str, path: &str, message: impl Into<String>) {
        if let Some(diagnostic) = self.push(Severity::Warning, path, message.into()) {
            diagnostic.code = Some(code);
        }
    }

    /// Reports what a check found, if it found something.
    pub(super) fn expect(&mut self, path: &str, problem: Result<(), String>) {
        if let Err(problem) = problem {
            self.error(path, problem);
        }
    }
}
