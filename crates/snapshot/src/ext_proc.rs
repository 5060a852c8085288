//! External processing: which parts of an exchange another server sees, and what it may change.
use std::sync::Arc;
use std::time::Duration;

use crate::attribute::NamedAttribute;
use crate::ext_authz::AllowedHeaders;
use crate::mutation_rules::MutationRules;
use crate::service::GrpcService;

/// The namespace of what the processor says about a request.
pub const NAMESPACE: &str = "envoy.filters.http.ext_proc";

/// Envoy's `ExternalProcessor`.
#[derive(Debug)]
pub struct ExtProc {
    pub service: GrpcService,
    /// Exchanges go on unprocessed when the processor fails.
    pub failure_mode_allow: bool,
    pub mode: ProcessingMode,
    /// For each answer.
    pub message_timeout: Duration,
    /// The most that the processor may ask for; zero for nothing.
    pub max_message_timeout: Duration,
    /// `ext_proc`, or `ext_proc.<stat_prefix>`: part of the statistics' names.
    pub stat_prefix: Arc<str>,
    pub rules: MutationRules,
    pub headers: AllowedHeaders,
    pub allow_mode_override: bool,
    /// Pieces of a streamed body are shown before the head's answer is there.
    pub early_bodies: bool,
    /// When there are any, the processor may choose among these alone.
    pub allowed_modes: Vec<ProcessingMode>,
    pub disable_immediate_response: bool,
    /// The processor only looks on: nothing is waited for.
    pub observes: bool,
    /// How long the processor may take to read what it only looks on.
    pub close_timeout: Duration,
    pub route_cache: RouteCacheAction,
    /// Told with the first message about a request, and about a response.
    pub request_attributes: Vec<NamedAttribute>,
    pub response_attributes: Vec<NamedAttribute>,
    /// Dynamic metadata that the processor gets.
    pub forwarded: Vec<Box<str>>,
    /// Namespaces that the processor may write.
    pub received: Vec<Box<str>>,
    /// 500 unless set.
    pub status_on_error: u16,
}

/// What of an exchange the processor sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessingMode {
    pub request_headers: bool,
    pub response_headers: bool,
    pub request_body: BodyMode,
    pub response_body: BodyMode,
    pub request_trailers: bool,
    pub response_trailers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyMode {
    None,
    /// Piece by piece.
    Streamed,
    /// Whole; a larger one than the buffer's limit is refused.
    Buffered,
    /// Up to the buffer's limit; what is more goes on unseen.
    BufferedPartial,
    /// Piece by piece, and the processor says what goes on instead, in pieces of its own and in its own time. The head's answer
    /// is not waited for before the body is shown.
    FullDuplexStreamed,
}

impl ProcessingMode {
    /// Whether any body goes through the processor in full duplex.
    #[must_use]
    pub fn is_full_duplex(&self) -> bool {
        [self.request_body, self.response_body].contains(&BodyMode::FullDuplexStreamed)
    }
}

/// When a changed request finds its route again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteCacheAction {
    /// Where the processor asks for it.
    Default,
    Clear,
    Retain,
}

/// What a route says about the filter.
#[derive(Debug)]
pub enum ExtProcPerRoute {
    Disabled,
    Overrides(ExtProcOverrides),
}

#[derive(Debug, Default)]
pub struct ExtProcOverrides {
    pub mode: Option<ProcessingMode>,
    pub failure_mode_allow: Option<bool>,
}
