//! Heads as other servers see and change them: pseudo headers by name, and nothing of the framing.
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use lateen_core::framing::is_framing;
use lateen_snapshot::header::AppendAction;

use crate::http::message::{Length, Request, Response, Version};
use crate::http::{Exchange, Info};
use crate::io::Text;

/// A request's headers with HTTP/2's pseudo headers among them, each value by itself.
pub(super) fn of_request(request: &Request) -> Vec<(&str, Vec<u8>)> {
    let pseudo = [
        (":authority", request.authority.as_bytes()),
        (":path", request.path.as_bytes()),
        (":method", request.method.as_str().as_bytes()),
        (":scheme", request.scheme.as_bytes()),
    ];
    let mut all: Vec<(&str, Vec<u8>)> = pseudo.into_iter().map(|(name, value)| (name, value.to_vec())).collect();
    all.extend(request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes().to_vec())));
    if request.upgrade.is_some() && request.version != Version::Http2 {
        all.push(("connection", b"upgrade".to_vec()));
    }
    match (request.length, request.length.said()) {
        (_, Some(n)) => all.push(("content-length", n.to_string().into_bytes())),
        (Length::Unknown, _) if request.version != Version::Http2 => {
            all.push(("transfer-encoding", b"chunked".to_vec()));
        }
        _ => {}
    }
    all
}

/// Text for a message of strings: what is not UTF-8 becomes `!`, as Envoy writes it.
pub(super) fn sanitized(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| '!'));
    }
    out
}

/// What another server says about a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mutation {
    pub(super) target: Target,
    pub(super) value: HeaderValue,
    pub(super) action: AppendAction,
    /// Appending makes one value of two, where there is one already.
    pub(super) joins: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Header(HeaderName),
    Path,
    Authority,
    Method,
    Scheme,
    Status,
}

/// Which part of a head a name means; `Err` for one that no header has, `None` for the framing.
pub(super) fn target(name: &str) -> Result<Option<Target>, ()> {
    Ok(Some(match name {
        ":path" => Target::Path,
        ":authority" => Target::Authority,
        ":method" => Target::Method,
        ":scheme" => Target::Scheme,
        ":status" => Target::Status,
        _ if name.eq_ignore_ascii_case("host") => Target::Authority,
        _ => {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| ())?;
            if is_framing(name.as_str()) || name == header::TRAILER {
                return Ok(None);
            }
            Target::Header(name)
        }
    }))
}

/// Whether a request's head is not larger than it may come.
pub(super) fn is_allowed(exchange: &Exchange<'_>) -> bool {
    const PSEUDO: [&str; 4] = [":authority", ":path", ":method", ":scheme"];
    let (request, config) = (&exchange.request, &exchange.hcm.config);
    let values = request.authority.len() + request.path.len() + request.method.as_str().len() + request.scheme.len();
    let pseudo = PSEUDO.iter().map(|name| name.len()).sum::<usize>() + values;
    let headers: usize = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let limit = (config.max_request_headers_kb as usize).saturating_mul(1024);
    request.headers.len() + PSEUDO.len() <= config.max_headers_count as usize && pseudo + headers <= limit
}

/// Headers that another server may add to one head.
pub(super) const MOST_ADDED: usize = 1000;

/// Changes a header map. What does not fit into one, whatever its names are, is left out.
pub(super) fn change(map: &mut HeaderMap, name: &HeaderName, value: &HeaderValue, action: AppendAction, joins: bool) {
    match (action, joins) {
        (AppendAction::AppendIfExistsOrAdd, true) => {
            if let Some(before) = map.get(name)
                && let Ok(both) = HeaderValue::from_bytes(&[before.as_bytes(), b",", value.as_bytes()].concat())
            {
                map.insert(name, both);
            }
        }
        (AppendAction::AppendIfExistsOrAdd, false) => drop(map.try_append(name, value.clone())),
        (AppendAction::AddIfAbsent, _) if map.contains_key(name) => {}
        (AppendAction::OverwriteIfExists, _) if !map.contains_key(name) => {}
        _ => drop(map.try_insert(name, value.clone())),
    }
}

/// Applies one mutation to a request. A pseudo header has one value, and that is replaced.
pub(super) fn change_request(exchange: &mut Exchange<'_>, mutation: &Mutation) {
    let request = &mut exchange.request;
    let text = || Text::new(bytes::Bytes::copy_from_slice(mutation.value.as_bytes()));
    match &mutation.target {
        Target::Header(name) => change(&mut request.headers, name, &mutation.value, mutation.action, mutation.joins),
        _ if mutation.action == AppendAction::AddIfAbsent => {}
        Target::Path => {
            if let Some(path) = text().filter(|p| p.starts_with('/') && !p.contains([' ', '#'])) {
                request.path = path;
            }
        }
        Target::Authority => {
            if let Some(authority) = text().filter(|a| !a.is_empty() && !a.contains([' ', '/', '@'])) {
                request.authority = authority;
            }
        }
        Target::Method => {
            if let Ok(method) = http::Method::from_bytes(mutation.value.as_bytes())
                && method != http::Method::CONNECT
            {
                request.method = method;
            }
        }
        Target::Scheme => match mutation.value.as_bytes() {
            b"http" => request.scheme = "http",
            b"https" => request.scheme = "https",
            _ => {}
        },
        Target::Status => {}
    }
}

