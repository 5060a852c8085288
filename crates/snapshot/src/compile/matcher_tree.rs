//! Trees of matchers (`xds.type.matcher.v3.Matcher`), with what their inputs and actions are.
use std::collections::HashMap;

use lateen_proto::envoy::extensions::matching::common_inputs::{network::v3 as network, ssl::v3 as ssl};
use lateen_proto::envoy::extensions::matching::input_matchers::ip::v3::Ip;
use lateen_proto::envoy::r#type::matcher::v3::{self as own, HttpRequestHeaderMatchInput};
use lateen_proto::xds::core::v3::TypedExtensionConfig;
use lateen_proto::xds::r#type::matcher::v3::{self as proto, matcher, string_matcher};
use lateen_proto::{Any, any};
use matcher::matcher_list::{Predicate as PredicateProto, predicate};

use super::common::{cidrs, open};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::matcher::key;
use crate::matcher::StringMatcher;
use crate::matcher_tree::{Branch, Input, MatchTree, OnMatch, Predicate, Test};

/// Trees nested deeper than this are refused: evaluation recurses.
const MAX_DEPTH: u32 = 32;

/// Reads an action: its name and configuration.
pub(crate) type ReadAction<'a, A> = &'a dyn Fn(&str, &Any) -> Result<A>;

/// Reads what a tree looks at, likewise.
pub(crate) type ReadInput<'a, I> = &'a dyn Fn(&str, &Any) -> Result<I>;

/// How the leaves of a tree are read.
struct Leaves<'a, A, I> {
    input: ReadInput<'a, I>,
    action: ReadAction<'a, A>,
}

/// A tree that looks at a connection, of which no request is known.
pub(crate) fn connection_tree<A>(value: proto::Matcher, action: ReadAction<'_, A>) -> Result<MatchTree<A>> {
    let connection_input = |name: &str, config: &Any| connection_input(config).unwrap_or_else(|| Err(unknown(name, config, CONNECTION)));
    tree_of(value, &connection_input, action)
}

/// A tree that looks at a request or a connection.
pub(crate) fn tree<A>(value: proto::Matcher, action: ReadAction<'_, A>) -> Result<MatchTree<A>> {
    tree_of(value, &input, action)
}

pub(crate) fn tree_of<A, I>(value: proto::Matcher, input: ReadInput<'_, I>, action: ReadAction<'_, A>) -> Result<MatchTree<A, I>> {
    node(value, &Leaves { input, action }, 0)
}

fn node<A, I>(value: proto::Matcher, leaves: &Leaves<'_, A, I>, depth: u32) -> Result<MatchTree<A, I>> {
    if depth > MAX_DEPTH {
        return Err(Invalid::new(format!("is nested more than {MAX_DEPTH} deep; simplify it")));
    }
    let proto::Matcher { on_no_match, matcher_type } = value;
    let branch = match matcher_type {
        None => Branch::None,
        Some(matcher::MatcherType::MatcherList(list)) => Branch::List(
            list.matchers
                .into_iter()
                .enumerate()
                .map(|(i, field)| entry(field, leaves, depth).within_item("matcher_list.matchers", i))
                .collect::<Result<_>>()?,
        ),
        Some(matcher::MatcherType::MatcherTree(by_value)) => self::by_value(by_value, leaves, depth).within("matcher_tree")?,
    };
    let otherwise = on_no_match.map(|on| on_match(*on, leaves, depth)).transpose().within("on_no_match")?;
    Ok(MatchTree { branch, otherwise })
}

type Entry<A, I> = (Predicate<I>, OnMatch<A, I>);

fn entry<A, I>(value: matcher::matcher_list::FieldMatcher, leaves: &Leaves<'_, A, I>, depth: u32) -> Result<Entry<A, I>> {
    let matcher::matcher_list::FieldMatcher { predicate, on_match } = value;
    let predicate =
        predicate.ok_or_else(|| Invalid::new("is missing")).and_then(|p| self::predicate(p, leaves.input, depth)).within("predicate")?;
    let on = on_match.ok_or_else(|| Invalid::new("is missing")).and_then(|on| self::on_match(on, leaves, depth)).within("on_match")?;
    Ok((predicate, on))
}

