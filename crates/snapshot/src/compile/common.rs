//! Pieces that many messages share: durations, addresses, blocks, fractions, data sources, envelopes.
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lateen_core::bounded_file;
use lateen_core::file_stamp::FileStamp;
use lateen_proto::envoy::config::core::v3::{self as core, address, data_source, socket_address, socket_option};
use lateen_proto::envoy::r#type::v3 as types;
use lateen_proto::{Any, any};
use prost::{Message, Name};

use super::invalid::{Invalid, Result, Within, each, harmless, refuse};
use crate::matcher::{Cidr, Fraction};
use crate::socket::{OptionValue, SocketOption};

/// The longest duration taken at face value; anything above (Envoy allows 315,576,000,000 s) means "practically never".
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Files named by a configuration are certificates and short bodies: more is a mistake.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Headers of a head: a map of headers that an attacker named cannot be sure to hold more than 6,553, and a proxy adds some.
const MOST_HEADERS: u32 = 4096;

/// `max_headers_count` of either side.
pub(crate) fn headers_count(value: Option<u32>) -> Result<u32> {
    let count = value.unwrap_or(100);
    if !(1..=MOST_HEADERS).contains(&count) {
        return Err(Invalid::field("max_headers_count", format!("{count} is not between 1 and {MOST_HEADERS}")));
    }
    Ok(count)
}

/// A text to be shared. Of empty ones, which most optional texts are, there is one for all.
pub(crate) fn shared(text: String) -> Arc<str> {
    if text.is_empty() { Arc::default() } else { text.into() }
}

pub(crate) fn duration(value: &lateen_proto::Duration) -> Result<Duration> {
    let (seconds, nanos) = (u64::try_from(value.seconds), u32::try_from(value.nanos));
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos).min(LONGEST)),
        _ => Err(Invalid::new(format!("is not a valid duration ({}s {}ns); use a value of zero or more", value.seconds, value.nanos))),
    }
}

/// The duration, or `default` when left out.
pub(crate) fn duration_or(value: Option<&lateen_proto::Duration>, default: Duration, field: &str) -> Result<Duration> {
    value.map_or(Ok(default), |v| duration(v).within(field))
}

/// A limit in time where zero means none; `default` applies when the field is left out.
pub(crate) fn limit(value: Option<&lateen_proto::Duration>, default: Option<Duration>, field: &str) -> Result<Option<Duration>> {
    match value {
        None => Ok(default),
        Some(v) => duration(v).within(field).map(|d| (!d.is_zero()).then_some(d)),
    }
}

pub(crate) fn port(value: u32) -> Result<u16> {
    u16::try_from(value).map_err(|_| Invalid::new(format!("{value} is not a port; use 0 to 65535")))
}

/// Where a host or listener is.
pub(crate) enum Place {
    Socket(SocketAddr),
    /// A host name with a port: only DNS clusters have those.
    Name(String, u16),
    Pipe(String),
}

pub(crate) fn place(value: Option<core::Address>) -> Result<Place> {
    match value.and_then(|a| a.address) {
        Some(address::Address::SocketAddress(socket)) => named_socket(socket).within("socket_address"),
        Some(address::Address::Pipe(core::Pipe { path, mode })) => {
            harmless!(mode);
            if path.is_empty() || path.len() > 107 {
                return Err(Invalid::field("pipe.path", "must have 1 to 107 characters"));
            }
            Ok(Place::Pipe(path))
        }
        Some(address::Address::EnvoyInternalAddress(_)) => Err(Invalid::unsupported("envoy_internal_address")),
        None => Err(Invalid::new("is missing; give a socket_address")),
    }
}

