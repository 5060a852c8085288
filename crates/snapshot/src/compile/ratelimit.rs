//! `rate_limits` of routes and virtual hosts: how requests become descriptors.
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::route::v3::{
    self as proto,
    rate_limit::{Action, HitsAddend, action, action::ActionSpecifier as Spec},
};
use lateen_proto::envoy::r#type::matcher::v3::AddressMatcher;
use lateen_proto::envoy::r#type::metadata::v3::{MetadataKey, metadata_key};
use lateen_proto::xds::core::v3::CidrRange;
use lateen_telemetry::access_log::TextFormat;

use super::common::cidr;
use super::invalid::{Invalid, Result, Within, each, harmless, refuse};
use super::matcher::{headers, queries};
use crate::ratelimit::{DescriptorAction, HitCount, Hits, RateLimit};

/// Those of routes and virtual hosts, which any filter may count.
pub(crate) fn limits(values: Vec<proto::RateLimit>, field: &str) -> Result<Vec<RateLimit>> {
    each(values, field, |value| match value.hits_addend {
        None => limit(value),
        // Envoy looks at it in a filter's own limits only.
        Some(_) => Err(Invalid::field("hits_addend", "has an effect only in the `rate_limits` of a filter's own configuration")),
    })
}

/// Those of a filter.
pub(crate) fn of_filter(values: Vec<proto::RateLimit>, field: &str) -> Result<Vec<RateLimit>> {
    each(values, field, limit)
}

fn limit(value: proto::RateLimit) -> Result<RateLimit> {
    let proto::RateLimit { stage, disable_key, actions, limit, hits_addend, apply_on_stream_done, x_ratelimit_option } = value;
    // A runtime flag: there are none.
    harmless!(disable_key);
    refuse!(limit, apply_on_stream_done, x_ratelimit_option);
    if actions.is_empty() {
        return Err(Invalid::field("actions", "is empty"));
    }
    let actions = each(actions, "actions", action)?;
    let hits = hits_addend.map(hits).transpose().within("hits_addend")?;
    Ok(RateLimit { stage: self::stage(stage.unwrap_or(0))?, actions, hits })
}

fn hits(value: HitsAddend) -> Result<crate::ratelimit::HitsAddend> {
    let HitsAddend { number, format, is_negative_hits } = value;
    let count = match (number, format) {
        (Some(number @ ..=Hits::MOST), format) if format.is_empty() => HitCount::Number(number),
        (Some(number), format) if format.is_empty() => {
            return Err(Invalid::field("number", format!("{number} is more than {}", Hits::MOST)));
        }
        (None, format) if !format.is_empty() => {
            let compiled = TextFormat::compile(&format).map_err(|e| Invalid::field("format", e.to_string()))?;
            if !compiled.is_one_operator() {
                return Err(Invalid::field("format", "is not one operator and nothing else"));
            }
            HitCount::Format(format.into())
        }
        _ => return Err(Invalid::new("needs either a number or a format")),
    };
    Ok(crate::ratelimit::HitsAddend { count, negative: is_negative_hits })
}

pub(crate) fn stage(value: u32) -> Result<u32> {
    if value > 10 { Err(Invalid::field("stage", format!("{value} is more than 10"))) } else { Ok(value) }
}

