//! The static and dynamic tables of HPACK (RFC 7541, sections 2.3 and appendix A).
use std::collections::VecDeque;
use std::sync::LazyLock;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::Field;

/// Entries 1 to 61 as name and value.
pub(crate) const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

static STATIC_ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| STATIC.iter().map(|(n, v)| Entry::new(parsed(n, v), |_| 0)).collect());

/// A field with what is known about it before anybody sends it again.
pub(crate) struct Entry {
    pub(crate) field: Field,
    /// As limits and tables count it.
    pub(crate) size: usize,
    pub(crate) sort: Sort,
    /// What [`crate::Config::mark`] says of the name.
    pub(crate) mark: u8,
}

impl Entry {
    pub(crate) fn new(field: Field, mark: fn(&[u8]) -> u8) -> Self {
        let mark = if let Field::Header(name, _) = &field { mark(name.as_str().as_bytes()) } else { 0 };
        Self { size: field.size(), sort: Sort::of(&field), mark, field }
    }
}

/// What a message makes of a field beside keeping it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Pseudo,
    Plain,
    /// Of one connection, which HTTP/2 has other means for (RFC 9113, section 8.2.2).
    Forbidden,
    /// `te: trailers`, the only one allowed.
    Te,
    Length,
    Host,
    Expect,
    Cookie,
}

impl Sort {
    fn of(field: &Field) -> Self {
        let Field::Header(name, value) = field else { return Self::Pseudo };
        match name.as_str() {
            "connection" | "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection" => Self::Forbidden,
            "te" if value == "trailers" => Self::Te,
            "te" => Self::Forbidden,
            "content-length" => Self::Length,
            "host" => Self::Host,
            "expect" => Self::Expect,
            "cookie" => Self::Cookie,
            _ => Self::Plain,
        }
    }
}

fn parsed(name: &str, value: &'static str) -> Field {
    let text = || bytes::Bytes::from_static(value.as_bytes());
    match name {
        ":authority" => Field::Authority(text()),
        ":path" => Field::Path(text()),
        ":scheme" => Field::Scheme(text()),
        ":method" => Field::Method(Method::from_bytes(value.as_bytes()).unwrap_or_default()),
        ":status" => Field::Status(StatusCode::from_bytes(value.as_bytes()).unwrap_or_default()),
        name => Field::Header(HeaderName::from_bytes(name.as_bytes()).unwrap_or(http::header::VIA), HeaderValue::from_static(value)),
    }
}

/// RFC 7541, section 4.1: what an entry counts beside its bytes.
pub(crate) const OVERHEAD: usize = 32;

/// The decoder's view: the static table and what the peer had indexed.
pub(crate) struct DecoderTable {
    /// Newest first.
    dynamic: VecDeque<Entry>,
    size: usize,
    /// Limit of the moment, set by the peer within [`Self::allowed`].
    limit: usize,
    /// What our SETTINGS allow.
    allowed: usize,
}

impl DecoderTable {
    pub(crate) fn new(allowed: usize) -> Self {
        Self { dynamic: VecDeque::new(), size: 0, limit: allowed.min(4096), allowed }
    }

    /// Whether the index stands for an entry whose mark nobody has set.
    pub(crate) fn is_fixed(index: usize) -> bool {
        index <= STATIC.len()
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Entry> {
        match index.checked_sub(STATIC.len() + 1) {
            Some(place) => self.dynamic.get(place),
            None => STATIC_ENTRIES.get(index.checked_sub(1)?),
        }
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        self.evict_to(self.limit.saturating_sub(entry.size));
        if entry.size <= self.limit {
            self.size += entry.size;
            self.dynamic.push_front(entry);
        }
    }

    /// False when the peer asks for more than we allow.
    pub(crate) fn resize(&mut self, limit: usize) -> bool {
        if limit > self.allowed {
            return false;
        }
        self.limit = limit;
        self.evict_to(limit);
        true
    }

    fn evict_to(&mut self, size: usize) {
        while self.size > size {
            let Some(entry) = self.dynamic.pop_back() else { return };
            self.size -= entry.size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_static_table_is_parsed_as_written() {
        assert!(matches!(&STATIC_ENTRIES[1].field, Field::Method(m) if m == Method::GET));
        assert!(matches!(&STATIC_ENTRIES[7].field, Field::Status(s) if *s == StatusCode::OK));
        for (entry, (name, _)) in STATIC_ENTRIES.iter().zip(STATIC) {
            if let Field::Header(parsed, _) = &entry.field {
                assert_eq!(parsed.as_str(), name);
            }
        }
    }

    #[test]
    fn old_entries_make_room_and_an_entry_too_large_empties_the_table() {
        let mut table = DecoderTable::new(100);
        let entry = |v: &'static str, size| Entry { size, ..Entry::new(Field::Path(bytes::Bytes::from_static(v.as_bytes())), |_| 0) };
        let path = |table: &DecoderTable, index| match &table.get(index)?.field {
            Field::Path(path) => Some(path.clone()),
            _ => None,
        };
        table.insert(entry("/a", 45));
        table.insert(entry("/b", 45));
        table.insert(entry("/c", 45));
        assert_eq!(path(&table, 62).unwrap(), "/c");
        assert_eq!(path(&table, 63).unwrap(), "/b");
        assert!(table.get(64).is_none() && table.get(0).is_none());
        table.insert(entry("/d", 101));
        assert!(table.get(62).is_none());
        assert!(!table.resize(101));
    }
}
