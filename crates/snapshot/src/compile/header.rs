//! Header additions and removals.
use http::{HeaderName, HeaderValue};
use lateen_core::framing::is_framing;
use lateen_proto::envoy::config::common::mutation_rules::v3::{HeaderMutation, header_mutation};
use lateen_proto::envoy::config::core::v3::{self as core, header_value_option::HeaderAppendAction};
use lateen_telemetry::access_log::TextFormat;

use super::invalid::{Invalid, Result, Within, each};
use super::left_out;
use super::matcher::header_name;
use crate::header::{AppendAction, HeaderAddition, HeaderMutations, HeaderTemplate};

pub(crate) fn mutations(add: Vec<core::HeaderValueOption>, remove: Vec<String>, direction: &str) -> Result<HeaderMutations> {
    let HeaderMutations { add, .. } = additions(add, &format!("{direction}_headers_to_add"))?;
    let remove = each(remove, &format!("{direction}_headers_to_remove"), |name| removal(&name))?;
    Ok(HeaderMutations { remove: remove.into_iter().flatten().collect(), add })
}

pub(crate) fn additions(values: Vec<core::HeaderValueOption>, field: &str) -> Result<HeaderMutations> {
    let add = each(values, field, addition)?;
    Ok(HeaderMutations { remove: Vec::new(), add: add.into_iter().flatten().collect() })
}

/// Changes as a list of single steps, taken as all removals and then all additions.
pub(crate) fn mutation_list(values: Vec<HeaderMutation>, field: &str) -> Result<HeaderMutations> {
    let mut result = HeaderMutations::default();
    for (index, value) in values.into_iter().enumerate() {
        let noted = left_out::count();
        match value.action {
            Some(header_mutation::Action::Remove(_)) if !result.add.is_empty() => {
                return Err(Invalid::field("remove", "must stand before everything that adds")).within_item(field, index);
            }
            Some(header_mutation::Action::Remove(name)) => result.remove.extend(removal(&name).within("remove").within_item(field, index)?),
            Some(header_mutation::Action::Append(option)) => {
                result.add.extend(addition(option).within("append").within_item(field, index)?)
            }
            Some(header_mutation::Action::RemoveOnMatch(_)) => {
                return Err(Invalid::unsupported("remove_on_match")).within_item(field, index);
            }
            None => return Err(Invalid::new("does nothing")).within_item(field, index),
        }
        left_out::within_item(noted, field, index);
    }
    Ok(result)
}

/// Envoy refuses to remove `host` and pseudo headers, which would make the request malformed. `None` for what no message brings
/// here: the headers of one hop end with it, whether their removal is asked for or not.
pub(crate) fn removal(name: &str) -> Result<Option<HeaderName>> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(Invalid::new(format!("`{name}` cannot be removed")));
    }
    let of_one_hop = ["transfer-encoding", "connection", "keep-alive", "proxy-connection"];
    if of_one_hop.iter().any(|hop| name.eq_ignore_ascii_case(hop)) { Ok(None) } else { Ok(changeable(header_name(name)?, "")) }
}

/// The framing of a message is the codec's: a second `content-length` would have its reader and us disagree on where it ends.
/// Envoy takes such changes, so that one which is refused would keep all of the routes around it from being used.
fn changeable(name: HeaderName, field: &str) -> Option<HeaderName> {
    if !is_framing(name.as_str()) {
        return Some(name);
    }
    let what = Invalid::new(format!("`{name}` is set by how the message is sent, and its change is left out"));
    left_out::note(if field.is_empty() { what } else { what.inside(field) });
    None
}

