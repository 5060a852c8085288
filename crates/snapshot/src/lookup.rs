//! From a request's host to its virtual host, and on to its route.
use std::borrow::Cow;
use std::sync::Arc;

use crate::metadata::Metadata;
use crate::route::{RequestHead, Route, RouteTable, VirtualHost};

/// Hosts up to this length are lower-cased on the stack.
const SHORT: usize = 255;

impl RouteTable {
    /// The virtual host and route of a request. `metadata` is what filters found out about it so far, and `roll` any
    /// uniformly distributed number: one per request.
    pub fn find(&self, head: &RequestHead<'_>, metadata: Option<&Metadata>, roll: u64) -> Option<(&VirtualHost, &Arc<Route>)> {
        let host = self.virtual_host_for(head)?;
        Some((host, self.route_in(host, head, metadata, roll)?))
    }

    /// The virtual host of a request.
    pub fn virtual_host_for(&self, head: &RequestHead<'_>) -> Option<&VirtualHost> {
        self.virtual_host(self.host_of(head)?)
    }

    /// The route of a request in its virtual host, as [`RouteTable::find`] does.
    pub fn route_in<'a>(
        &self,
        host: &'a VirtualHost,
        head: &RequestHead<'_>,
        metadata: Option<&Metadata>,
        roll: u64,
    ) -> Option<&'a Arc<Route>> {
        let path = head.path();
        let path = if self.ignore_path_parameters { without_parameters(path) } else { Cow::Borrowed(path) };
        host.routes.iter().find(|r| r.matches.check(head, &path, metadata, roll).is_ok())
    }

    /// What the virtual host of a request is found by.
    pub fn host_of<'a>(&self, head: &RequestHead<'a>) -> Option<&'a str> {
        let named = |name| head.headers.get(name).and_then(|v| v.to_str().ok());
        let authority = self.vhost_header.as_ref().map_or(Some(head.authority), named)?;
        Some(if self.ignore_port_in_host { without_port(authority) } else { authority })
    }

    /// The virtual host of an authority (Envoy route_components.proto `domains`): its exact domain, else
    /// the longest `*suffix`, else the longest `prefix*`, else `*`. Case does not count.
    pub fn virtual_host(&self, authority: &str) -> Option<&VirtualHost> {
        let host = if self.ignore_port_in_host { without_port(authority) } else { authority };
        self.virtual_hosts.get(self.search_any_case(host)? as usize)
    }

    fn search_any_case(&self, host: &str) -> Option<u32> {
        if host.bytes().any(|b| b.is_ascii_uppercase()) { self.search_lowered(host) } else { self.search(host) }
    }

    fn search_lowered(&self, host: &str) -> Option<u32> {
        let mut buffer = [0u8; SHORT];
        match buffer.get_mut(..host.len()) {
            Some(lower) => {
                lower.copy_from_slice(host.as_bytes());
                lower.make_ascii_lowercase();
                self.search(std::str::from_utf8(lower).ok()?)
            }
            None => self.search(&host.to_ascii_lowercase()),
        }
    }

    fn search(&self, host: &str) -> Option<u32> {
        if let Some(index) = self.exact.get(host) {
            return Some(*index);
        }
        let suffix = |length: usize| host.len().checked_sub(length).and_then(|at| host.as_bytes().get(at..));
        let prefix = |length: usize| host.as_bytes().get(..length);
        longest(&self.suffixes, host.len(), suffix).or_else(|| longest(&self.prefixes, host.len(), prefix)).or(self.catch_all)
    }
}

/// The longest entry that equals the part of its length. Entries are sorted by length, longest first,
/// then by text, so each length that occurs costs two binary searches, however many entries it has.
fn longest<'a>(entries: &[(Box<str>, u32)], host_length: usize, part: impl Fn(usize) -> Option<&'a [u8]>) -> Option<u32> {
    // A wildcard stands for at least one character.
    let mut rest = entries.get(entries.partition_point(|(text, _)| text.len() >= host_length)..)?;
    while let Some((first, _)) = rest.first() {
        let length = first.len();
        let (group, shorter) = rest.split_at(rest.partition_point(|(text, _)| text.len() == length));
        if let Some(wanted) = part(length)
            && let Ok(found) = group.binary_search_by(|(text, _)| text.as_bytes().cmp(wanted))
        {
            return group.get(found).map(|(_, index)| *index);
        }
        rest = shorter;
    }
    None
}

/// A path without what follows a `;` in any of its parts.
fn without_parameters(path: &str) -> Cow<'_, str> {
    if !path.contains(';') {
        return Cow::Borrowed(path);
    }
    let parts: Vec<&str> = path.split('/').map(|part| part.split(';').next().unwrap_or(part)).collect();
    Cow::Owned(parts.join("/"))
}

/// The host without its port, if what follows the last colon is one. Leaves `[::1]` and `::1` alone.
pub fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (host.ends_with(']') || !host.contains(':')) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests;
