//! Encoding of header blocks: static names, and a dynamic table for what repeats.
//!
//! A field enters the dynamic table when it is seen a second time, so that request ids and dates do
//! not push out what stays the same. Strings are sent plain: Huffman coding saves a fifth of the bytes
//! at several times the cost.
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::LazyLock;

use http::{HeaderMap, Method, StatusCode};

use super::table::{OVERHEAD, STATIC};

/// Fields longer than this are never indexed.
const MAX_INDEXED: usize = 512;
/// Remembered hashes of fields seen once.
const SEEN: usize = 128;
/// Places of a block whose fields are remembered; the later half is that of trailers.
const PLACES: usize = 64;

/// The encoder of one connection.
pub(crate) struct Encoder {
    /// Newest first.
    entries: VecDeque<Entry>,
    /// Hash of a field to its insertion number; index = inserted - number + 62.
    fields: HashMap<u64, u64, BuildHasherDefault<Identity>>,
    inserted: u64,
    size: usize,
    limit: usize,
    /// A size update to announce at the next block.
    announce: Option<usize>,
    seen: [u32; SEEN],
    /// What recent blocks had in each place, by insertion number: messages on a connection resemble each other, and a
    /// comparison costs less than a hash.
    before: [u64; PLACES],
    place: usize,
}

struct Entry {
    hash: u64,
    name: Box<[u8]>,
    value: Box<[u8]>,
}

impl Entry {
    fn is(&self, name: &[u8], value: &[u8]) -> bool {
        same(&self.name, name) && same(&self.value, value)
    }
}

/// Equality without a call for short texts, as names are.
#[inline]
fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let (Some((a, rest)), Some((b, others))) = (one.split_first_chunk::<8>(), other.split_first_chunk::<8>()) else {
        return one.iter().zip(other).all(|(a, b)| a == b);
    };
    // The last eight bytes, which may overlap the first.
    if u64::from_le_bytes(*a) != u64::from_le_bytes(*b) || one.last_chunk::<8>() != other.last_chunk::<8>() {
        return false;
    }
    one.len() <= 16 || rest == others
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

/// Static names by a hash of their ends: the index of each, or 0, with collisions in the places after.
static STATIC_NAMES: LazyLock<[u8; 128]> = LazyLock::new(|| {
    let mut places = [0; 128];
    for (index, (name, _)) in STATIC.iter().enumerate() {
        let name = name.as_bytes();
        let mut place = ends(name);
        while let Some(taken) = STATIC.get(usize::from(places[place]).wrapping_sub(1))
            && taken.0.as_bytes() != name
        {
            place = (place + 1) % places.len();
        }
        if places[place] == 0 {
            places[place] = index as u8 + 1;
        }
    }
    places
});

fn ends(name: &[u8]) -> usize {
    let at = |place: usize| name.get(place).copied().map_or(0, usize::from);
    (name.len() * 7 + at(0) * 5 + at(name.len() / 2) * 17 + at(name.len().wrapping_sub(1)) * 3) % 128
}

/// The first entry of the static table with this name.
fn static_name(name: &[u8]) -> Option<usize> {
    let places = &*STATIC_NAMES;
    let mut place = ends(name);
    loop {
        let index = usize::from(*places.get(place)?);
        let (known, _) = STATIC.get(index.checked_sub(1)?)?;
        if same(known.as_bytes(), name) {
            return Some(index);
        }
        place = (place + 1) % places.len();
    }
}

/// A quick hash of name and value, sixteen bytes at a time.
fn hash(name: &[u8], value: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b ^ K);
        product as u64 ^ (product >> 64) as u64
    };
    let mut state = ((name.len() as u64) << 32 | value.len() as u64) ^ K.rotate_left(32);
    for part in [name, value] {
        let mut rest = part;
        while let Some((chunk, after)) = rest.split_first_chunk::<16>() {
            let (first, last) = chunk.split_at(8);
            state = fold(word(first) ^ state, word(last));
            rest = after;
        }
        if !rest.is_empty() {
            // Up to eight bytes from either end, which may overlap.
            let (first, last) = (rest.get(..8).unwrap_or(rest), rest.get(rest.len().saturating_sub(8)..).unwrap_or(rest));
            state = fold(word(first) ^ state, word(last));
        }
    }
    state ^ state >> 32
}

