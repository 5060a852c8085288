//! Access logs: Envoy's format strings compiled once, written straight into a worker's buffer.
//!
//! [`TextFormat`] and [`JsonFormat`] are made when configuration changes; a finished request implements
//! [`Record`] and is written by [`LogWriter::line`], whose buffers a thread behind a [`Sink`] puts into the file.
mod compile;
mod json;
mod op;
mod record;
mod sink;
mod text;
mod time;

pub use compile::InvalidFormat;
pub use json::JsonFormat;
pub use record::{Address, AddressOf, Bytes, FilterState, HeaderKey, HeadersOf, Record, Span, Text};
pub use sink::{LogWriter, Sink};
pub use text::TextFormat;
pub use time::TimeFormat;

/// Envoy's own default, used when a file access log names no format.
pub const ENVOY_TEXT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n"
);
