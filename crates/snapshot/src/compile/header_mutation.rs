//! The header mutation filter.
use std::sync::Arc;

use lateen_proto::envoy::config::common::mutation_rules::v3 as rules;
use lateen_proto::envoy::extensions::filters::http::header_mutation::v3 as proto;

use super::header::{addition, removal};
use super::invalid::{Invalid, Result, Within, each, refuse};
use super::matcher::string;
use crate::header::{HeaderMutations, HeaderTemplate};
use crate::header_mutation::{Edit, HeaderMutation, Mutations};

pub(crate) fn filter(value: proto::HeaderMutation) -> Result<HeaderMutation> {
    let proto::HeaderMutation { mutations: given, most_specific_header_mutations_wins } = value;
    Ok(HeaderMutation {
        mutations: Arc::new(mutations(given.unwrap_or_default()).within("mutations")?),
        most_specific_wins: most_specific_header_mutations_wins,
    })
}

pub(crate) fn per_route(value: proto::HeaderMutationPerRoute) -> Result<Mutations> {
    let proto::HeaderMutationPerRoute { mutations: given } = value;
    mutations(given.unwrap_or_default()).within("mutations")
}

fn mutations(value: proto::Mutations) -> Result<Mutations> {
    let proto::Mutations {
        request_mutations,
        query_parameter_mutations,
        response_mutations,
        response_trailers_mutations,
        request_trailers_mutations,
    } = value;
    refuse!(query_parameter_mutations);
    let list = |all: Vec<rules::HeaderMutation>, field: &str, fixed: bool| each(all, field, |m| edit(m, fixed));
    Ok(Mutations {
        request: list(request_mutations, "request_mutations", false)?,
        response: list(response_mutations, "response_mutations", false)?,
        request_trailers: list(request_trailers_mutations, "request_trailers_mutations", true)?,
        response_trailers: list(response_trailers_mutations, "response_trailers_mutations", true)?,
    })
}

/// `fixed`: values are taken as they stand.
fn edit(value: rules::HeaderMutation, fixed: bool) -> Result<Edit> {
    use rules::header_mutation::Action;
    match value.action {
        Some(Action::Remove(name)) => {
            let remove = removal(&name).within("remove")?.into_iter().collect();
            Ok(Edit::Change(HeaderMutations { remove, add: Vec::new() }))
        }
        Some(Action::Append(option)) => {
            let add = addition(option).within("append")?;
            if fixed && add.as_ref().is_some_and(|add| matches!(add.value, HeaderTemplate::Format(_))) {
                return Err(Invalid::field("append.header.value", "commands are not supported in trailers"));
            }
            Ok(Edit::Change(HeaderMutations { remove: Vec::new(), add: add.into_iter().collect() }))
        }
        Some(Action::RemoveOnMatch(remove)) => {
            let rules::header_mutation::RemoveOnMatch { key_matcher } = remove;
            let matcher = key_matcher.ok_or_else(|| Invalid::field("remove_on_match.key_matcher", "is missing"))?;
            Ok(Edit::RemoveMatching(string(matcher).within("remove_on_match.key_matcher")?))
        }
        None => Err(Invalid::new("needs remove, append or remove_on_match")),
    }
}
