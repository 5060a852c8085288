//! Role-based access control, for the HTTP and the network filter.
use std::cell::Cell;

use lateen_proto::envoy::config::rbac::v3::{self as proto, permission, principal, rbac};
use lateen_proto::envoy::r#type::matcher::v3::{self as matcher, path_matcher};
use lateen_proto::envoy::r#type::v3::Int32Range;
use lateen_proto::xds::r#type::matcher::v3::Matcher;
use lateen_proto::{Any, any};

use super::common::{cidr, open, port};
use super::invalid::{Invalid, Result, Within, each, harmless, refuse};
use super::matcher::{header, string};
use super::{matcher_tree, metadata, route};
use crate::matcher::{Permission, Principal, Rbac, RbacAction, RbacDecision, RbacPolicy, RbacRules, StringMatcher};
use crate::metadata::MetadataMatcher;

/// Rules nested deeper than this are refused: evaluation recurses, and no real policy comes near.
const MAX_DEPTH: u32 = 32;

/// What rules judge. A connection has no request that they could ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    Requests,
    Connections,
}

impl Judged {
    /// Refuses what asks about a request, in the field of this name, where there is none.
    fn request(self, field: &str) -> Result<()> {
        match self {
            Self::Requests => Ok(()),
            Self::Connections => Err(Invalid::field(field, "is not supported of a network filter; use the HTTP filter for it")),
        }
    }
}

/// What a filter is made of, HTTP or network.
pub(crate) struct Parts {
    pub(crate) judged: Judged,
    pub(crate) rules: Option<proto::Rbac>,
    pub(crate) matcher: Option<Matcher>,
    pub(crate) shadow_rules: Option<proto::Rbac>,
    pub(crate) shadow_matcher: Option<Matcher>,
    pub(crate) stat_prefix: String,
    pub(crate) shadow_stat_prefix: String,
    pub(crate) tracks_policies: bool,
}

/// A tree of matchers stands instead of rules.
pub(crate) fn filter(value: Parts) -> Result<Rbac> {
    let Parts { judged, rules, matcher, shadow_rules, shadow_matcher, stat_prefix, shadow_stat_prefix, tracks_policies } = value;
    Ok(Rbac {
        rules: match matcher {
            Some(matcher) => Some(tree(matcher, judged).within("matcher")?),
            None => rules.map(|r| self::rules(r, judged)).transpose().within("rules")?,
        },
        shadow: match shadow_matcher {
            Some(matcher) => Some(tree(matcher, judged).within("shadow_matcher")?),
            None => shadow_rules.map(|r| self::rules(r, judged)).transpose().within("shadow_rules")?,
        },
        stat_prefix: stat_prefix.into(),
        shadow_stat_prefix: shadow_stat_prefix.into(),
        tracks_policies,
    })
}

pub(crate) fn rules(value: proto::Rbac, judged: Judged) -> Result<RbacRules> {
    let proto::Rbac { action, policies, audit_logging_options } = value;
    refuse!(audit_logging_options);
    let action = self::action(action)?;
    let mut policies: Vec<_> = policies.into_iter().collect();
    // Evaluation in the order of names, as Envoy does, so that the policy named in logs is always the same.
    policies.sort_by(|(a, _), (b, _)| a.cmp(b));
    let policies =
        policies.into_iter().map(|(name, p)| policy(&name, p, judged).within(&format!("policies[\"{name}\"]"))).collect::<Result<_>>()?;
    Ok(RbacRules::Policies { action, policies })
}

fn action(value: i32) -> Result<RbacAction> {
    match rbac::Action::try_from(value) {
        Ok(rbac::Action::Allow) => Ok(RbacAction::Allow),
        Ok(rbac::Action::Deny) => Ok(RbacAction::Deny),
        Ok(rbac::Action::Log) => Ok(RbacAction::Log),
        Err(_) => Err(Invalid::field("action", format!("{value} is not known"))),
    }
}