#[inline]
fn word(bytes: &[u8]) -> u64 {
    if let Ok(eight) = bytes.try_into() {
        return u64::from_le_bytes(eight);
    }
    bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

impl Encoder {
    /// `limit` is the peer's SETTINGS_HEADER_TABLE_SIZE; we use 4 KiB of it at most.
    pub(crate) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            fields: HashMap::default(),
            inserted: 0,
            size: 0,
            limit: 4096,
            announce: None,
            seen: [0; SEEN],
            before: [0; PLACES],
            place: 0,
        }
    }

    pub(crate) fn peer_limit(&mut self, limit: usize) {
        let limit = limit.min(4096);
        if limit != self.limit {
            self.limit = limit;
            self.evict_to(limit);
            self.announce = Some(limit);
        }
    }

    /// Call once before the fields of a request or response.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        self.place = 0;
        if let Some(limit) = self.announce.take() {
            integer(out, 0x20, 5, limit);
        }
    }

    /// Call once before trailers.
    pub(crate) fn begin_trailers(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        self.place = PLACES / 2;
    }

    pub(crate) fn status(&mut self, status: StatusCode, out: &mut Vec<u8>) {
        match status.as_u16() {
            200 => out.push(0x88),
            204 => out.push(0x89),
            206 => out.push(0x8a),
            304 => out.push(0x8b),
            400 => out.push(0x8c),
            404 => out.push(0x8d),
            500 => out.push(0x8e),
            _ => self.field(b":status", status.as_str().as_bytes(), false, out),
        }
    }

    pub(crate) fn method(&mut self, method: &Method, out: &mut Vec<u8>) {
        match *method {
            Method::GET => out.push(0x82),
            Method::POST => out.push(0x83),
            _ => self.field(b":method", method.as_str().as_bytes(), false, out),
        }
    }

    pub(crate) fn scheme(&mut self, scheme: &[u8], out: &mut Vec<u8>) {
        match scheme {
            b"http" => out.push(0x86),
            b"https" => out.push(0x87),
            _ => self.field(b":scheme", scheme, false, out),
        }
    }

    /// Any field whose name is known to be lower case: pseudo headers and fixed names.
    pub(crate) fn pseudo(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        if name == b":path" && value == b"/" {
            out.push(0x84);
        } else {
            self.field(name, value, false, out);
        }
    }

    pub(crate) fn headers(&mut self, headers: &HeaderMap, out: &mut Vec<u8>) {
        for (name, value) in headers {
            self.field(name.as_str().as_bytes(), value.as_bytes(), value.is_sensitive(), out);
        }
    }

    fn field(&mut self, name: &[u8], value: &[u8], sensitive: bool, out: &mut Vec<u8>) {
        if sensitive || name.len() + value.len() > MAX_INDEXED {
            return literal(if sensitive { 0x10 } else { 0x00 }, 4, name, value, out);
        }
        let place = self.place;
        self.place += 1;
        if let Some(number) = self.before.get(place)
            && let Some(position) = self.position(*number, name, value)
        {
            return integer(out, 0x80, 7, position + 62);
        }
        let hash = hash(name, value);
        let number = self.fields.get(&hash).copied().unwrap_or(0);
        if let Some(position) = self.position(number, name, value) {
            self.remember(place, number);
            return integer(out, 0x80, 7, position + 62);
        }
        let mark = (hash >> 32) as u32;
        let seen = std::mem::replace(&mut self.seen[hash as usize % SEEN], mark) == mark;
        if seen && self.insert(hash, name, value) {
            self.remember(place, self.inserted);
            literal(0x40, 6, name, value, out);
        } else {
            literal(0x00, 4, name, value, out);
        }
    }

    /// How far from the newest the entry with this number is, if it is still there and is this field.
    #[inline]
    fn position(&self, number: u64, name: &[u8], value: &[u8]) -> Option<usize> {
        let position = (self.inserted - number) as usize;
        self.entries.get(position).is_some_and(|entry| entry.is(name, value)).then_some(position)
    }

    fn remember(&mut self, place: usize, number: u64) {
        if let Some(before) = self.before.get_mut(place) {
            *before = number;
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

fn literal(pattern: u8, bits: u8, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    match static_name(name) {
        Some(index) => integer(out, pattern, bits, index),
        None => {
            out.push(pattern);
            string(name, out);
        }
    }
    string(value, out);
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

#[inline]
fn integer(out: &mut Vec<u8>, pattern: u8, bits: u8, value: usize) {
    let mask = (1usize << bits) - 1;
    if value < mask {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::super::{Block, Decoder};
    use super::*;

    fn encode(encoder: &mut Encoder, headers: &HeaderMap) -> Vec<u8> {
        let mut out = Vec::new();
        encoder.begin(&mut out);
        encoder.headers(headers, &mut out);
        out
    }

    fn decode(decoder: &mut Decoder, block: &[u8]) -> HeaderMap {
        let mut decoded = Block::default();
        decoder.decode(block, &mut decoded).unwrap();
        decoded.headers
    }

    #[test]
    fn every_static_name_is_found_at_its_first_index_and_no_other_is() {
        for (name, _) in STATIC {
            let first = STATIC.iter().position(|(other, _)| *other == name).unwrap();
            assert_eq!(static_name(name.as_bytes()), Some(first + 1), "{name}");
        }
        for name in ["", "a", ":pathe", "x-request-id", "content-lengti", "aczept"] {
            assert_eq!(static_name(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn fields_that_change_place_or_between_them_are_still_found() {
        let mut encoder = Encoder::new();
        let headers = |values: [(&'static str, &'static str); 3]| -> HeaderMap {
            values.map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).into_iter().collect()
        };
        let (one, other) = (headers([("x-a", "1"), ("x-b", "2"), ("x-c", "3")]), headers([("x-c", "3"), ("x-a", "1"), ("x-b", "2")]));
        for _ in 0..2 {
            encode(&mut encoder, &one);
        }
        assert_eq!((encode(&mut encoder, &other).len(), encode(&mut encoder, &one).len()), (3, 3));
        let mut out = Vec::new();
        encoder.begin_trailers(&mut out);
        encoder.headers(&other, &mut out);
        assert_eq!((out.len(), encode(&mut encoder, &one).len()), (3, 3));
    }

    proptest! {
        #[test]
        fn equal_is_what_a_comparison_says(one in prop::collection::vec(0u8..2, 0..40), other in prop::collection::vec(0u8..2, 0..40)) {
            prop_assert_eq!(same(&one, &other), one == other);
            prop_assert!(same(&one, &one.clone()));
            for place in 0..one.len() {
                let mut changed = one.clone();
                changed[place] ^= 1;
                prop_assert!(!same(&one, &changed), "{}", place);
                prop_assert_ne!(hash(&one, b""), hash(&changed, b""));
            }
        }
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
        assert_eq!(decode(&mut Decoder::new(4096, 4096, 10, |_| 0), &block), headers);
    }

    proptest! {
        /// Whatever sequence of header sets is sent, the decoder reads the same, over one table.
        #[test]
        fn decoding_undoes_encoding(sets in prop::collection::vec(prop::collection::vec((0usize..20, "[ -~]{0,90}"), 0..12), 1..20)) {
            let mut encoder = Encoder::new();
            let mut decoder = Decoder::new(4096, 1 << 20, 1000, |_| 0);
            for set in sets {
                let mut headers = HeaderMap::new();
                for (name, value) in set {
                    let name = HeaderName::from_bytes(format!("x-{name}").as_bytes()).unwrap();
                    headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
                }
                let block = encode(&mut encoder, &headers);
                prop_assert_eq!(decode(&mut decoder, &block), headers);
            }
        }

        #[test]
        fn the_decoder_survives_any_bytes(input in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new(4096, 4096, 100, |_| 0);
            let _ = decoder.decode(&input, &mut Block::default());
            let _ = decoder.decode(&input, &mut Block::default());
        }
    }
}