/// Puts on a response what servers that were asked about the request wanted there.
pub(super) fn change_response(exchange: &mut Exchange<'_>, response: &mut Response) {
    let Some(wanted) = exchange.info.response_mutations.take() else { return };
    for Mutation { target, value, action, joins } in &wanted.0 {
        if let Target::Header(name) = target {
            change(&mut response.headers, name, value, *action, *joins);
        }
    }
}

/// Changes to a response that is still to come.
#[derive(Debug, Default)]
pub(crate) struct Mutations(Vec<Mutation>);

impl Info {
    pub(super) fn add_response_mutations(&mut self, more: Vec<Mutation>) {
        if !more.is_empty() {
            self.response_mutations.get_or_insert_default().0.extend(more);
        }
    }
}

/// Sets and removes parameters of a path's query (Envoy sorts them as it does).
pub(super) fn change_query(path: &str, set: &[(String, String)], remove: &[String]) -> String {
    let (plain, query) = path.split_once('?').unwrap_or((path, ""));
    let mut parameters: std::collections::BTreeMap<&str, Vec<&str>> = std::collections::BTreeMap::new();
    for part in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        parameters.entry(name).or_default().push(value);
    }
    for (name, value) in set {
        parameters.insert(name, vec![value]);
    }
    for name in remove {
        parameters.remove(name.as_str());
    }
    let all = parameters.iter().flat_map(|(name, values)| values.iter().map(move |value| format!("{name}={value}")));
    let query = all.collect::<Vec<_>>().join("&");
    if query.is_empty() { plain.to_owned() } else { format!("{plain}?{query}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_text_is_marked_byte_by_byte() {
        assert_eq!(sanitized(b"a\xff\xfeb\xc3"), "a!!b!");
        assert_eq!(sanitized("größe".as_bytes()), "größe");
    }

    #[test]
    fn names_of_the_framing_and_impossible_names_are_no_targets() {
        assert_eq!(target("Content-Length"), Ok(None));
        assert_eq!(target("transfer-encoding"), Ok(None));
        assert_eq!(target("bad name"), Err(()));
        assert_eq!(target("HOST"), Ok(Some(Target::Authority)));
        assert_eq!(target("X-A"), Ok(Some(Target::Header(HeaderName::from_static("x-a")))));
    }

    #[test]
    fn query_parameters_are_set_and_removed() {
        let set = [("b".to_owned(), "9".to_owned())];
        assert_eq!(change_query("/p?c=3&b=1&b=2&a", &set, &["c".to_owned()]), "/p?a=&b=9");
        assert_eq!(change_query("/p?c=3", &[], &["c".to_owned()]), "/p");
        assert_eq!(change_query("/p", &set, &[]), "/p?b=9");
    }

    #[test]
    fn more_headers_than_a_map_holds_are_left_out() {
        for action in [AppendAction::AppendIfExistsOrAdd, AppendAction::OverwriteIfExistsOrAdd] {
            let mut map = HeaderMap::new();
            for i in 0..30_000 {
                let name = HeaderName::try_from(format!("x-{i}")).unwrap();
                change(&mut map, &name, &HeaderValue::from_static("v"), action, false);
            }
            assert!((6_000..30_000).contains(&map.len()), "{}", map.len());
        }
    }

    #[test]
    fn an_action_says_what_becomes_of_a_header_that_is_there() {
        let name = HeaderName::from_static("x");
        let value = HeaderValue::from_static;
        let of = |before: &[&'static str], action, joins| {
            let mut map = HeaderMap::new();
            before.iter().for_each(|v| {
                map.append(&name, value(v));
            });
            change(&mut map, &name, &value("n"), action, joins);
            map.get_all(&name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        use AppendAction as A;
        assert_eq!(of(&["a"], A::AppendIfExistsOrAdd, false), ["a", "n"]);
        assert_eq!(of(&["a"], A::AppendIfExistsOrAdd, true), ["a,n"]);
        assert_eq!(of(&["a", "b"], A::OverwriteIfExistsOrAdd, false), ["n"]);
        assert_eq!(of(&["a"], A::AddIfAbsent, false), ["a"]);
        assert_eq!(of(&[], A::AddIfAbsent, false), ["n"]);
        assert_eq!(of(&[], A::OverwriteIfExists, false), [""; 0]);
    }
}