pub(crate) fn tree(value: Matcher, judged: Judged) -> Result<RbacRules> {
    let logs = Cell::new(false);
    let decision = |name: &str, config: &Any| {
        if !any::is::<proto::Action>(config) {
            return Err(Invalid::new(format!("{name} ({}) is not an action of access control", super::istio::type_name(config))));
        }
        let proto::Action { name, action } = open(config)?;
        let action = self::action(action).within("typed_config")?;
        logs.set(logs.get() || action == RbacAction::Log);
        Ok(RbacDecision { name: name.into(), action })
    };
    let tree = match judged {
        Judged::Requests => matcher_tree::tree(value, &decision)?,
        Judged::Connections => matcher_tree::connection_tree(value, &decision)?,
    };
    Ok(RbacRules::Tree { tree, logs: logs.get() })
}

fn policy(name: &str, value: proto::Policy, judged: Judged) -> Result<RbacPolicy> {
    let proto::Policy { permissions, principals, condition, checked_condition, cel_config } = value;
    // Conditions are expressions of CEL.
    refuse!(condition, checked_condition);
    harmless!(cel_config);
    if permissions.is_empty() || principals.is_empty() {
        return Err(Invalid::new("needs at least one permission and one principal; use `any: true` for all"));
    }
    Ok(RbacPolicy {
        name: name.into(),
        permissions: all_permissions(permissions, "permissions", 0, judged)?,
        principals: all_principals(principals, "principals", 0, judged)?,
    })
}

fn all_permissions(values: Vec<proto::Permission>, field: &str, depth: u32, judged: Judged) -> Result<Vec<Permission>> {
    each(values, field, |v| permission(v, depth + 1, judged))
}

fn permission(value: proto::Permission, depth: u32, judged: Judged) -> Result<Permission> {
    use permission::Rule;
    check_depth(depth)?;
    Ok(match value.rule {
        Some(Rule::Any(true)) => Permission::Any,
        Some(Rule::AndRules(set)) => Permission::And(all_permissions(set.rules, "and_rules.rules", depth, judged)?),
        Some(Rule::OrRules(set)) => Permission::Or(all_permissions(set.rules, "or_rules.rules", depth, judged)?),
        Some(Rule::NotRule(rule)) => Permission::Not(Box::new(permission(*rule, depth + 1, judged).within("not_rule")?)),
        Some(Rule::Header(h)) => Permission::Header(judged.request("header").and_then(|()| header(h).within("header"))?),
        Some(Rule::UrlPath(p)) => Permission::UrlPath(judged.request("url_path").and_then(|()| path(p).within("url_path"))?),
        Some(Rule::DestinationIp(c)) => Permission::DestinationIp(cidr(c).within("destination_ip")?),
        Some(Rule::DestinationPort(p)) => Permission::DestinationPort(port(p).within("destination_port")?),
        Some(Rule::DestinationPortRange(r)) => Permission::DestinationPortRange(port_range(r).within("destination_port_range")?),
        Some(Rule::RequestedServerName(s)) => Permission::RequestedServerName(string(s).within("requested_server_name")?),
        Some(Rule::Any(false)) => return Err(Invalid::field("any", "must be true")),
        Some(Rule::Metadata(m)) => Permission::Metadata(metadata::matcher(m).within("metadata")?),
        Some(Rule::SourcedMetadata(m)) => Permission::Metadata(sourced(m).within("sourced_metadata")?),
        Some(Rule::Matcher(_)) => return Err(Invalid::unsupported("matcher")),
        Some(Rule::UriTemplate(template)) => {
            judged.request("uri_template")?;
            Permission::UriTemplate(route::uri_template(template).within("uri_template")?)
        }
        None => return Err(Invalid::new("has no rule")),
    })
}

fn all_principals(values: Vec<proto::Principal>, field: &str, depth: u32, judged: Judged) -> Result<Vec<Principal>> {
    each(values, field, |v| principal(v, depth + 1, judged))
}

