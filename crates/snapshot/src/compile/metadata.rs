//! Matchers of dynamic metadata, and the filter that makes metadata of headers.
use std::sync::Arc;

use lateen_proto::envoy::extensions::filters::http::header_to_metadata::v3::{self as proto, config};
use lateen_proto::envoy::r#type::matcher::v3::{
    self as matcher, double_matcher, list_matcher, metadata_matcher::path_segment, value_matcher::MatchPattern,
};
use lateen_proto::envoy::r#type::metadata::v3::{MetadataKey, metadata_key};

use super::invalid::{Invalid, Result, Within, refuse};
use super::matcher::{header_name, string, substitution};
use crate::header_metadata::{HeaderToMetadata, Kind, MetadataRule, Source, Target, Value};
use crate::metadata::{MetadataMatcher, MetadataValue};

/// The namespace of this filter's values unless another is named.
const NAMESPACE: &str = "envoy.filters.http.header_to_metadata";

/// Matchers nested deeper are refused: they are walked recursively.
const MAX_DEPTH: u32 = 16;

pub(crate) fn matcher(value: matcher::MetadataMatcher) -> Result<MetadataMatcher> {
    let matcher::MetadataMatcher { filter, path, value, invert } = value;
    if filter.is_empty() {
        return Err(Invalid::field("filter", "is empty"));
    }
    if path.is_empty() {
        return Err(Invalid::field("path", "is empty"));
    }
    let segment = |(index, s): (usize, matcher::metadata_matcher::PathSegment)| match s.segment {
        Some(path_segment::Segment::Key(key)) if !key.is_empty() => Ok(key.into()),
        _ => Err(Invalid::new("has no key")).within_item("path", index),
    };
    let value = value.ok_or_else(|| Invalid::new("is missing")).and_then(|v| value_matcher(v, 0)).within("value")?;
    Ok(MetadataMatcher { namespace: filter.into(), path: path.into_iter().enumerate().map(segment).collect::<Result<_>>()?, value, invert })
}

/// Where a value is: the namespace, and the keys that lead to it.
pub(crate) fn key(value: MetadataKey) -> Result<(Arc<str>, Vec<Box<str>>)> {
    let MetadataKey { key, path } = value;
    if key.is_empty() || path.is_empty() {
        return Err(Invalid::new("needs a key and a path"));
    }
    let segment = |(index, s): (usize, metadata_key::PathSegment)| match s.segment {
        Some(metadata_key::path_segment::Segment::Key(key)) if !key.is_empty() => Ok(key.into()),
        _ => Err(Invalid::new("has no key")).within_item("path", index),
    };
    Ok((key.into(), path.into_iter().enumerate().map(segment).collect::<Result<_>>()?))
}

fn value_matcher(value: matcher::ValueMatcher, depth: u32) -> Result<MetadataValue> {
    if depth > MAX_DEPTH {
        return Err(Invalid::new(format!("is nested more than {MAX_DEPTH} deep")));
    }
    Ok(match value.match_pattern {
        Some(MatchPattern::NullMatch(_)) => MetadataValue::Null,
        Some(MatchPattern::DoubleMatch(d)) => match d.match_pattern {
            Some(double_matcher::MatchPattern::Exact(n)) => MetadataValue::Double(n),
            Some(double_matcher::MatchPattern::Range(r)) => MetadataValue::DoubleRange(r.start, r.end),
            None => return Err(Invalid::field("double_match", "has no pattern")),
        },
        Some(MatchPattern::StringMatch(s)) => MetadataValue::String(string(s).within("string_match")?),
        Some(MatchPattern::BoolMatch(b)) => MetadataValue::Bool(b),
        Some(MatchPattern::PresentMatch(true)) => MetadataValue::Present,
        Some(MatchPattern::PresentMatch(false)) => return Err(Invalid::field("present_match", "must be true; use invert")),
        Some(MatchPattern::ListMatch(list)) => match list.match_pattern {
            Some(list_matcher::MatchPattern::OneOf(one)) => {
                MetadataValue::OneOf(Box::new(value_matcher(*one, depth + 1).within("list_match.one_of")?))
            }
            None => return Err(Invalid::field("list_match", "has no one_of")),
        },
        Some(MatchPattern::OrMatch(or)) => {
            let item = |(i, m)| value_matcher(m, depth + 1).within_item("or_match.value_matchers", i);
            MetadataValue::Any(or.value_matchers.into_iter().enumerate().map(item).collect::<Result<_>>()?)
        }
        None => return Err(Invalid::new("has no pattern")),
    })
}

