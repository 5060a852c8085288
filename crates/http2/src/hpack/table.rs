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

static STATIC_FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| STATIC.iter().map(|(n, v)| parsed(n, v)).collect());

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
    dynamic: VecDeque<(Field, usize)>,
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

    pub(crate) fn get(&self, index: usize) -> Option<&Field> {
        match index {
            0 => None,
            1..=61 => STATIC_FIELDS.get(index - 1),
            _ => self.dynamic.get(index - 62).map(|(field, _)| field),
        }
    }

    /// `size` is the length of name and value plus [`OVERHEAD`].
    pub(crate) fn insert(&mut self, field: Field, size: usize) {
        self.evict_to(self.limit.saturating_sub(size));
        if size <= self.limit {
            self.size += size;
            self.dynamic.push_front((field, size));
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
            let Some((_, entry)) = self.dynamic.pop_back() else { return };
            self.size -= entry;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_static_table_is_parsed_as_written() {
        assert!(matches!(&STATIC_FIELDS[1], Field::Method(m) if m == Method::GET));
        assert!(matches!(&STATIC_FIELDS[7], Field::Status(s) if *s == StatusCode::OK));
        for (field, (name, _)) in STATIC_FIELDS.iter().zip(STATIC) {
            if let Field::Header(parsed, _) = field {
                assert_eq!(parsed.as_str(), name);
            }
        }
    }

    #[test]
    fn old_entries_make_room_and_an_entry_too_large_empties_the_table() {
        let mut table = DecoderTable::new(100);
        let field = |v: &'static str| Field::Path(bytes::Bytes::from_static(v.as_bytes()));
        table.insert(field("/a"), 45);
        table.insert(field("/b"), 45);
        table.insert(field("/c"), 45);
        assert!(matches!(table.get(62), Some(Field::Path(p)) if p == "/c"));
        assert!(matches!(table.get(63), Some(Field::Path(p)) if p == "/b"));
        assert!(table.get(64).is_none());
        table.insert(field("/d"), 101);
        assert!(table.get(62).is_none());
        assert!(!table.resize(101));
    }
}