/// `None` for one that is left out.
pub(crate) fn addition(option: core::HeaderValueOption) -> Result<Option<HeaderAddition>> {
    let core::HeaderValueOption { header, append, append_action, keep_empty_value } = option;
    let core::HeaderValue { key, value, raw_value } = header.ok_or_else(|| Invalid::field("header", "is missing"))?;
    if key.starts_with(':') || key.eq_ignore_ascii_case("host") {
        return Err(Invalid::field("header.key", format!("`{key}` cannot be changed here; use a host or path rewrite of the route")));
    }
    let action = match (append, HeaderAppendAction::try_from(append_action)) {
        (Some(false), _) => AppendAction::OverwriteIfExistsOrAdd,
        (_, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => AppendAction::AppendIfExistsOrAdd,
        (_, Ok(HeaderAppendAction::AddIfAbsent)) => AppendAction::AddIfAbsent,
        (_, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => AppendAction::OverwriteIfExistsOrAdd,
        (_, Ok(HeaderAppendAction::OverwriteIfExists)) => AppendAction::OverwriteIfExists,
        (_, Err(_)) => return Err(Invalid::field("append_action", format!("{append_action} is not known"))),
    };
    let value = if raw_value.is_empty() { template(&value) } else { fixed(&raw_value) }.within("header.value")?;
    let name = changeable(header_name(&key).within("header.key")?, "header.key");
    Ok(name.map(|name| HeaderAddition { name, value, action, keep_empty: keep_empty_value }))
}

/// `%%` is a literal percent sign; any other `%` starts a command.
pub(crate) fn template(value: &str) -> Result<HeaderTemplate> {
    if !value.replace("%%", "").contains('%') {
        return fixed(value.replace("%%", "%").as_bytes());
    }
    TextFormat::compile(value).map_err(|e| Invalid::new(e.to_string()))?;
    Ok(HeaderTemplate::Format(value.into()))
}

fn fixed(value: &[u8]) -> Result<HeaderTemplate> {
    HeaderValue::from_bytes(value)
        .map(HeaderTemplate::Fixed)
        .map_err(|_| Invalid::new("holds a character that a header value must not have"))
}

#[cfg(test)]
mod tests {
    use super::super::context::Context;
    use super::*;

    #[test]
    fn the_framing_of_a_message_is_not_configured() {
        for name in ["Content-Length", "transfer-encoding", "connection", "te", "upgrade", "keep-alive", "proxy-connection"] {
            let header = |key: &str| Some(core::HeaderValue { key: key.to_owned(), value: "1".to_owned(), ..Default::default() });
            let add = |key: &str| core::HeaderValueOption { header: header(key), ..Default::default() };
            let made = mutations(vec![add("x-a"), add(name)], vec!["x-b".to_owned(), name.to_owned()], "request").unwrap();
            assert!(made.add.iter().map(|addition| &addition.name).eq(["x-a"]) && made.remove == ["x-b"], "{name}");
            let why = format!("`{}` is set by how the message is sent, and its change is left out", name.to_ascii_lowercase());
            let mut told = vec![format!("request_headers_to_add[1].header.key: {why}")];
            // Nobody has others removed.
            if ["Content-Length", "te", "upgrade"].contains(&name) {
                told.push(format!("request_headers_to_remove[1]: {why}"));
            }
            assert_eq!(left_out::take().iter().map(ToString::to_string).collect::<Vec<_>>(), told);
        }
    }

    #[test]
    fn routes_that_change_what_frames_a_message_are_taken_without_that_change() {
        let value = crate::test_support::message(
            "{name: r, virtual_hosts: [{name: a, domains: [a]}, {name: b, domains: ['*'], routes: [{match: {prefix: /a}, redirect: {}}, \
             {match: {prefix: /}, redirect: {}, response_headers_to_add: [{header: {key: x-a, value: b}}, {header: {key: connection, value: close}}]}]}]}",
        );
        let (mut names, mut secrets, mut caches) = Default::default();
        let table = super::super::route::table(value, &mut Context::new(&mut names, &mut secrets, &mut caches, false)).unwrap();
        assert_eq!(table.virtual_hosts[1].routes.len(), 2);
        let told: Vec<_> = left_out::take().into_iter().map(|what| what.path).collect();
        assert_eq!(told, ["virtual_hosts[1].routes[1].response_headers_to_add[1].header.key"]);
    }
}
