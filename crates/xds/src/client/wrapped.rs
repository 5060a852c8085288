//! One resource of a state-of-the-world response: bare, or wrapped in a `Resource` that gives it a name and a time to live.
use std::time::Duration;

use lateen_proto::envoy::service::discovery::v3 as proto;
use lateen_proto::{Any, any};

use super::ttl;
use crate::resource::name_inside;

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) name: String,
    /// None in a wrapper that only tells how long the resource lives.
    pub(super) body: Option<Any>,
    pub(super) ttl: Result<Option<Duration>, String>,
}

impl Sent {
    pub(super) fn open(sent: Any) -> Result<Self, String> {
        if !any::is::<proto::Resource>(&sent) {
            return Ok(Self { name: named(&sent)?, body: Some(sent), ttl: Ok(None) });
        }
        let wrapper: proto::Resource = any::open(&sent).map_err(|e| e.to_string())?;
        let ttl = ttl::of(&wrapper);
        let name = match &wrapper.resource {
            Some(body) if wrapper.name.is_empty() => named(body)?,
            _ => wrapper.name,
        };
        Ok(Self { name, body: wrapper.resource, ttl })
    }
}

fn named(body: &Any) -> Result<String, String> {
    name_inside(body).ok_or_else(|| format!("is a {} without a name, or does not decode", body.type_url))
}