fn action(value: Action) -> Result<DescriptorAction> {
    Ok(match value.action_specifier {
        Some(Spec::DestinationCluster(action::DestinationCluster {})) => DescriptorAction::DestinationCluster,
        Some(Spec::RemoteAddress(action::RemoteAddress {})) => DescriptorAction::RemoteAddress,
        Some(Spec::RequestHeaders(h)) => request_headers(h).within("request_headers")?,
        Some(Spec::QueryParameters(q)) => query_parameters(q).within("query_parameters")?,
        Some(Spec::MaskedRemoteAddress(m)) => masked(&m).within("masked_remote_address")?,
        Some(Spec::GenericKey(g)) => generic_key(g).within("generic_key")?,
        Some(Spec::HeaderValueMatch(h)) => header_value_match(h).within("header_value_match")?,
        Some(Spec::QueryParameterValueMatch(q)) => query_value_match(q).within("query_parameter_value_match")?,
        Some(Spec::SourceCluster(action::SourceCluster {})) => DescriptorAction::SourceCluster,
        Some(Spec::Metadata(m)) => metadata(m).within("metadata")?,
        Some(Spec::DynamicMetadata(m)) => dynamic_metadata(m).within("dynamic_metadata")?,
        Some(Spec::Extension(_)) => return Err(Invalid::unsupported("extension")),
        Some(Spec::RemoteAddressMatch(m)) => remote_address_match(m).within("remote_address_match")?,
        None => return Err(Invalid::new("has no action")),
    })
}

fn request_headers(value: action::RequestHeaders) -> Result<DescriptorAction> {
    let action::RequestHeaders { header_name, descriptor_key, skip_if_absent } = value;
    let name = super::matcher::key(&header_name).within("header_name")?;
    Ok(DescriptorAction::RequestHeader { name, key: key(descriptor_key)?, skip_if_absent })
}

fn query_parameters(value: action::QueryParameters) -> Result<DescriptorAction> {
    let action::QueryParameters { query_parameter_name, descriptor_key, skip_if_absent } = value;
    Ok(DescriptorAction::QueryParameter { name: query_parameter_name.into(), key: key(descriptor_key)?, skip_if_absent })
}

/// Only what filters wrote is at hand; what routes and clusters carry for others is not kept.
fn metadata(value: action::MetaData) -> Result<DescriptorAction> {
    let action::MetaData { descriptor_key, metadata_key, default_value, source, skip_if_absent } = value;
    if source != action::meta_data::Source::Dynamic as i32 {
        return Err(Invalid::field("source", "only DYNAMIC is supported"));
    }
    let MetadataKey { key: namespace, path } = metadata_key.ok_or_else(|| Invalid::field("metadata_key", "is missing"))?;
    let segment = |(index, s): (usize, metadata_key::PathSegment)| match s.segment {
        Some(metadata_key::path_segment::Segment::Key(key)) => Ok(key.into()),
        Some(metadata_key::path_segment::Segment::Index(_)) => Err(Invalid::unsupported("index")).within_item("metadata_key.path", index),
        None => Err(Invalid::new("has no key")).within_item("metadata_key.path", index),
    };
    Ok(DescriptorAction::Metadata {
        key: key(descriptor_key)?,
        namespace: namespace.into(),
        path: path.into_iter().enumerate().map(segment).collect::<Result<_>>()?,
        default: default_value.into(),
        skip_if_absent,
    })
}

/// The older form of [`metadata`].
fn dynamic_metadata(value: action::DynamicMetaData) -> Result<DescriptorAction> {
    let action::DynamicMetaData { descriptor_key, metadata_key, default_value } = value;
    let source = action::meta_data::Source::Dynamic as i32;
    metadata(action::MetaData { descriptor_key, metadata_key, default_value, source, skip_if_absent: false })
}

fn remote_address_match(value: action::RemoteAddressMatch) -> Result<DescriptorAction> {
    let action::RemoteAddressMatch { descriptor_value, descriptor_key, default_value, address_matcher } = value;
    harmless!(default_value);
    let AddressMatcher { ranges, invert_match } = address_matcher.ok_or_else(|| Invalid::field("address_matcher", "is missing"))?;
    let range = |CidrRange { address_prefix, prefix_len }| cidr(core::CidrRange { address_prefix, prefix_len });
    Ok(DescriptorAction::RemoteAddressMatch {
        key: key_or(descriptor_key, "remote_address_match"),
        value: text(descriptor_value)?,
        ranges: each(ranges, "address_matcher.ranges", range)?,
        invert: invert_match,
    })
}

