//! Header additions and removals.
use http::{HeaderName, HeaderValue};
use lateen_core::framing::is_framing;
use lateen_proto::envoy::config::common::mutation_rules::v3::{HeaderMutation, header_mutation};
use lateen_proto::envoy::config::core::v3::{self as core, header_value_option::HeaderAppendAction};
use lateen_telemetry::access_log::TextFormat;

use super::invalid::{Invalid, Result, Within, each};
use super::matcher::header_name;
use crate::header::{AppendAction, HeaderAddition, HeaderMutations, HeaderTemplate};

pub(crate) fn mutations(add: Vec<core::HeaderValueOption>, remove: Vec<String>, direction: &str) -> Result<HeaderMutations> {
    let HeaderMutations { add, .. } = additions(add, &format!("{direction}_headers_to_add"))?;
    let remove = each(remove, &format!("{direction}_headers_to_remove"), |name| removal(&name))?;
    Ok(HeaderMutations { remove: remove.into_iter().flatten().collect(), add })
}

pub(crate) fn additions(values: Vec<core::HeaderValueOption>, field: &str) -> Result<HeaderMutations> {
    Ok(HeaderMutations { remove: Vec::new(), add: each(values, field, addition)? })
}

/// Changes as a list of single steps, taken as all removals and then all additions.
pub(crate) fn mutation_list(values: Vec<HeaderMutation>, field: &str) -> Result<HeaderMutations> {
    let mut result = HeaderMutations::default();
    for (index, value) in values.into_iter().enumerate() {
        match value.action {
            Some(header_mutation::Action::Remove(_)) if !result.add.is_empty() => {
                return Err(Invalid::field("remove", "must stand before everything that adds")).within_item(field, index);
            }
            Some(header_mutation::Action::Remove(name)) => result.remove.extend(removal(&name).within("remove").within_item(field, index)?),
            Some(header_mutation::Action::Append(option)) => result.add.push(addition(option).within("append").within_item(field, index)?),
            Some(header_mutation::Action::RemoveOnMatch(_)) => {
                return Err(Invalid::unsupported("remove_on_match")).within_item(field, index);
            }
            None => return Err(Invalid::new("does nothing")).within_item(field, index),
        }
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
    if of_one_hop.iter().any(|hop| name.eq_ignore_ascii_case(hop)) { Ok(None) } else { changeable(name).map(Some) }
}

/// The framing of a message is the codec's: a second `content-length` would have its reader and us disagree on where it ends.
fn changeable(name: &str) -> Result<HeaderName> {
    let name = header_name(name)?;
    if is_framing(name.as_str()) {
        return Err(Invalid::new(format!("`{name}` is set by how the message is sent, and cannot be changed")));
    }
    Ok(name)
}

pub(crate) fn addition(option: core::HeaderValueOption) -> Result<HeaderAddition> {
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
    Ok(HeaderAddition { name: changeable(&key).within("header.key")?, value, action, keep_empty: keep_empty_value })
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
    use super::*;

    #[test]
    fn the_framing_of_a_message_is_not_configured() {
        for name in ["Content-Length", "transfer-encoding", "connection", "te", "upgrade", "keep-alive", "proxy-connection"] {
            let header = Some(core::HeaderValue { key: name.to_owned(), value: "1".to_owned(), ..Default::default() });
            let added = mutations(vec![core::HeaderValueOption { header, ..Default::default() }], Vec::new(), "request").unwrap_err();
            let why = format!("`{}` is set by how the message is sent, and cannot be changed", name.to_ascii_lowercase());
            assert_eq!(added.to_string(), format!("request_headers_to_add[0].header.key: {why}"));
            let removed = mutations(Vec::new(), vec!["x-a".to_owned(), name.to_owned()], "response");
            match name {
                "Content-Length" | "te" | "upgrade" => {
                    assert_eq!(removed.unwrap_err().to_string(), format!("response_headers_to_remove[1]: {why}"));
                }
                _ => assert_eq!(removed.unwrap().remove, ["x-a"], "{name}"),
            }
        }
    }
}
