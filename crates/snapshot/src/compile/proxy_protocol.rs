//! The PROXY protocol: what a listener takes, what goes to hosts, and what a TCP proxy adds.
use lateen_proto::envoy::config::core::v3::{self as core, proxy_protocol_config::Version};
use lateen_proto::envoy::extensions::filters::listener::proxy_protocol::v3 as filter;

use super::invalid::{Invalid, Result, Within, harmless, refuse};
use crate::proxy_protocol::{MoreTlvs, PassThrough, ProxyProtocol, ProxyProtocolFilter, ProxyProtocolVersion, Tlv, TlvMerge, TlvRule};

/// Added values may have this many bytes together, so that there is room for addresses and for the caller's.
const MOST_BYTES: usize = 32 * 1024;

/// Where Envoy keeps values of which the rule names no place.
const NAMESPACE: &str = "envoy.filters.listener.proxy_protocol";

pub(crate) fn upstream(value: core::ProxyProtocolConfig) -> Result<ProxyProtocol> {
    let core::ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = value;
    let version = match Version::try_from(version) {
        Ok(Version::V1) => ProxyProtocolVersion::V1,
        Ok(Version::V2) => ProxyProtocolVersion::V2,
        Err(_) => return Err(Invalid::field("version", "is not known")),
    };
    let pass_through = pass_through_tlvs.map(pass_through).transpose().within("pass_through_tlvs")?.unwrap_or_default();
    let added = tlvs(added_tlvs, "added_tlvs")?;
    if version == ProxyProtocolVersion::V1 && !(added.is_empty() && pass_through == PassThrough::None) {
        return Err(Invalid::field("version", "V1 has no TLVs; use V2"));
    }
    Ok(ProxyProtocol { version, pass_through, added })
}

/// A header of addresses alone.
pub(crate) fn addresses(value: core::ProxyProtocolConfig) -> Result<ProxyProtocol> {
    let core::ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = value;
    refuse!(pass_through_tlvs, added_tlvs);
    upstream(core::ProxyProtocolConfig { version, ..Default::default() })
}

fn pass_through(value: core::ProxyProtocolPassThroughTlVs) -> Result<PassThrough> {
    use core::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType;
    let core::ProxyProtocolPassThroughTlVs { match_type, tlv_type } = value;
    match PassTlVsMatchType::try_from(match_type) {
        Ok(PassTlVsMatchType::IncludeAll) => Ok(PassThrough::All),
        Ok(PassTlVsMatchType::Include) => {
            let kinds = tlv_type.into_iter().enumerate().map(|(index, n)| kind(n).within_item("tlv_type", index));
            Ok(PassThrough::These(kinds.collect::<Result<_>>()?))
        }
        Err(_) => Err(Invalid::field("match_type", "is not known")),
    }
}

fn kind(number: u32) -> Result<u8> {
    u8::try_from(number).map_err(|_| Invalid::new(format!("{number} is more than 255")))
}

fn tlvs(values: Vec<core::TlvEntry>, field: &str) -> Result<Vec<Tlv>> {
    let one = |value| {
        let core::TlvEntry { r#type, value, format_string } = value;
        refuse!(format_string);
        Ok(Tlv { kind: kind(r#type).within("type")?, value })
    };
    let all: Vec<Tlv> = values.into_iter().enumerate().map(|(index, value)| one(value).within_item(field, index)).collect::<Result<_>>()?;
    if all.iter().map(|t| t.value.len() + 3).sum::<usize>() > MOST_BYTES {
        return Err(Invalid::field(field, format!("has more than {MOST_BYTES} bytes")));
    }
    Ok(all)
}

/// What a TCP proxy tells beside what the caller told.
pub(crate) fn more(values: Vec<core::TlvEntry>, policy: i32) -> Result<Option<MoreTlvs>> {
    use lateen_proto::envoy::extensions::filters::network::tcp_proxy::v3::ProxyProtocolTlvMergePolicy as Policy;
    let merge = match Policy::try_from(policy) {
        Ok(Policy::AddIfAbsent) => TlvMerge::AddIfAbsent,
        Ok(Policy::OverwriteByTypeIfExistsOrAdd) => TlvMerge::OverwriteByType,
        Ok(Policy::AppendIfExistsOrAdd) => TlvMerge::Append,
        Err(_) => return Err(Invalid::field("proxy_protocol_tlv_merge_policy", "is not known")),
    };
    let tlvs = tlvs(values, "proxy_protocol_tlvs")?;
    Ok((!tlvs.is_empty()).then_some(MoreTlvs { tlvs, merge }))
}

pub(crate) fn listener_filter(value: filter::ProxyProtocol) -> Result<ProxyProtocolFilter> {
    let filter::ProxyProtocol {
        rules,
        allow_requests_without_proxy_protocol,
        pass_through_tlvs,
        disallowed_versions,
        stat_prefix,
        tlv_location,
    } = value;
    harmless!(stat_prefix);
    if tlv_location != filter::proxy_protocol::TlvLocation::DynamicMetadata as i32 {
        return Err(Invalid::field("tlv_location", "only DYNAMIC_METADATA is supported"));
    }
    let refuses = |version: Version| disallowed_versions.contains(&(version as i32));
    Ok(ProxyProtocolFilter {
        optional: allow_requests_without_proxy_protocol,
        refuses_v1: refuses(Version::V1),
        refuses_v2: refuses(Version::V2),
        rules: rules.into_iter().enumerate().map(|(index, rule)| self::rule(rule).within_item("rules", index)).collect::<Result<_>>()?,
        pass_through: pass_through_tlvs.map(pass_through).transpose().within("pass_through_tlvs")?.unwrap_or_default(),
    })
}

fn rule(value: filter::proxy_protocol::Rule) -> Result<TlvRule> {
    use filter::proxy_protocol::key_value_pair::ValueStringEncoding as Encoding;
    let filter::proxy_protocol::Rule { tlv_type, on_tlv_present } = value;
    let pair = on_tlv_present.ok_or_else(|| Invalid::field("on_tlv_present", "is missing"))?;
    let filter::proxy_protocol::KeyValuePair { metadata_namespace, key, value_string_encoding } = pair;
    if key.is_empty() {
        return Err(Invalid::field("on_tlv_present.key", "is empty"));
    }
    let base64 = match Encoding::try_from(value_string_encoding) {
        Ok(Encoding::Unspecified | Encoding::SanitizedUtf8) => false,
        Ok(Encoding::Base64) => true,
        Err(_) => return Err(Invalid::field("on_tlv_present.value_string_encoding", "is not known")),
    };
    let namespace = if metadata_namespace.is_empty() { NAMESPACE.into() } else { metadata_namespace.into() };
    Ok(TlvRule { kind: kind(tlv_type).within("tlv_type")?, namespace, key: key.into(), base64 })
}