fn masked(value: &action::MaskedRemoteAddress) -> Result<DescriptorAction> {
    let action::MaskedRemoteAddress { v4_prefix_mask_len, v6_prefix_mask_len } = value;
    let bits = |value: &Option<u32>, most: u8, field: &str| match u8::try_from(value.unwrap_or(u32::from(most))) {
        Ok(bits) if bits <= most => Ok(bits),
        _ => Err(Invalid::field(field, format!("is more than {most}"))),
    };
    Ok(DescriptorAction::MaskedRemoteAddress {
        v4: bits(v4_prefix_mask_len, 32, "v4_prefix_mask_len")?,
        v6: bits(v6_prefix_mask_len, 128, "v6_prefix_mask_len")?,
    })
}

fn generic_key(value: action::GenericKey) -> Result<DescriptorAction> {
    let action::GenericKey { descriptor_value, default_value, descriptor_key } = value;
    harmless!(default_value);
    Ok(DescriptorAction::GenericKey { key: key_or(descriptor_key, "generic_key"), value: text(descriptor_value)? })
}

fn header_value_match(value: action::HeaderValueMatch) -> Result<DescriptorAction> {
    let action::HeaderValueMatch { descriptor_value, default_value, descriptor_key, expect_match, headers: matchers } = value;
    harmless!(default_value);
    Ok(DescriptorAction::HeaderValueMatch {
        key: key_or(descriptor_key, "header_match"),
        value: text(descriptor_value)?,
        headers: headers(matchers, "headers")?,
        expect: expect_match.unwrap_or(true),
    })
}

fn query_value_match(value: action::QueryParameterValueMatch) -> Result<DescriptorAction> {
    let action::QueryParameterValueMatch { descriptor_value, default_value, descriptor_key, expect_match, query_parameters } = value;
    harmless!(default_value);
    Ok(DescriptorAction::QueryValueMatch {
        key: key_or(descriptor_key, "query_match"),
        value: text(descriptor_value)?,
        parameters: queries(query_parameters, "query_parameters")?,
        expect: expect_match.unwrap_or(true),
    })
}

fn key(value: String) -> Result<Box<str>> {
    if value.is_empty() { Err(Invalid::field("descriptor_key", "is empty")) } else { Ok(value.into()) }
}

fn key_or(value: String, default: &str) -> Box<str> {
    if value.is_empty() { default.into() } else { value.into() }
}

/// A fixed value; Envoy substitutes `%OPERATORS%` in it, which we do not.
fn text(value: String) -> Result<Box<str>> {
    match value.as_str() {
        "" => Err(Invalid::field("descriptor_value", "is empty")),
        v if v.contains('%') => Err(Invalid::field("descriptor_value", "substitution is not supported; use a fixed text without `%`")),
        _ => Ok(value.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_how_much_a_request_counts_is_said_in_one_way_and_to_a_filter() {
        let limit =
            |hits: &str| vec![crate::test_support::message(&format!("{{actions: [{{source_cluster: {{}}}}], hits_addend: {hits}}}"))];
        for taken in ["{number: 0}", "{number: 1000000000, is_negative_hits: true}", "{format: '%REQ(x)%'}"] {
            assert!(of_filter(limit(taken), "l").is_ok(), "{taken}");
            let why = limits(limit(taken), "l").unwrap_err().to_string();
            assert_eq!(why, "l[0].hits_addend: has an effect only in the `rate_limits` of a filter's own configuration");
        }
        for refused in ["{}", "{number: 1, format: '%REQ(x)%'}", "{number: 1000000001}", "{format: '7'}", "{format: '%REQ(x)%%REQ(y)%'}"] {
            let why = of_filter(limit(refused), "l").unwrap_err().to_string();
            assert!(why.starts_with("l[0].hits_addend"), "{refused}: {why}");
        }
    }
}
