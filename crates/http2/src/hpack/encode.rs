//! Encoding of header blocks: static names, and a dynamic table for what repeats.
//!
//! A field enters the dynamic table when it is seen a second time, so that request ids and dates do
//! not push out what stays the same. Strings are sent plain: Huffman coding saves a fifth of the bytes
//! at several times the cost.
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::LazyLock;

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, Method, StatusCode};

use super::table::{OVERHEAD, STATIC};

/// Fields longer than this are never indexed.
const MAX_INDEXED: usize = 512;
/// Remembered hashes of fields seen once.
const SEEN: usize = 128;

/// The encoder of one connection.
pub(crate) struct Encoder {
    /// Newest first: hash of the field and its bytes, for comparison.
    entries: VecDeque<Entry>,
    /// Hash of a field to its insertion number; index = inserted - number + 61.
    fields: HashMap<u64, u64, BuildHasherDefault<Identity>>,
    inserted: u64,
    size: usize,
    limit: usize,
    /// A size update to announce at the next block.
    announce: Option<usize>,
    seen: [u32; SEEN],
}

struct Entry {
    hash: u64,
    name: Box<[u8]>,
    value: Box<[u8]>,
}

/// The map's keys are hashes already.
#[derive(Default)]
pub(crate) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

static STATIC_NAMES: LazyLock<HashMap<&'static [u8], u8>> =
    LazyLock::new(|| STATIC.iter().enumerate().rev().map(|(i, (name, _))| (name.as_bytes(), i as u8 + 1)).collect());

