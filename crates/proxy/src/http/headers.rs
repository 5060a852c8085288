//! Header names of Envoy's and Istio's, and small operations on header maps.
use http::header::{Entry, HeaderMap, HeaderName, HeaderValue};

macro_rules! names {
    ($($id:ident = $text:literal;)*) => { $(pub(crate) const $id: HeaderName = HeaderName::from_static($text);)* };
}

names! {
    ALT_STAT_NAME = "x-envoy-upstream-alt-stat-name";
    ATTEMPT_COUNT = "x-envoy-attempt-count";
    COMPRESSION_STATUS = "x-envoy-compression-status";
    DEGRADED = "x-envoy-degraded";
    DECORATOR = "x-envoy-decorator-operation";
    DOWNSTREAM_CLUSTER = "x-envoy-downstream-service-cluster";
    DOWNSTREAM_NODE = "x-envoy-downstream-service-node";
    EXPECTED_TIMEOUT = "x-envoy-expected-rq-timeout-ms";
    EXTERNAL_ADDRESS = "x-envoy-external-address";
    FORCE_TRACE = "x-envoy-force-trace";
    FORWARDED_FOR = "x-forwarded-for";
    FORWARDED_HOST = "x-forwarded-host";
    FORWARDED_PORT = "x-forwarded-port";
    FORWARDED_PROTO = "x-forwarded-proto";
    FORWARDED_CLIENT_CERT = "x-forwarded-client-cert";
    GRPC_ACCEPT_ENCODING = "grpc-accept-encoding";
    GRPC_MESSAGE = "grpc-message";
    GRPC_STATUS = "grpc-status";
    GRPC_TIMEOUT = "grpc-timeout";
    HEDGE_ON_PER_TRY_TIMEOUT = "x-envoy-hedge-on-per-try-timeout";
    ENDPOINT_LOAD_METRICS = "endpoint-load-metrics";
    ENDPOINT_LOAD_METRICS_BIN = "endpoint-load-metrics-bin";
    DROPPED = "x-envoy-drop-overload";
    DROPPED_ALWAYS = "x-envoy-unconditional-drop-overload";
    HEALTH_CHECKED_CLUSTER = "x-envoy-upstream-healthchecked-cluster";
    IMMEDIATE_HEALTH_CHECK_FAIL = "x-envoy-immediate-health-check-fail";
    INTERNAL = "x-envoy-internal";
    IP_TAGS = "x-envoy-ip-tags";
    IS_TIMEOUT_RETRY = "x-envoy-is-timeout-retry";
    MAX_RETRIES = "x-envoy-max-retries";
    ORIGINAL_PATH = "x-envoy-original-path";
    ORIGINAL_HOST = "x-envoy-original-host";
    ORIGINAL_URL = "x-envoy-original-url";
    OVERLOADED = "x-envoy-overloaded";
    PEER_METADATA = "x-envoy-peer-metadata";
    PEER_METADATA_ID = "x-envoy-peer-metadata-id";
    PER_TRY_TIMEOUT = "x-envoy-upstream-rq-per-try-timeout-ms";
    RATE_LIMITED = "x-envoy-ratelimited";
    RATE_LIMIT_LIMIT = "x-ratelimit-limit";
    RATE_LIMIT_REMAINING = "x-ratelimit-remaining";
    RATE_LIMIT_RESET = "x-ratelimit-reset";
    REQUEST_ID = "x-request-id";
    RETRIABLE_HEADERS = "x-envoy-retriable-header-names";
    RETRIABLE_STATUS_CODES = "x-envoy-retriable-status-codes";
    RETRY_GRPC_ON = "x-envoy-retry-grpc-on";
    RETRY_ON = "x-envoy-retry-on";
    SERVICE_TIME = "x-envoy-upstream-service-time";
    TIMEOUT = "x-envoy-upstream-rq-timeout-ms";
    TIMEOUT_ALT_RESPONSE = "x-envoy-upstream-rq-timeout-alt-response";
}

pub(crate) fn insert_if_absent(map: &mut HeaderMap, name: HeaderName, value: impl FnOnce() -> HeaderValue) {
    if let Entry::Vacant(slot) = map.entry(name) {
        slot.insert(value());
    }
}

/// Adds to a comma-separated header.
pub(crate) fn append_list(map: &mut HeaderMap, name: HeaderName, item: &str) {
    append_list_with(map, name, ",", item);
}

/// [`append_list`], unless the item stands there last already (Envoy `Utility::updateAuthority`).
pub(crate) fn append_list_once(map: &mut HeaderMap, name: HeaderName, item: &str) {
    let last = map.get_all(&name).iter().next_back().and_then(|value| value.as_bytes().rsplit(|b| *b == b',').next());
    if last != Some(item.as_bytes()) {
        append_list(map, name, item);
    }
}

/// [`append_list`] with what stands between two items.
pub(crate) fn append_list_with(map: &mut HeaderMap, name: HeaderName, separator: &str, item: &str) {
    // Lines of one name are one list.
    let lines: Vec<&[u8]> = map.get_all(&name).iter().map(HeaderValue::as_bytes).filter(|line| !line.is_empty()).collect();
    let value =
        if lines.is_empty() { item.as_bytes().to_vec() } else { [&lines.join(&b','), separator.as_bytes(), item.as_bytes()].concat() };
    if let Ok(value) = HeaderValue::from_bytes(&value) {
        map.insert(name, value);
    }
}

/// A number as a value; small ones, which most counts and times are, cost no allocation.
pub(crate) fn numeric(number: u64) -> HeaderValue {
    const DIGITS: &str = "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748\
                          4950515253545556575859606162636465666768697071727374757677787980818283848586878889909192939495969798\
                          99";
    let small = usize::try_from(number).ok().filter(|n| *n < 100);
    let text = small.and_then(|n| DIGITS.get(if n < 10 { 2 * n + 1 } else { 2 * n }..2 * n + 2));
    text.map_or_else(|| HeaderValue::from(number), HeaderValue::from_static)
}

/// A header that is one number.
pub(crate) fn number(map: &HeaderMap, name: &HeaderName) -> Option<u64> {
    map.get(name)?.to_str().ok()?.trim().parse().ok()
}

pub(crate) fn text<'a>(map: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    map.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_that_stands_last_is_not_repeated() {
        let mut map = HeaderMap::new();
        for (item, list) in [("a", "a"), ("a", "a"), ("b", "a,b"), ("a", "a,b,a"), ("a", "a,b,a")] {
            append_list_once(&mut map, FORWARDED_HOST, item);
            assert_eq!(map[FORWARDED_HOST], list);
        }
    }

    #[test]
    fn lines_before_an_item_are_one_list() {
        let mut map = HeaderMap::new();
        for line in ["a", "", "b, c"] {
            map.append(FORWARDED_HOST, HeaderValue::from_static(line));
        }
        append_list_with(&mut map, FORWARDED_HOST, ", ", "d");
        assert_eq!(map.get_all(FORWARDED_HOST).iter().collect::<Vec<_>>(), ["a,b, c, d"]);
        map.append(FORWARDED_HOST, HeaderValue::from_static("e"));
        append_list_once(&mut map, FORWARDED_HOST, "e");
        assert_eq!(map.get_all(FORWARDED_HOST).iter().collect::<Vec<_>>(), ["a,b, c, d", "e"]);
    }

    #[test]
    fn numbers_are_written_as_such() {
        for number in (0..=1000).chain([65_535, u64::MAX]) {
            assert_eq!(numeric(number), HeaderValue::from(number));
        }
    }
}
