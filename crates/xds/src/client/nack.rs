//! What a server is told of resources that are not taken in use.
use std::fmt::Write;

use lateen_proto::google::rpc::Status;

use super::Rejected;
use crate::types::short_name;

/// gRPC's INVALID_ARGUMENT, the code of every NACK.
pub(super) const INVALID_ARGUMENT: i32 = 3;
/// A NACK names rejected resources up to this many bytes: a server may cap what it reads.
pub(super) const MAX_ERROR_BYTES: usize = 16 * 1024;

/// The NACK that names every rejected resource and its reason; `None` when there is nothing to reject.
pub(super) fn nack(type_url: &str, rejected: &[Rejected]) -> Option<Status> {
    if rejected.is_empty() {
        return None;
    }
    let mut message = String::new();
    for (at, Rejected { name, reason }) in rejected.iter().enumerate() {
        if message.len() + name.len() + reason.len() > MAX_ERROR_BYTES && at > 0 {
            let _ = write!(message, "; and {} more", rejected.len() - at);
            break;
        }
        let separator = if at == 0 { "" } else { "; " };
        let room: String = reason.chars().take(MAX_ERROR_BYTES).collect();
        let _ = write!(message, "{separator}{} {name}: {room}", short_name(type_url));
    }
    Some(Status { code: INVALID_ARGUMENT, message, ..Default::default() })
}
