//! Messages and members of a `oneof` by the paths that they have in Rust.
use std::collections::HashMap;

use prost_reflect::{DescriptorPool, MessageDescriptor, OneofDescriptor};

/// Every message and `oneof` under what is left of its path without case and underscores, which both spellings share.
pub(crate) struct Names {
    messages: HashMap<String, MessageDescriptor>,
    oneofs: HashMap<String, OneofDescriptor>,
}

impl Names {
    pub(crate) fn new(pool: &DescriptorPool) -> Self {
        let messages: HashMap<_, _> = pool.all_messages().map(|m| (folded(m.full_name()), m)).collect();
        let oneofs = messages.values().flat_map(|m| m.oneofs().map(|o| (folded(o.full_name()), o)).collect::<Vec<_>>());
        Self { oneofs: oneofs.collect(), messages }
    }

    pub(crate) fn message(&self, path: &[String]) -> Option<&MessageDescriptor> {
        self.messages.get(&folded(&path.join(".")))
    }

    /// The `oneof`, and the name of the member that the last segment stands for.
    pub(crate) fn member(&self, path: &[String]) -> Option<(&OneofDescriptor, String)> {
        let (variant, owner) = path.split_last()?;
        let oneof = self.oneofs.get(&folded(&owner.join(".")))?;
        let field = oneof.fields().find(|f| folded(f.name()) == folded(variant))?;
        Some((oneof, field.name().to_owned()))
    }

    /// The message that a member of a `oneof` holds.
    pub(crate) fn message_of_member(&self, path: &[String]) -> Option<String> {
        let (oneof, name) = self.member(path)?;
        let field = oneof.fields().find(|f| f.name() == name)?;
        field.kind().as_message().map(|m| m.full_name().to_owned())
    }
}

fn folded(path: &str) -> String {
    path.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

/// The fields as the Rust type has them: a `oneof` is one.
pub(crate) fn rust_fields(message: &MessageDescriptor) -> Vec<String> {
    let plain = message.fields().filter(|f| f.containing_oneof().is_none_or(|o| o.is_synthetic())).map(|f| f.name().to_owned());
    plain.chain(real_oneofs(message).map(|o| o.name().to_owned())).collect()
}

/// What a field of the Rust type stands for: itself, or the members of the `oneof`.
pub(crate) fn members(message: &MessageDescriptor, field: &str) -> Vec<String> {
    match real_oneofs(message).find(|o| o.name() == field) {
        Some(oneof) => oneof.fields().map(|f| f.name().to_owned()).collect(),
        None => vec![field.to_owned()],
    }
}

pub(crate) fn real_oneofs(message: &MessageDescriptor) -> impl Iterator<Item = OneofDescriptor> {
    message.oneofs().filter(|o| !o.is_synthetic())
}
