//! One named resource: what arrived is decoded and compiled into the version that warms, or remembered as a failure.
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use indexmap::IndexMap;
use lateen_proto::{Any, any};
use prost::{Message, Name};

use super::{ListenerProto, Update};
use crate::compile::invalid::{Invalid, Result};
use crate::compile::record::{Failure, Listed, Origin, Record};
use crate::compile::warming::Versions;

/// One named resource of a type, with its versions.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) origin: Origin,
    pub(crate) versions: Versions<T>,
    pub(crate) failure: Option<Box<Failure>>,
}

impl<T> Entry<T> {
    pub(super) fn new(origin: Origin) -> Self {
        Self { origin, versions: Versions::default(), failure: None }
    }

    pub(super) fn listed<'a>(&'a self, name: &'a str) -> Listed<'a> {
        Listed {
            name,
            origin: self.origin,
            active: self.versions.active.as_ref().map(|v| &v.record),
            warming: self.versions.warming.as_ref().map(|v| &v.record),
            failure: self.failure.as_deref(),
            unusable_files: None,
        }
    }

    /// Decodes and compiles an update into the warming version; remembers a failure.
    pub(super) fn take<M: Message + Name + Default + Send>(
        &mut self,
        update: Update,
        origin: Origin,
        now: Instant,
        compile: impl FnOnce(M, &str) -> Result<T>,
    ) -> Result<()> {
        self.take_sent(update, origin, now, |body, name| compile(decode(body)?, name))
    }

    /// [`Self::take`] for what is not decoded all at once.
    pub(super) fn take_sent(
        &mut self,
        update: Update,
        origin: Origin,
        now: Instant,
        compile: impl FnOnce(&Any, &str) -> Result<T>,
    ) -> Result<()> {
        let Update { name, version, body } = update;
        let record = Record { body: Arc::new(body), version: version.into(), updated: SystemTime::now() };
        let result = if self.origin == Origin::Static && origin == Origin::Dynamic {
            Err(Invalid::new("is part of the bootstrap and cannot be replaced; rename one of the two"))
        } else if self.versions.newest().is_some_and(|v| v.record.body == record.body) {
            // The same bytes again: nothing to do, and pointers that tell what changed stay equal.
            self.failure = None;
            return Ok(());
        } else {
            compile(&record.body, &name)
        };
        match result {
            Ok(value) => {
                self.failure = None;
                self.versions.warm(value, record, now);
                Ok(())
            }
            Err(invalid) => {
                let Record { body, version, updated } = record;
                self.failure = Some(Box::new(Failure { body, version, at: updated, reason: invalid.to_string() }));
                Err(invalid)
            }
        }
    }
}

pub(super) fn decode<M: Message + Name + Default + Send>(body: &Any) -> Result<M> {
    any::open_apart(body).map_err(|e| Invalid::new(e.to_string()))
}

pub(super) fn same_name(inside: &str, outside: &str) -> Result<()> {
    if inside == outside { Ok(()) } else { Err(Invalid::field("name", format!("is `{inside}`, but the resource was sent as `{outside}`"))) }
}

/// Every named resource keeps its name in field 1.
pub(super) fn name_inside(body: &Any) -> String {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(body.value.as_slice()).map(|n| n.name).unwrap_or_default()
}

/// What a listener of the bootstrap that has no name is called: by its place in it. Anything else needs a name.
pub(super) fn name_by_place(body: &Any, place: usize) -> String {
    if any::is::<ListenerProto>(body) { format!("static_resources.listeners[{place}]") } else { String::new() }
}

pub(super) fn remove_dynamic<T>(entries: &mut IndexMap<Arc<str>, Entry<T>>, name: &str) -> bool {
    match entries.get_mut(name) {
        Some(entry) if entry.origin == Origin::Dynamic => entries.shift_remove(name).is_some(),
        Some(entry) => {
            // What was refused in its place is gone.
            entry.failure = None;
            false
        }
        None => false,
    }
}

pub(super) fn forget_if_empty<T>(
    taken: Result<()>,
    entries: &mut IndexMap<Arc<str>, Entry<T>>,
    empty: impl Fn(&Entry<T>) -> bool,
) -> Result<()> {
    if taken.is_err() {
        entries.retain(|_, e| !empty(e));
    }
    taken
}