fn on_match<A, I>(value: matcher::OnMatch, leaves: &Leaves<'_, A, I>, depth: u32) -> Result<OnMatch<A, I>> {
    let matcher::OnMatch { keep_matching, on_match } = value;
    refuse!(keep_matching);
    match on_match {
        Some(matcher::on_match::OnMatch::Matcher(inner)) => Ok(OnMatch::Tree(Box::new(node(*inner, leaves, depth + 1).within("matcher")?))),
        Some(matcher::on_match::OnMatch::Action(extension)) => {
            let (name, config) = opened(extension).within("action")?;
            (leaves.action)(&name, &config).within("action").map(OnMatch::Action)
        }
        None => Err(Invalid::new("has neither a matcher nor an action")),
    }
}

fn opened(value: TypedExtensionConfig) -> Result<(String, Any)> {
    let TypedExtensionConfig { name, typed_config } = value;
    let config = typed_config.ok_or_else(|| Invalid::field("typed_config", format!("is missing for {name}")))?;
    Ok((name, config))
}

fn predicate<I>(value: PredicateProto, input: ReadInput<'_, I>, depth: u32) -> Result<Predicate<I>> {
    use predicate::MatchType;
    if depth > MAX_DEPTH {
        return Err(Invalid::new(format!("is nested more than {MAX_DEPTH} deep; simplify it")));
    }
    let all = |list: predicate::PredicateList, field: &str| {
        list.predicate
            .into_iter()
            .enumerate()
            .map(|(i, p)| predicate(p, input, depth + 1).within_item(field, i))
            .collect::<Result<Vec<_>>>()
    };
    match value.match_type {
        Some(MatchType::SinglePredicate(single)) => self::single(single, input).within("single_predicate"),
        Some(MatchType::OrMatcher(list)) => Ok(Predicate::Or(all(list, "or_matcher.predicate")?)),
        Some(MatchType::AndMatcher(list)) => Ok(Predicate::And(all(list, "and_matcher.predicate")?)),
        Some(MatchType::NotMatcher(other)) => Ok(Predicate::Not(Box::new(predicate(*other, input, depth + 1).within("not_matcher")?))),
        None => Err(Invalid::new("matches nothing; give single_predicate, or_matcher, and_matcher or not_matcher")),
    }
}

fn single<I>(value: predicate::SinglePredicate, read: ReadInput<'_, I>) -> Result<Predicate<I>> {
    let predicate::SinglePredicate { input, matcher } = value;
    let input = looked_at(input, read).within("input")?;
    let test = match matcher {
        Some(predicate::single_predicate::Matcher::ValueMatch(text)) => Test::Text(string(text).within("value_match")?),
        Some(predicate::single_predicate::Matcher::CustomMatch(custom)) => self::custom(custom).within("custom_match")?,
        None => return Err(Invalid::new("has neither value_match nor custom_match")),
    };
    Ok(Predicate::One(input, test))
}

fn custom(value: TypedExtensionConfig) -> Result<Test> {
    let (name, config) = opened(value)?;
    if any::is::<Ip>(&config) {
        let Ip { cidr_ranges, stat_prefix } = open(&config)?;
        // It counts addresses that are none, and inputs here always are.
        harmless!(stat_prefix);
        return Ok(Test::Ip(cidrs(cidr_ranges, "typed_config.cidr_ranges")?));
    }
    Err(unknown(&name, &config, "the IP matcher"))
}

pub(crate) fn unknown(name: &str, config: &Any, known: &str) -> Invalid {
    Invalid::new(format!("{name} ({}) is not supported; {known} is", super::istio::type_name(config)))
}

fn looked_at<I>(value: Option<TypedExtensionConfig>, read: ReadInput<'_, I>) -> Result<I> {
    let (name, config) = opened(value.ok_or_else(|| Invalid::new("is missing"))?)?;
    read(&name, &config)
}

const CONNECTION: &str = "an address or port, a certificate's name or dynamic metadata";

fn input(name: &str, config: &Any) -> Result<Input> {
    if any::is::<HttpRequestHeaderMatchInput>(config) {
        let HttpRequestHeaderMatchInput { header_name } = open(config)?;
        return Ok(Input::Header(key(&header_name).within("typed_config.header_name")?));
    }
    connection_input(config).unwrap_or_else(|| Err(unknown(name, config, &format!("a request header, {CONNECTION}"))))
}