fn named_socket(socket: core::SocketAddress) -> Result<Place> {
    let core::SocketAddress { protocol, address, resolver_name, ipv4_compat: _of_listeners, network_namespace_filepath, port_specifier } =
        socket;
    refuse!(network_namespace_filepath, resolver_name);
    if protocol != socket_address::Protocol::Tcp as i32 {
        return Err(Invalid::field("protocol", "only TCP is supported"));
    }
    let number = match port_specifier {
        Some(socket_address::PortSpecifier::PortValue(value)) => port(value).within("port_value")?,
        Some(socket_address::PortSpecifier::NamedPort(_)) => return Err(Invalid::unsupported("named_port")),
        None => 0,
    };
    match address.parse::<IpAddr>() {
        Ok(ip) => Ok(Place::Socket(SocketAddr::new(ip, number))),
        Err(_) if address.is_empty() => Err(Invalid::field("address", "is empty; give an IP address")),
        Err(_) => Ok(Place::Name(address, number)),
    }
}

/// An IP address with its port.
pub(crate) fn socket(value: Option<core::SocketAddress>) -> Result<SocketAddr> {
    match named_socket(value.ok_or_else(|| Invalid::new("is missing; give an IP address and a port"))?)? {
        Place::Socket(address) => Ok(address),
        Place::Name(name, _) => Err(Invalid::field("address", format!("`{name}` is not an IP address"))),
        Place::Pipe(path) => Err(Invalid::new(format!("`{path}` is not an IP address"))),
    }
}

pub(crate) fn cidr(value: core::CidrRange) -> Result<Cidr> {
    let core::CidrRange { address_prefix, prefix_len } = value;
    let address: IpAddr =
        address_prefix.parse().map_err(|_| Invalid::field("address_prefix", format!("`{address_prefix}` is not an IP address")))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = prefix_len.unwrap_or(0);
    match u8::try_from(length) {
        Ok(length) if length <= longest => Ok(Cidr::new(address, length)),
        _ => Err(Invalid::field("prefix_len", format!("{length} is more than {longest}"))),
    }
}

pub(crate) fn cidrs(values: Vec<core::CidrRange>, field: &str) -> Result<Vec<Cidr>> {
    each(values, field, cidr)
}

pub(crate) fn fraction(value: types::FractionalPercent) -> Result<Fraction> {
    use types::fractional_percent::DenominatorType;
    let denominator = match DenominatorType::try_from(value.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(Invalid::field("denominator", format!("{} is not known", value.denominator))),
    };
    Ok(Fraction { numerator: value.numerator, denominator })
}

/// A fraction that a runtime key could override; there are no such keys here, so the default holds.
/// Envoy takes a missing default as 0 for routes.
pub(crate) fn runtime_fraction(value: core::RuntimeFractionalPercent) -> Result<Fraction> {
    let core::RuntimeFractionalPercent { default_value, runtime_key } = value;
    harmless!(runtime_key);
    default_value.map_or(Ok(Fraction::NONE), |v| fraction(v).within("default_value"))
}

/// What a runtime key could override; there are no such keys here, so the default holds: the flag's, or that of its field.
pub(crate) fn runtime_flag(value: Option<core::RuntimeFeatureFlag>, default: bool) -> bool {
    let core::RuntimeFeatureFlag { default_value, runtime_key } = value.unwrap_or_default();
    harmless!(runtime_key);
    default_value.unwrap_or(default)
}

pub(crate) fn percent(value: types::Percent) -> Result<f64> {
    if value.value.is_finite() && (0.0..=100.0).contains(&value.value) {
        Ok(value.value)
    } else {
        Err(Invalid::new(format!("{} is not between 0 and 100", value.value)))
    }
}

/// A share of requests given in percent, in millionths.
pub(crate) fn percent_fraction(value: types::Percent) -> Result<Fraction> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let numerator = (percent(value)? * 10_000.0).round() as u32;
    Ok(Fraction { numerator, denominator: 1_000_000 })
}

/// Bytes given inline, in a file or in an environment variable.
pub(crate) fn data(source: core::DataSource) -> Result<Vec<u8>> {
    let core::DataSource { watched_directory, specifier } = source;
    // Files are watched anyway.
    harmless!(watched_directory);
    match specifier {
        Some(data_source::Specifier::InlineBytes(bytes)) => Ok(bytes.to_vec()),
        Some(data_source::Specifier::InlineString(text)) => Ok(text.into_bytes()),
        Some(data_source::Specifier::Filename(name)) => read_file(Path::new(&name)).within("filename"),
        Some(data_source::Specifier::EnvironmentVariable(name)) => match std::env::var(&name) {
            Ok(text) => Ok(text.into_bytes()),
            Err(_) => Err(Invalid::field("environment_variable", format!("`{name}` is not set"))),
        },
        None => Err(Invalid::new("is empty; give filename, inline_bytes, inline_string or environment_variable")),
    }
}

pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    read_stamped(path).1
}

/// [`read_file`], and how the file was then ([`bounded_file::read_stamped`]).
pub(crate) fn read_stamped(path: &Path) -> (FileStamp, Result<Vec<u8>>) {
    let (stamp, content) = bounded_file::read_stamped(path, MAX_FILE_BYTES);
    (stamp, content.map_err(|cause| Invalid::new(format!("`{}` cannot be read: {cause}", path.display()))))
}

/// Opens the typed configuration of an extension.
pub(crate) fn open<M: Message + Name + Default + Send>(config: &Any) -> Result<M> {
    any::open_apart(config).map_err(|e| Invalid::field("typed_config", e.to_string()))
}

/// Options of TCP sockets; they are set before the socket is bound.
pub(crate) fn socket_options(options: Vec<core::SocketOption>, field: &str) -> Result<Vec<SocketOption>> {
    let all: Result<Vec<_>> = options.into_iter().enumerate().map(|(i, o)| socket_option(o).within_item(field, i)).collect();
    Ok(all?.into_iter().flatten().collect())
}

/// `None` for an option of datagram sockets.
fn socket_option(option: core::SocketOption) -> Result<Option<SocketOption>> {
    let core::SocketOption { description, level, name, state, r#type, ip_version, value } = option;
    harmless!(description, state);
    let socket_option::SocketType { stream, datagram } = r#type.unwrap_or_default();
    if stream.is_none() && datagram.is_some() {
        return Ok(None);
    }
    let number = |n: i64, field: &str| i32::try_from(n).map_err(|_| Invalid::field(field, format!("{n} is too large")));
    let value = match value {
        Some(socket_option::Value::IntValue(value)) => OptionValue::Number(number(value, "int_value")?),
        Some(socket_option::Value::BufValue(bytes)) => OptionValue::Bytes(bytes.to_vec().into()),
        None => return Err(Invalid::new("has no value; give int_value or buf_value")),
    };
    let only_v4 = match socket_option::SocketIpVersion::try_from(ip_version) {
        Ok(socket_option::SocketIpVersion::Unspecified) => None,
        Ok(socket_option::SocketIpVersion::Ipv4) => Some(true),
        Ok(socket_option::SocketIpVersion::Ipv6) => Some(false),
        Err(_) => return Err(Invalid::field("ip_version", format!("{ip_version} is not known"))),
    };
    Ok(Some(SocketOption { level: number(level, "level")?, name: number(name, "name")?, value, only_v4 }))
}

/// The value of a text key inside `filter_metadata[namespace]`.
pub(crate) fn metadata_text(metadata: Option<&core::Metadata>, namespace: &str, key: &str) -> Option<String> {
    let core::Metadata { filter_metadata, typed_filter_metadata } = metadata?;
    // Extensions of Envoy's read the typed form, and none of those there are.
    harmless!(typed_filter_metadata);
    match filter_metadata.get(namespace)?.fields.get(key)?.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// A protobuf struct as JSON.
pub(crate) fn struct_json(value: &prost_types::Struct) -> serde_json::Value {
    serde_json::Value::Object(value.fields.iter().map(|(k, v)| (k.clone(), value_json(v))).collect())
}

pub(crate) fn value_json(value: &prost_types::Value) -> serde_json::Value {
    use prost_types::value::Kind;
    use serde_json::Value;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(n)) => serde_json::Number::from_f64(*n).map_or(Value::Null, Value::Number),
        Some(Kind::StringValue(s)) => Value::String(s.clone()),
        Some(Kind::BoolValue(b)) => Value::Bool(*b),
        Some(Kind::StructValue(s)) => struct_json(s),
        Some(Kind::ListValue(l)) => Value::Array(l.values.iter().map(value_json).collect()),
    }
}
