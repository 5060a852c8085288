//! gRPC status codes by name, as fault injection and retry policies write them.

/// The names, each at the place of its number (gRPC, `doc/statuscodes.md`).
pub const STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The number of a status by its name, or by the number itself.
pub fn status(name: &str) -> Option<u32> {
    let number = STATUSES.iter().position(|known| *known == name).or_else(|| name.parse().ok().filter(|n| *n < STATUSES.len()))?;
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_known_and_others_are_not() {
        assert_eq!((status("OK"), status("UNAVAILABLE"), status("16")), (Some(0), Some(14), Some(16)));
        assert_eq!((status("unavailable"), status("17"), status("-1")), (None, None, None));
    }
}
