//! Short names for the Envoy messages this crate builds, and the small constructors they all need.
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use prost::{Message, Name};
use prost_types::value::Kind;

pub(crate) use lateen_proto::envoy::config::accesslog::v3 as accesslog_v3;
pub(crate) use lateen_proto::envoy::config::cluster::v3 as cluster_v3;
pub(crate) use lateen_proto::envoy::config::core::v3 as core_v3;
pub(crate) use lateen_proto::envoy::config::endpoint::v3 as endpoint_v3;
pub(crate) use lateen_proto::envoy::config::listener::v3 as listener_v3;
pub(crate) use lateen_proto::envoy::config::route::v3 as route_v3;
pub(crate) use lateen_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
pub(crate) use lateen_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_v3;
pub(crate) use lateen_proto::envoy::extensions::transport_sockets::tls::v3 as tls_v3;
pub(crate) use lateen_proto::envoy::extensions::upstreams::http::v3 as http_v3;
pub(crate) use lateen_proto::envoy::r#type::matcher::v3 as matcher_v3;
pub(crate) use lateen_proto::envoy::r#type::v3 as type_v3;
pub(crate) use prost_types::{Any, Duration as PbDuration, Struct, Value};

/// Packs a message into the envelope every extension travels in.
pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    lateen_proto::any::pack(message)
}

/// A protobuf duration.
pub(crate) fn duration(value: Duration) -> PbDuration {
    PbDuration { seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX), nanos: value.subsec_nanos().cast_signed() }
}

/// The zero duration: "no timeout" in most of Envoy's fields.
pub(crate) fn zero() -> PbDuration {
    PbDuration { seconds: 0, nanos: 0 }
}

pub(crate) fn string(value: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

pub(crate) fn boolean(value: bool) -> Value {
    Value { kind: Some(Kind::BoolValue(value)) }
}

pub(crate) fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(prost_types::ListValue { values })) }
}

pub(crate) fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
}

/// A map whose encoding is the same for the same entries.
///
/// The generated maps are hash maps with a random seed each, and their order is the order on the
/// wire: two equal resources would encode differently and be pushed again for nothing. So a map of
/// two or more entries is remade until it happens to iterate in key order (two tries on average for
/// two entries); the order survives moves and clones.
pub(crate) fn ordered_map<V: Clone>(mut entries: Vec<(String, V)>) -> HashMap<String, V> {
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries.dedup_by(|a, b| a.0 == b.0);
    // With more than a few entries the right order is too rare to wait for.
    let tries = if entries.len() <= 4 { 1_000 } else { 0 };
    for _ in 0..tries {
        let map: HashMap<String, V> = entries.iter().cloned().collect();
        if map.keys().eq(entries.iter().map(|(key, _)| key)) {
            return map;
        }
    }
    entries.into_iter().collect()
}

/// Filter metadata under one namespace.
pub(crate) fn metadata(namespace: &str, fields: Struct) -> core_v3::Metadata {
    core_v3::Metadata { filter_metadata: HashMap::from([(namespace.to_owned(), fields)]), ..Default::default() }
}

/// An address and TCP port.
pub(crate) fn socket_address(address: impl Into<String>, port: u32) -> core_v3::SocketAddress {
    core_v3::SocketAddress {
        address: address.into(),
        port_specifier: Some(core_v3::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    }
}

/// An address and TCP port, or a unix socket when the text starts with `unix://`.
pub(crate) fn address(text: &str, port: u32) -> core_v3::Address {
    let inner = match text.strip_prefix("unix://") {
        Some(path) => core_v3::address::Address::Pipe(core_v3::Pipe { path: path.to_owned(), ..Default::default() }),
        None => core_v3::address::Address::SocketAddress(socket_address(text, port)),
    };
    core_v3::Address { address: Some(inner) }
}

/// The address range of `10.0.0.0/8` or of a single address; nothing when the text is neither.
pub(crate) fn cidr(text: &str) -> Option<core_v3::CidrRange> {
    let (address, length) = parse_cidr(text)?;
    Some(core_v3::CidrRange { address_prefix: address.to_string(), prefix_len: Some(u32::from(length)) })
}

/// The network address and prefix length of `text`, host bits cleared.
pub(crate) fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?),
        None => {
            let address = text.parse::<IpAddr>().ok()?;
            (address, if address.is_ipv4() { 32 } else { 128 })
        }
    };
    let masked = match address {
        IpAddr::V4(v4) if length <= 32 => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::from((u32::from(v4) & mask).to_be_bytes())
        }
        IpAddr::V6(v6) if length <= 128 => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::from((u128::from(v6) & mask).to_be_bytes())
        }
        _ => return None,
    };
    Some((masked, length))
}

