//! Configured changes to headers: of each level first what goes, then what is overwritten, then what is added. A level's
//! values and conditions see the headers without what it removes and before it changes anything; the next level sees what
//! this one made of them (Envoy `source/common/router/header_parser.cc`).
use http::HeaderName;
use http::header::{HeaderMap, HeaderValue};
use lateen_snapshot::header::{AppendAction, HeaderAddition, HeaderMutations, HeaderTemplate};
use lateen_snapshot::http::HeaderChanges;

use super::lookup;
use crate::http::access::RequestRecord;
use crate::http::{Exchange, Matched};

/// Those of weighted cluster, route, virtual host and table in Envoy's order.
pub(super) fn levels(matched: &Matched) -> impl Iterator<Item = &HeaderChanges> {
    let weighted = lookup::weighted(matched).map(|w| &w.headers);
    let host = matched.virtual_host().map(|h| &h.settings.headers);
    let mut order = [weighted, Some(&matched.route.headers), host, Some(&matched.table.headers)];
    if matched.table.most_specific_header_mutations_wins {
        order.reverse();
    }
    order.into_iter().flatten()
}

/// Changes to the request's headers.
pub(crate) fn of_request(exchange: &mut Exchange<'_>, mutations: &HeaderMutations) {
    remove(&mut exchange.request.headers, mutations);
    let settled = Settled::of(mutations, &exchange.request.headers, |addition| value(exchange, addition, None));
    settled.apply(&mut exchange.request.headers);
}

/// Changes to the headers of a copy of the request.
pub(super) fn of_copy(exchange: &Exchange<'_>, mutations: &HeaderMutations, map: &mut HeaderMap) {
    remove(map, mutations);
    Settled::of(mutations, map, |addition| value(exchange, addition, None)).apply(map);
}

/// Changes to a response's headers.
pub(crate) fn of_response(exchange: &Exchange<'_>, mutations: &HeaderMutations, map: &mut HeaderMap) {
    remove(map, mutations);
    Settled::of(mutations, map, |addition| value(exchange, addition, Some(map))).apply(map);
}

/// Changes without commands in their values.
pub(crate) fn fixed(mutations: &HeaderMutations, map: &mut HeaderMap) {
    remove(map, mutations);
    let value = |addition: &HeaderAddition| match &addition.value {
        HeaderTemplate::Fixed(value) => Some(value.clone()),
        HeaderTemplate::Format(_) => None,
    };
    Settled::of(mutations, map, value).apply(map);
}

/// Headers that a filter gives to its own reply.
pub(crate) fn of_reply(exchange: &Exchange<'_>, mutations: &HeaderMutations) -> HeaderMap {
    let mut map = HeaderMap::new();
    Settled::of(mutations, &map, |addition| value(exchange, addition, None)).apply(&mut map);
    map
}

fn remove(map: &mut HeaderMap, mutations: &HeaderMutations) {
    for name in &mutations.remove {
        map.remove(name);
    }
}

/// What an addition comes to for this request; `None` when that cannot stand in a header.
fn value(exchange: &Exchange<'_>, addition: &HeaderAddition, response: Option<&HeaderMap>) -> Option<HeaderValue> {
    match &addition.value {
        HeaderTemplate::Fixed(value) => Some(value.clone()),
        HeaderTemplate::Format(text) => {
            let mut bytes = Vec::new();
            exchange.hcm.format(text)?.write(&RequestRecord::new(exchange, response), &mut bytes);
            HeaderValue::from_bytes(&bytes).ok()
        }
    }
}

/// A level's additions with their values.
#[derive(Default)]
struct Settled {
    overwritten: Vec<(HeaderName, HeaderValue)>,
    added: Vec<(HeaderName, HeaderValue)>,
}

impl Settled {
    fn of(mutations: &HeaderMutations, map: &HeaderMap, value: impl Fn(&HeaderAddition) -> Option<HeaderValue>) -> Self {
        let mut settled = Self::default();
        for addition in &mutations.add {
            let Some(value) = value(addition).filter(|value| !value.is_empty() || addition.keep_empty) else { continue };
            let list = match addition.action {
                AppendAction::AppendIfExistsOrAdd => &mut settled.added,
                AppendAction::AddIfAbsent if !map.contains_key(&addition.name) => &mut settled.added,
                AppendAction::OverwriteIfExists if map.contains_key(&addition.name) => &mut settled.overwritten,
                AppendAction::OverwriteIfExistsOrAdd => &mut settled.overwritten,
                AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => continue,
            };
            list.push((addition.name.clone(), value));
        }
        settled
    }

    fn apply(self, map: &mut HeaderMap) {
        for (name, value) in self.overwritten {
            map.insert(name, value);
        }
        for (name, value) in self.added {
            map.append(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addition(name: &'static str, value: &'static str, action: AppendAction) -> HeaderAddition {
        let value = HeaderTemplate::Fixed(HeaderValue::from_static(value));
        HeaderAddition { name: HeaderName::from_static(name), value, action, keep_empty: false }
    }

    fn values(map: &HeaderMap, name: &str) -> Vec<String> {
        map.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect()
    }

    #[test]
    fn a_level_removes_then_overwrites_then_adds() {
        let mut map = HeaderMap::new();
        map.insert("gone", HeaderValue::from_static("caller"));
        map.insert("kept", HeaderValue::from_static("caller"));
        let mutations = HeaderMutations {
            remove: vec![HeaderName::from_static("gone")],
            add: vec![
                addition("both", "added", AppendAction::AppendIfExistsOrAdd),
                addition("both", "over", AppendAction::OverwriteIfExistsOrAdd),
                addition("gone", "again", AppendAction::AddIfAbsent),
                addition("gone", "never", AppendAction::OverwriteIfExists),
                addition("kept", "never", AppendAction::AddIfAbsent),
                addition("kept", "over", AppendAction::OverwriteIfExists),
                addition("empty", "", AppendAction::AppendIfExistsOrAdd),
            ],
        };
        fixed(&mutations, &mut map);
        assert_eq!(values(&map, "both"), ["over", "added"]);
        assert_eq!(values(&map, "gone"), ["again"]);
        assert_eq!(values(&map, "kept"), ["over"]);
        assert!(!map.contains_key("empty"));
    }
}