fn principal(value: proto::Principal, depth: u32, judged: Judged) -> Result<Principal> {
    use principal::Identifier as Id;
    check_depth(depth)?;
    Ok(match value.identifier {
        Some(Id::Any(true)) => Principal::Any,
        Some(Id::AndIds(set)) => Principal::And(all_principals(set.ids, "and_ids.ids", depth, judged)?),
        Some(Id::OrIds(set)) => Principal::Or(all_principals(set.ids, "or_ids.ids", depth, judged)?),
        Some(Id::NotId(id)) => Principal::Not(Box::new(principal(*id, depth + 1, judged).within("not_id")?)),
        Some(Id::Authenticated(a)) => {
            Principal::Authenticated(a.principal_name.map(string).transpose().within("authenticated.principal_name")?)
        }
        Some(Id::SourceIp(c)) => Principal::SourceIp(cidr(c).within("source_ip")?),
        Some(Id::DirectRemoteIp(c)) => Principal::DirectRemoteIp(cidr(c).within("direct_remote_ip")?),
        Some(Id::RemoteIp(c)) => Principal::RemoteIp(cidr(c).within("remote_ip")?),
        Some(Id::Header(h)) => Principal::Header(judged.request("header").and_then(|()| header(h).within("header"))?),
        Some(Id::UrlPath(p)) => Principal::UrlPath(judged.request("url_path").and_then(|()| path(p).within("url_path"))?),
        Some(Id::Any(false)) => return Err(Invalid::field("any", "must be true")),
        Some(Id::FilterState(f)) => filter_state(f).within("filter_state")?,
        Some(Id::Metadata(m)) => Principal::Metadata(metadata::matcher(m).within("metadata")?),
        Some(Id::SourcedMetadata(m)) => Principal::Metadata(sourced(m).within("sourced_metadata")?),
        Some(Id::Custom(_)) => return Err(Invalid::unsupported("custom")),
        None => return Err(Invalid::new("has no identifier")),
    })
}

/// Istio names the peer through filter state instead of the certificate where traffic is tunnelled;
/// on a direct connection both say the same.
fn filter_state(value: matcher::FilterStateMatcher) -> Result<Principal> {
    use matcher::filter_state_matcher::Matcher;
    let matcher::FilterStateMatcher { key, matcher } = value;
    match (key.as_str(), matcher) {
        ("io.istio.peer_principal", Some(Matcher::StringMatch(s))) => Ok(Principal::Authenticated(Some(string(s).within("string_match")?))),
        ("io.istio.peer_principal", _) => Err(Invalid::new("needs a string_match")),
        _ => Err(Invalid::field("key", format!("`{key}` is not supported; only io.istio.peer_principal is"))),
    }
}

fn sourced(value: proto::SourcedMetadata) -> Result<MetadataMatcher> {
    let proto::SourcedMetadata { metadata_matcher, metadata_source } = value;
    if metadata_source != proto::MetadataSource::Dynamic as i32 {
        return Err(Invalid::field("metadata_source", "only DYNAMIC is supported"));
    }
    metadata_matcher.ok_or_else(|| Invalid::new("is missing")).and_then(metadata::matcher).within("metadata_matcher")
}

fn path(value: matcher::PathMatcher) -> Result<StringMatcher> {
    match value.rule {
        Some(path_matcher::Rule::Path(s)) => string(s).within("path"),
        None => Err(Invalid::new("has no path")),
    }
}

fn port_range(value: Int32Range) -> Result<std::ops::RangeInclusive<u16>> {
    // Half open, so that the end may be one more than a port.
    match (u16::try_from(value.start), u16::try_from(value.end.wrapping_sub(1))) {
        (Ok(start), Ok(last)) if start <= last => Ok(start..=last),
        _ => Err(Invalid::new(format!("{}..{} is not a range of ports; the start must be less than the end", value.start, value.end))),
    }
}

fn check_depth(depth: u32) -> Result<()> {
    if depth > MAX_DEPTH { Err(Invalid::new(format!("is nested more than {MAX_DEPTH} deep; simplify the policy"))) } else { Ok(()) }
}
