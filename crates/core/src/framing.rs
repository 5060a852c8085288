//! Headers that are the sender's: no rule, filter or trailer changes them.

/// Whether a header says where a message ends or how its connection goes on.
pub fn is_framing(header: &str) -> bool {
    const NAMES: [&str; 7] = ["connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];
    NAMES.iter().any(|name| name.eq_ignore_ascii_case(header))
}
