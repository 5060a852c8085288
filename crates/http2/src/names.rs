//! Header names of meshes that the `http` crate does not know: taken from here they cost no allocation.
use http::HeaderName;

/// The longest of them.
const LONGEST: usize = 36;

macro_rules! known {
    ($name:ident: $($text:literal)*) => {{
        $(
            const _: () = assert!($text.len() <= LONGEST);
            if $name == $text.as_bytes() {
                return Some(const { HeaderName::from_static($text) });
            }
        )*
        None
    }};
}

/// The name, in whichever case it is written, if it is one of these.
pub fn known(name: &[u8]) -> Option<HeaderName> {
    // Most others are told apart by how they begin.
    if !matches!(name.first()?, b'x' | b'X' | b't' | b'T' | b'g' | b'G' | b'b' | b'B') {
        return None;
    }
    let mut lower = [0; LONGEST];
    let lower = lower.get_mut(..name.len())?;
    for (to, from) in lower.iter_mut().zip(name) {
        *to = from.to_ascii_lowercase();
    }
    known!(lower:
        "x-request-id" "traceparent" "tracestate" "x-forwarded-proto" "x-forwarded-for" "x-forwarded-client-cert" "x-forwarded-host"
        "x-envoy-attempt-count" "x-envoy-upstream-service-time" "x-envoy-peer-metadata" "x-envoy-peer-metadata-id"
        "x-envoy-decorator-operation" "x-envoy-external-address" "x-envoy-internal" "x-envoy-expected-rq-timeout-ms"
        "grpc-timeout" "grpc-status" "grpc-message" "grpc-encoding" "grpc-accept-encoding"
        "b3" "x-b3-traceid" "x-b3-spanid" "x-b3-parentspanid" "x-b3-sampled")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case_and_others_are_not() {
        for name in ["x-request-id", "X-Request-Id", "TRACEPARENT", "b3", "grpc-accept-encoding"] {
            assert_eq!(known(name.as_bytes()), HeaderName::from_bytes(name.as_bytes()).ok(), "{name}");
        }
        for name in ["", "x", "x-request-idd", "te", "x-e\0nvoy", "grpc_timeout", &"x".repeat(100)] {
            assert_eq!(known(name.as_bytes()), None, "{name}");
        }
    }
}