/// The filter, listener-wide or for a route.
pub(crate) fn filter(value: proto::Config) -> Result<HeaderToMetadata> {
    let proto::Config { request_rules, response_rules, stat_prefix } = value;
    // The prefix switches on statistics that are not kept.
    refuse!(stat_prefix);
    let rules = |values: Vec<config::Rule>, field: &str, response| {
        values.into_iter().enumerate().map(|(i, r)| rule(r, response).within_item(field, i)).collect::<Result<_>>()
    };
    Ok(HeaderToMetadata {
        request: rules(request_rules, "request_rules", false)?,
        response: rules(response_rules, "response_rules", true)?,
    })
}

fn rule(value: config::Rule, response: bool) -> Result<MetadataRule> {
    let config::Rule { header, cookie, on_header_present, on_header_missing, remove } = value;
    let source = match (header.is_empty(), cookie.is_empty()) {
        (false, true) if header.eq_ignore_ascii_case("content-length") => match remove {
            true => return Err(Invalid::field("remove", "is not for content-length, which says where the body ends")),
            false => Source::ContentLength,
        },
        (false, true) => Source::Header(header_name(&header).within("header")?),
        (true, false) if response => return Err(Invalid::field("cookie", "is not for responses")),
        (true, false) if remove => return Err(Invalid::field("remove", "is not for cookies")),
        (true, false) => Source::Cookie(cookie.into()),
        _ => return Err(Invalid::new("needs either a header or a cookie")),
    };
    let present = on_header_present.map(|pair| target(pair, true)).transpose().within("on_header_present")?;
    let missing = on_header_missing.map(|pair| target(pair, false)).transpose().within("on_header_missing")?;
    if present.is_none() && missing.is_none() {
        return Err(Invalid::new("needs on_header_present or on_header_missing"));
    }
    if missing.as_ref().is_some_and(|t| !matches!(t.value, Value::Fixed(_))) {
        return Err(Invalid::field("on_header_missing.value", "is empty"));
    }
    Ok(MetadataRule { source, present, missing, remove })
}

fn target(value: config::KeyValuePair, may_take: bool) -> Result<Target> {
    let config::KeyValuePair { metadata_namespace, key, value, regex_value_rewrite, r#type, encode } = value;
    if key.is_empty() {
        return Err(Invalid::field("key", "is empty"));
    }
    let kind = match config::ValueType::try_from(r#type) {
        Ok(config::ValueType::String) => Kind::Text,
        Ok(config::ValueType::Number) => Kind::Number,
        Ok(config::ValueType::ProtobufValue) => Kind::Protobuf,
        Err(_) => return Err(Invalid::field("type", format!("{} is not known", r#type))),
    };
    let base64 = match config::ValueEncode::try_from(encode) {
        Ok(config::ValueEncode::None) => false,
        Ok(config::ValueEncode::Base64) => true,
        Err(_) => return Err(Invalid::field("encode", format!("{encode} is not known"))),
    };
    let value = match (value.is_empty(), regex_value_rewrite) {
        (true, None) => Value::Taken,
        (false, None) => Value::Fixed(value.into()),
        (true, Some(rewrite)) if may_take => {
            let (pattern, text) = substitution(rewrite).within("regex_value_rewrite")?;
            Value::Rewritten(pattern, text)
        }
        _ => return Err(Invalid::field("regex_value_rewrite", "cannot stand beside a value, or where there is no header")),
    };
    let namespace: Arc<str> = if metadata_namespace.is_empty() { NAMESPACE.into() } else { metadata_namespace.into() };
    Ok(Target { namespace, key: key.into(), value, kind, base64 })
}
