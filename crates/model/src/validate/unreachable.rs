//! Rules of a VirtualService that no request can reach: IST0130 and IST0131.
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::checker::Checker;
use crate::kinds::VirtualService;
use crate::kinds::common::StringMatch;
use crate::kinds::virtual_service::HttpMatchRequest;

pub(super) fn check(rule: &VirtualService, check: &mut Checker<'_>) {
    let http: Vec<Vec<HttpMatchRequest>> = rule
        .http
        .iter()
        .map(|route| route.r#match.iter().map(|found| HttpMatchRequest { name: None, stat_prefix: None, ..found.clone() }).collect())
        .collect();
    unreachable("http", &http, check);
    covered_prefixes(&http, check);
    unreachable("tls", &rule.tls.iter().map(|route| route.r#match.clone()).collect::<Vec<_>>(), check);
    unreachable("tcp", &rule.tcp.iter().map(|route| route.r#match.clone()).collect::<Vec<_>>(), check);
}

/// Routes behind a route without matches, and matches that were given before.
fn unreachable<M: std::fmt::Debug>(field: &str, routes: &[Vec<M>], check: &mut Checker<'_>) {
    let mut catch_all = None;
    // The debug form says everything a match has, in one order.
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (index, matches) in routes.iter().enumerate() {
        let path = format!("spec.{field}[{index}]");
        if let Some(before) = catch_all {
            check.coded_warning("IST0130", &path, format!("is never used: spec.{field}[{before}] has no match and takes everything"));
            continue;
        }
        if matches.is_empty() {
            catch_all = Some(index);
            continue;
        }
        let mut duplicates = 0;
        for (number, found) in matches.iter().enumerate() {
            match seen.entry(format!("{found:?}")) {
                Entry::Occupied(before) => {
                    duplicates += 1;
                    let before = before.get();
                    let text = format!("is never used: spec.{field}[{before}] has the same match");
                    check.coded_warning("IST0131", &format!("{path}.match[{number}]"), text);
                }
                Entry::Vacant(place) => {
                    place.insert(index);
                }
            }
        }
        if duplicates == matches.len() {
            check.coded_warning("IST0130", &path, "is never used: all its matches stand in earlier rules");
        }
    }
}

/// Prefixes that are compared with each other; beyond that the advice is not worth the time.
const MAX_COMPARED_PREFIXES: usize = 500;

/// A prefix behind a shorter one that is matched under no further condition than the same ones.
fn covered_prefixes(routes: &[Vec<HttpMatchRequest>], check: &mut Checker<'_>) {
    let mut earlier: Vec<(usize, &str, &HttpMatchRequest)> = Vec::new();
    for (index, matches) in routes.iter().enumerate() {
        for (number, found) in matches.iter().enumerate() {
            let Some(StringMatch::Prefix(prefix)) = &found.uri else { continue };
            if earlier.len() >= MAX_COMPARED_PREFIXES {
                return;
            }
            let covering = earlier.iter().find(|(before, shorter, wider)| {
                *before != index && prefix.starts_with(shorter) && prefix != shorter && is_wider(wider, found)
            });
            if let Some((before, shorter, _)) = covering {
                let text = format!("is never used: spec.http[{before}] takes the prefix {shorter:?} under the same conditions");
                check.coded_warning("IST0131", &format!("spec.http[{index}].match[{number}]"), text);
            }
            earlier.push((index, prefix, found));
        }
    }
}

/// Whether every condition of `wider` but the path is one of `found`.
fn is_wider(wider: &HttpMatchRequest, found: &HttpMatchRequest) -> bool {
    fn implied<T: PartialEq>(wider: &Option<T>, found: &Option<T>) -> bool {
        wider.is_none() || wider == found
    }
    implied(&wider.method, &found.method)
        && implied(&wider.scheme, &found.scheme)
        && implied(&wider.authority, &found.authority)
        && implied(&wider.port, &found.port)
        && implied(&wider.source_namespace, &found.source_namespace)
        && wider.headers.iter().all(|(name, matcher)| found.headers.get(name) == Some(matcher))
        && wider.without_headers.iter().all(|(name, matcher)| found.without_headers.get(name) == Some(matcher))
        && wider.query_params.iter().all(|(name, matcher)| found.query_params.get(name) == Some(matcher))
        && wider.source_labels.iter().all(|(name, value)| found.source_labels.get(name) == Some(value))
        && (wider.gateways.is_empty() || wider.gateways == found.gateways)
        && wider.ignore_uri_case == found.ignore_uri_case
}