/// What is known of a connection; `None` for anything else.
fn connection_input(config: &Any) -> Option<Result<Input>> {
    let is = |this: bool, input: Input| this.then_some(Ok(input));
    if any::is::<network::DynamicMetadataInput>(config) {
        return Some(open(config).map(metadata));
    }
    is(any::is::<network::DestinationIpInput>(config), Input::DestinationIp)
        .or_else(|| is(any::is::<network::DestinationPortInput>(config), Input::DestinationPort))
        .or_else(|| is(any::is::<network::SourceIpInput>(config), Input::SourceIp))
        .or_else(|| is(any::is::<network::SourcePortInput>(config), Input::SourcePort))
        .or_else(|| is(any::is::<network::DirectSourceIpInput>(config), Input::DirectSourceIp))
        .or_else(|| is(any::is::<network::ServerNameInput>(config), Input::ServerName))
        .or_else(|| is(any::is::<ssl::UriSanInput>(config), Input::UriSan))
        .or_else(|| is(any::is::<ssl::DnsSanInput>(config), Input::DnsSan))
        .or_else(|| is(any::is::<ssl::SubjectInput>(config), Input::Subject))
}

fn metadata(value: network::DynamicMetadataInput) -> Input {
    use network::dynamic_metadata_input::{PathSegment, path_segment::Segment};
    let network::DynamicMetadataInput { filter, path } = value;
    Input::Metadata {
        namespace: filter.into(),
        path: path.into_iter().filter_map(|PathSegment { segment }| segment).map(|Segment::Key(k)| k.into()).collect(),
    }
}

fn by_value<A, I>(value: matcher::MatcherTree, leaves: &Leaves<'_, A, I>, depth: u32) -> Result<Branch<A, I>> {
    use matcher::matcher_tree::TreeType;
    let matcher::MatcherTree { input, tree_type } = value;
    let input = looked_at(input, leaves.input).within("input")?;
    let all = |map: HashMap<String, matcher::OnMatch>, field: &str| {
        // In the order of keys, so that the same configuration always gives the same error.
        let mut entries: Vec<_> = map.into_iter().collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries
            .into_iter()
            .map(|(key, on)| {
                let on = on_match(on, leaves, depth).within(&format!("{field}.map[\"{key}\"]"))?;
                Ok((key.into_boxed_str(), on))
            })
            .collect::<Result<Vec<_>>>()
    };
    match tree_type {
        Some(TreeType::ExactMatchMap(map)) => Ok(Branch::Exact(input, all(map.map, "exact_match_map")?.into_iter().collect())),
        Some(TreeType::PrefixMatchMap(map)) => {
            let mut entries = all(map.map, "prefix_match_map")?;
            entries.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
            Ok(Branch::Prefix(input, entries))
        }
        Some(TreeType::CustomMatch(_)) => Err(Invalid::unsupported("custom_match")),
        None => Err(Invalid::new("has no map; give exact_match_map or prefix_match_map")),
    }
}

/// The same message of another package.
fn string(value: proto::StringMatcher) -> Result<StringMatcher> {
    use own::string_matcher::MatchPattern as Own;
    use string_matcher::MatchPattern;
    let proto::StringMatcher { ignore_case, match_pattern } = value;
    let pattern = |pattern| {
        Ok(match pattern {
            MatchPattern::Exact(t) => Own::Exact(t),
            MatchPattern::Prefix(t) => Own::Prefix(t),
            MatchPattern::Suffix(t) => Own::Suffix(t),
            MatchPattern::Contains(t) => Own::Contains(t),
            MatchPattern::SafeRegex(proto::RegexMatcher { regex, engine_type }) => {
                harmless!(engine_type);
                Own::SafeRegex(own::RegexMatcher { regex, engine_type: None })
            }
            MatchPattern::Custom(_) => return Err(Invalid::unsupported("custom")),
        })
    };
    super::matcher::string(own::StringMatcher { ignore_case, match_pattern: match_pattern.map(pattern).transpose()? })
}