/// Where Envoy asks for routes and endpoints: the stream it is on, waiting as long as it takes.
pub(crate) fn ads() -> core_v3::ConfigSource {
    core_v3::ConfigSource { initial_fetch_timeout: Some(zero()), ..ads_with_default_wait() }
}

/// As [`ads`], but a resource that never comes does not block for longer than Envoy's 15 s.
pub(crate) fn ads_with_default_wait() -> core_v3::ConfigSource {
    core_v3::ConfigSource {
        resource_api_version: core_v3::ApiVersion::V3 as i32,
        config_source_specifier: Some(core_v3::config_source::ConfigSourceSpecifier::Ads(core_v3::AggregatedConfigSource::default())),
        ..Default::default()
    }
}

pub(crate) fn exact(text: impl Into<String>) -> matcher_v3::StringMatcher {
    pattern(matcher_v3::string_matcher::MatchPattern::Exact(text.into()))
}

pub(crate) fn prefix(text: impl Into<String>) -> matcher_v3::StringMatcher {
    pattern(matcher_v3::string_matcher::MatchPattern::Prefix(text.into()))
}

pub(crate) fn regex(text: impl Into<String>) -> matcher_v3::StringMatcher {
    pattern(matcher_v3::string_matcher::MatchPattern::SafeRegex(regex_matcher(text)))
}

pub(crate) fn regex_matcher(text: impl Into<String>) -> matcher_v3::RegexMatcher {
    matcher_v3::RegexMatcher { regex: text.into(), ..Default::default() }
}

fn pattern(pattern: matcher_v3::string_matcher::MatchPattern) -> matcher_v3::StringMatcher {
    matcher_v3::StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

/// `percent` of a hundred, exact to four decimals as Istio's fractions are.
pub(crate) fn million(percent: f64) -> type_v3::FractionalPercent {
    // In f64 0.07 * 10000 is 700.0000000000001: rounding would be right, Istio truncates, both give 700.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let numerator = (percent.clamp(0.0, 100.0) * 10_000.0) as u32;
    type_v3::FractionalPercent { numerator, denominator: type_v3::fractional_percent::DenominatorType::Million as i32 }
}

pub(crate) fn hundred(percent: u32) -> type_v3::FractionalPercent {
    type_v3::FractionalPercent { numerator: percent, denominator: type_v3::fractional_percent::DenominatorType::Hundred as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_iterates_in_key_order_whatever_its_seed() {
        for _ in 0..50 {
            let map = ordered_map(vec![("c".to_owned(), 3), ("a".to_owned(), 1), ("b".to_owned(), 2)]);
            assert_eq!(map.clone().into_iter().collect::<Vec<_>>(), [("a".to_owned(), 1), ("b".to_owned(), 2), ("c".to_owned(), 3)]);
        }
    }

    #[test]
    fn host_bits_of_a_range_are_cleared() {
        assert_eq!(parse_cidr("1.2.3.4/8"), Some(("1.0.0.0".parse().unwrap(), 8)));
        assert_eq!(parse_cidr("1.2.3.4"), Some(("1.2.3.4".parse().unwrap(), 32)));
        assert_eq!(parse_cidr("0.0.0.0/0"), Some(("0.0.0.0".parse().unwrap(), 0)));
        assert_eq!(parse_cidr("2001:db8::1/32"), Some(("2001:db8::".parse().unwrap(), 32)));
        assert_eq!(parse_cidr("1.2.3.4/33"), None);
        assert_eq!(parse_cidr("example.com"), None);
    }
}
