//! String, header and query matchers, and regular expressions that must match whole values.
use http::HeaderName;
use lateen_proto::envoy::config::route::v3::{self as route, header_matcher, query_parameter_matcher};
use lateen_proto::envoy::r#type::matcher::v3::{self as proto, string_matcher};
use regex::{Regex, RegexBuilder};

use super::invalid::{Invalid, Result, Within, each, harmless};
use crate::matcher::{CookieMatcher, HeaderKey, HeaderMatcher, HeaderPredicate, QueryMatcher, QueryValue, StringMatcher};

/// A compiled expression may take this much memory: enough for real ones, too little to hurt.
const MAX_REGEX_BYTES: usize = 1 << 20;

pub(crate) fn string(value: proto::StringMatcher) -> Result<StringMatcher> {
    use string_matcher::MatchPattern;
    let proto::StringMatcher { ignore_case, match_pattern } = value;
    let text = |t: String| if ignore_case { t.to_ascii_lowercase() } else { t }.into_boxed_str();
    Ok(match match_pattern {
        Some(MatchPattern::Exact(t)) => StringMatcher::Exact { text: text(t), ignore_case },
        Some(MatchPattern::Prefix(t)) => StringMatcher::Prefix { text: text(t), ignore_case },
        Some(MatchPattern::Suffix(t)) => StringMatcher::Suffix { text: text(t), ignore_case },
        Some(MatchPattern::Contains(t)) => StringMatcher::Contains { text: text(t), ignore_case },
        Some(MatchPattern::SafeRegex(r)) => StringMatcher::Regex(whole(r).within("safe_regex")?),
        Some(MatchPattern::Custom(_)) => return Err(Invalid::unsupported("custom")),
        None => return Err(Invalid::new("has no pattern; give exact, prefix, suffix, contains or safe_regex")),
    })
}

pub(crate) fn strings(values: Vec<proto::StringMatcher>, field: &str) -> Result<Vec<StringMatcher>> {
    each(values, field, string)
}

/// An expression that must match the whole value.
pub(crate) fn whole(value: proto::RegexMatcher) -> Result<Regex> {
    let proto::RegexMatcher { regex, engine_type } = value;
    // RE2 is the only engine there is, and its program size limit has an equivalent here.
    harmless!(engine_type);
    self::regex(&regex)
}

/// [`whole`] of the bare text.
pub(crate) fn regex(text: &str) -> Result<Regex> {
    compile(&format!(r"\A(?:{text})\z"), text)
}

/// An expression that is searched for.
pub(crate) fn search(value: Option<proto::RegexMatcher>) -> Result<Regex> {
    let proto::RegexMatcher { regex, engine_type } = value.ok_or_else(|| Invalid::new("is missing; give a regex"))?;
    harmless!(engine_type);
    compile(&regex, &regex)
}

fn compile(pattern: &str, shown: &str) -> Result<Regex> {
    if shown.is_empty() {
        return Err(Invalid::field("regex", "is empty"));
    }
    RegexBuilder::new(pattern).size_limit(MAX_REGEX_BYTES).build().map_err(|e| {
        let cause = match e {
            regex::Error::CompiledTooBig(_) => "is too large; simplify it".to_owned(),
            other => other.to_string().lines().last().unwrap_or_default().trim().to_owned(),
        };
        Invalid::field("regex", format!("`{shown}`: {cause}"))
    })
}

/// An expression with its replacement, RE2's `\1` written as this library's `${1}`.
pub(crate) fn substitution(value: proto::RegexMatchAndSubstitute) -> Result<(Regex, Box<str>)> {
    let proto::RegexMatchAndSubstitute { pattern, substitution } = value;
    let pattern = search(pattern).within("pattern")?;
    let mut out = String::with_capacity(substitution.len());
    let mut chars = substitution.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = digit.to_digit(10).unwrap_or(0) as usize;
                    if group >= pattern.captures_len() {
                        return Err(Invalid::field(
                            "substitution",
                            format!("names group {group}, but the pattern has {}", pattern.captures_len() - 1),
                        ));
                    }
                    out.push_str(&format!("${{{group}}}"));
                }
                _ => return Err(Invalid::field("substitution", r"a backslash must be followed by a digit or a backslash")),
            },
            other => out.push(other),
        }
    }
    Ok((pattern, out.into_boxed_str()))
}