/// A quick hash of name and value, eight bytes at a time.
fn hash(name: &[u8], value: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = (name.len() as u64) << 32 | value.len() as u64;
    for part in [name, value] {
        let mut chunks = part.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            state = (state.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(K);
        }
        for byte in chunks.remainder() {
            state = (state.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(K);
        }
    }
    state ^ state >> 29
}

impl Encoder {
    /// `limit` is the peer's SETTINGS_HEADER_TABLE_SIZE; we use 4 KiB of it at most.
    pub(crate) fn new() -> Self {
        Self { entries: VecDeque::new(), fields: HashMap::default(), inserted: 0, size: 0, limit: 4096, announce: None, seen: [0; SEEN] }
    }

    pub(crate) fn peer_limit(&mut self, limit: usize) {
        let limit = limit.min(4096);
        if limit != self.limit {
            self.limit = limit;
            self.evict_to(limit);
            self.announce = Some(limit);
        }
    }

    /// Call once before the fields of a block.
    pub(crate) fn begin(&mut self, out: &mut BytesMut) {
        if let Some(limit) = self.announce.take() {
            integer(out, 0x20, 5, limit);
        }
    }

    pub(crate) fn status(&mut self, status: StatusCode, out: &mut BytesMut) {
        match status.as_u16() {
            200 => out.put_u8(0x88),
            204 => out.put_u8(0x89),
            206 => out.put_u8(0x8a),
            304 => out.put_u8(0x8b),
            400 => out.put_u8(0x8c),
            404 => out.put_u8(0x8d),
            500 => out.put_u8(0x8e),
            _ => self.field(b":status", status.as_str().as_bytes(), false, out),
        }
    }

    pub(crate) fn method(&mut self, method: &Method, out: &mut BytesMut) {
        match *method {
            Method::GET => out.put_u8(0x82),
            Method::POST => out.put_u8(0x83),
            _ => self.field(b":method", method.as_str().as_bytes(), false, out),
        }
    }

    pub(crate) fn scheme(&mut self, scheme: &[u8], out: &mut BytesMut) {
        match scheme {
            b"http" => out.put_u8(0x86),
            b"https" => out.put_u8(0x87),
            _ => self.field(b":scheme", scheme, false, out),
        }
    }

    /// Any field whose name is known to be lower case: pseudo headers and fixed names.
    pub(crate) fn pseudo(&mut self, name: &[u8], value: &[u8], out: &mut BytesMut) {
        if name == b":path" && value == b"/" {
            out.put_u8(0x84);
        } else {
            self.field(name, value, false, out);
        }
    }

    pub(crate) fn headers(&mut self, headers: &HeaderMap, out: &mut BytesMut) {
        for (name, value) in headers {
            self.field(name.as_str().as_bytes(), value.as_bytes(), value.is_sensitive(), out);
        }
    }

    fn field(&mut self, name: &[u8], value: &[u8], sensitive: bool, out: &mut BytesMut) {
        if sensitive || name.len() + value.len() > MAX_INDEXED {
            return literal(if sensitive { 0x10 } else { 0x00 }, 4, name, value, out);
        }
        let hash = hash(name, value);
        if let Some(number) = self.fields.get(&hash) {
            let position = (self.inserted - number) as usize;
            if self.entries.get(position).is_some_and(|e| *e.name == *name && *e.value == *value) {
                return integer(out, 0x80, 7, position + 62);
            }
        }
        let mark = (hash >> 32) as u32;
        let seen = std::mem::replace(&mut self.seen[hash as usize % SEEN], mark) == mark;
        if seen && self.insert(hash, name, value) {
            literal(0x40, 6, name, value, out);
        } else {
            literal(0x00, 4, name, value, out);
        }
    }

    fn insert(&mut self, hash: u64, name: &[u8], value: &[u8]) -> bool {
        let size = name.len() + value.len() + OVERHEAD;
        if size > self.limit {
            return false;
        }
        self.evict_to(self.limit - size);
        self.inserted += 1;
        self.size += size;
        self.fields.insert(hash, self.inserted);
        self.entries.push_front(Entry { hash, name: name.into(), value: value.into() });
        true
    }

    fn evict_to(&mut self, size: usize) {
        while self.size > size {
            let Some(entry) = self.entries.pop_back() else { return };
            self.size -= entry.name.len() + entry.value.len() + OVERHEAD;
            let number = self.inserted - self.entries.len() as u64;
            if self.fields.get(&entry.hash) == Some(&number) {
                self.fields.remove(&entry.hash);
            }
        }
    }
}

fn literal(pattern: u8, bits: u8, name: &[u8], value: &[u8], out: &mut BytesMut) {
    match STATIC_NAMES.get(name) {
        Some(index) => integer(out, pattern, bits, usize::from(*index)),
        None => {
            out.put_u8(pattern);
            string(name, out);
        }
    }
    string(value, out);
}

fn string(text: &[u8], out: &mut BytesMut) {
    integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

fn integer(out: &mut BytesMut, pattern: u8, bits: u8, value: usize) {
    let mask = (1usize << bits) - 1;
    if value < mask {
        return out.put_u8(pattern | value as u8);
    }
    out.put_u8(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::super::Decoder;
    use super::*;

    fn encode(encoder: &mut Encoder, headers: &HeaderMap) -> BytesMut {
        let mut out = BytesMut::new();
        encoder.begin(&mut out);
        encoder.headers(headers, &mut out);
        out
    }

    #[test]
    fn what_repeats_shrinks_to_one_byte_a_field_from_the_third_time() {
        let mut encoder = Encoder::new();
        let headers: HeaderMap = [("x-tenant", "blue"), ("user-agent", "curl/8.0")]
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .into_iter()
            .collect();
        let sizes: Vec<usize> = (0..3).map(|_| encode(&mut encoder, &headers).len()).collect();
        assert_eq!(sizes[2], 2, "{sizes:?}");
    }

    #[test]
    fn a_smaller_table_is_announced_and_obeyed() {
        let mut encoder = Encoder::new();
        let headers: HeaderMap = [(HeaderName::from_static("x"), HeaderValue::from_static("1"))].into_iter().collect();
        encode(&mut encoder, &headers);
        encode(&mut encoder, &headers);
        encoder.peer_limit(0);
        let block = encode(&mut encoder, &headers);
        assert_eq!(block[0], 0x20);
        assert_eq!(Decoder::new(4096, 4096, 10).decode(&block).unwrap().headers, headers);
    }

    proptest! {
        /// Whatever sequence of header sets is sent, the decoder reads the same, over one table.
        #[test]
        fn decoding_undoes_encoding(sets in prop::collection::vec(prop::collection::vec((0usize..20, "[ -~]{0,90}"), 0..12), 1..20)) {
            let mut encoder = Encoder::new();
            let mut decoder = Decoder::new(4096, 1 << 20, 1000);
            for set in sets {
                let mut headers = HeaderMap::new();
                for (name, value) in set {
                    let name = HeaderName::from_bytes(format!("x-{name}").as_bytes()).unwrap();
                    headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
                }
                let block = encode(&mut encoder, &headers);
                prop_assert_eq!(decoder.decode(&block).unwrap().headers, headers);
            }
        }

        #[test]
        fn the_decoder_survives_any_bytes(input in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new(4096, 4096, 100);
            let _ = decoder.decode(&input);
            let _ = decoder.decode(&input);
        }
    }
}
