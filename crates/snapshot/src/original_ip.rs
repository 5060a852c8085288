//! Where a caller's address comes from when it is not the connection's (Envoy `original_ip_detection_extensions`).
use http::header::HeaderName;

use crate::matcher::Cidr;

/// A place where the address of the original caller may stand.
#[derive(Debug, Clone)]
pub enum OriginalIp {
    /// A header with nothing but the address (Envoy `custom_header`); only its first value counts.
    Header {
        name: HeaderName,
        /// Whether the address may make the request an internal one.
        trusted: bool,
        /// The status that a request without such an address is refused with.
        reject: Option<u16>,
    },
    /// `x-forwarded-for` (Envoy `xff`).
    Forwarded {
        from: Forwarded,
        /// Adds the connection's address to the header; Envoy's default is not to.
        append: bool,
    },
}

/// Which address of `x-forwarded-for` is the caller's.
#[derive(Debug, Clone)]
pub enum Forwarded {
    /// So many places before the last.
    Hops(u32),
    /// From a proxy of these, the last address that is none of them, or else the first of all.
    Trusted(Vec<Cidr>),
}