pub(crate) fn headers(values: Vec<route::HeaderMatcher>, field: &str) -> Result<Vec<HeaderMatcher>> {
    each(values, field, header)
}

pub(crate) fn header(value: route::HeaderMatcher) -> Result<HeaderMatcher> {
    use header_matcher::HeaderMatchSpecifier as Spec;
    let route::HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } = value;
    let text = |t: String| HeaderPredicate::String(StringMatcher::Exact { text: t.into_boxed_str(), ignore_case: false });
    let predicate = match header_match_specifier {
        None => HeaderPredicate::Present(true),
        Some(Spec::PresentMatch(present)) => HeaderPredicate::Present(present),
        Some(Spec::ExactMatch(t)) => text(t),
        Some(Spec::PrefixMatch(t)) => HeaderPredicate::String(StringMatcher::Prefix { text: t.into(), ignore_case: false }),
        Some(Spec::SuffixMatch(t)) => HeaderPredicate::String(StringMatcher::Suffix { text: t.into(), ignore_case: false }),
        Some(Spec::ContainsMatch(t)) => HeaderPredicate::String(StringMatcher::Contains { text: t.into(), ignore_case: false }),
        Some(Spec::SafeRegexMatch(r)) => HeaderPredicate::String(StringMatcher::Regex(whole(r).within("safe_regex_match")?)),
        Some(Spec::StringMatch(s)) => HeaderPredicate::String(string(s).within("string_match")?),
        Some(Spec::RangeMatch(r)) => HeaderPredicate::Range { start: r.start, end: r.end },
    };
    Ok(HeaderMatcher { name: key(&name).within("name")?, predicate, invert: invert_match, missing_as_empty: treat_missing_header_as_empty })
}

pub(crate) fn key(name: &str) -> Result<HeaderKey> {
    Ok(match name {
        ":method" => HeaderKey::Method,
        ":path" => HeaderKey::Path,
        ":authority" => HeaderKey::Authority,
        ":scheme" => HeaderKey::Scheme,
        _ if name.eq_ignore_ascii_case("host") => HeaderKey::Authority,
        _ if name.eq_ignore_ascii_case("content-length") => HeaderKey::ContentLength,
        _ => HeaderKey::Name(header_name(name)?),
    })
}

pub(crate) fn header_name(name: &str) -> Result<HeaderName> {
    HeaderName::try_from(name).map_err(|_| Invalid::new(format!("`{name}` is not a header name")))
}

pub(crate) fn queries(values: Vec<route::QueryParameterMatcher>, field: &str) -> Result<Vec<QueryMatcher>> {
    each(values, field, query)
}

fn query(value: route::QueryParameterMatcher) -> Result<QueryMatcher> {
    use query_parameter_matcher::QueryParameterMatchSpecifier as Spec;
    let route::QueryParameterMatcher { name, query_parameter_match_specifier } = value;
    let value = match query_parameter_match_specifier {
        None | Some(Spec::PresentMatch(true)) => QueryValue::Present,
        Some(Spec::PresentMatch(false)) => QueryValue::Absent,
        Some(Spec::StringMatch(s)) => QueryValue::Matches(string(s).within("string_match")?),
    };
    Ok(QueryMatcher { name: name.into(), value })
}

pub(crate) fn cookies(values: Vec<route::CookieMatcher>, field: &str) -> Result<Vec<CookieMatcher>> {
    values.into_iter().enumerate().map(|(i, v)| cookie(v).within_item(field, i)).collect()
}

fn cookie(value: route::CookieMatcher) -> Result<CookieMatcher> {
    let route::CookieMatcher { name, string_match, invert_match } = value;
    let value = string_match.ok_or_else(|| Invalid::new("is missing")).and_then(string).within("string_match")?;
    Ok(CookieMatcher { name: name.into(), value, invert: invert_match })
}
