//! Collects what is wrong with one resource, with the place of each field.
use crate::diagnostic::{Diagnostic, Severity};
use crate::resource::AnyResource;

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

    /// A mistake that keeps the resource out.
    pub(super) fn error(&mut self, path: &str, message: impl Into<String>) {
        self.diagnostics.push(self.resource.report(Severity::Error, path, message));
    }

    /// A mistake and its remedy.
    pub(super) fn error_with(&mut self, path: &str, message: impl Into<String>, suggestion: impl Into<String>) {
        self.diagnostics.push(self.resource.report(Severity::Error, path, message).with_suggestion(suggestion));
    }

    /// Something that works and is probably not meant.
    pub(super) fn warning(&mut self, path: &str, message: impl Into<String>) {
        self.diagnostics.push(self.resource.report(Severity::Warning, path, message));
    }

    /// A warning that Istio's analyzers give under a code.
    pub(super) fn coded_warning(&mut self, code: &'static str, path: &str, message: impl Into<String>) {
        self.diagnostics.push(self.resource.report(Severity::Warning, path, message).with_code(code));
    }

    /// Reports what a check found, if it found something.
    pub(super) fn expect(&mut self, path: &str, problem: Result<(), String>) {
        if let Err(problem) = problem {
            self.error(path, problem);
        }
    }
}
