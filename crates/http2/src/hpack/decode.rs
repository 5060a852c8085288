//! Decoding of header blocks into parsed fields, with the decoded size bounded.
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use lateen_core::recycle::maps;

use super::table::{DecoderTable, Entry, OVERHEAD, Sort};
use super::{Field, huffman};

/// What a header block held.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) method: Option<Method>,
    pub(crate) scheme: Option<Bytes>,
    pub(crate) authority: Option<Bytes>,
    pub(crate) path: Option<Bytes>,
    pub(crate) protocol: Option<Bytes>,
    pub(crate) status: Option<StatusCode>,
    /// Without `content-length` and `te`, which the next two stand for.
    pub(crate) headers: HeaderMap,
    pub(crate) length: Option<u64>,
    /// `te: trailers`.
    pub(crate) te: bool,
    pub(crate) host: bool,
    pub(crate) expect: bool,
    /// The marks of all names.
    pub(crate) marks: u8,
    /// A field that is no pseudo header came.
    regular: bool,
    /// Decoded size: names, values and 32 for each field.
    pub(crate) size: usize,
    /// The first rule of RFC 9113, section 8.2 and 8.3, that the block breaks; the stream is malformed.
    pub(crate) malformed: Option<&'static str>,
    /// The decoded size or the number of fields is over the limit; the fields beyond were dropped.
    pub(crate) too_large: bool,
}

/// The peer broke the compression state: the connection cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CompressionError(pub(crate) &'static str);

/// The decoder of one connection.
pub(crate) struct Decoder {
    table: DecoderTable,
    /// Strings of a block share one allocation.
    scratch: BytesMut,
    max_size: usize,
    max_fields: usize,
    mark: fn(&[u8]) -> u8,
    /// How many headers recent blocks had: the next map is made that large.
    expected: usize,
}

impl Decoder {
    pub(crate) fn new(table_size: usize, max_size: usize, max_fields: usize, mark: fn(&[u8]) -> u8) -> Self {
        Self { table: DecoderTable::new(table_size), scratch: BytesMut::new(), max_size, max_fields, mark, expected: 8 }
    }

    /// Decodes a whole block into one that is empty.
    pub(crate) fn decode(&mut self, input: &[u8], block: &mut Block) -> Result<(), CompressionError> {
        block.headers = maps::take(self.expected);
        let mut rest = input;
        let mut fields = 0;
        while let Some(first) = rest.first().copied() {
            if first & 0xe0 == 0x20 {
                if fields > 0 {
                    return Err(CompressionError("table size update after a field"));
                }
                let limit = integer(&mut rest, 5)?;
                if !self.table.resize(limit) {
                    return Err(CompressionError("table size over the limit that was set"));
                }
                continue;
            }
            fields += 1;
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let entry = self.table.get(index).ok_or(CompressionError("index beyond the tables"))?;
                if DecoderTable::is_fixed(index)
                    && let Field::Header(name, _) = &entry.field
                {
                    block.marks |= (self.mark)(name.as_str().as_bytes());
                }
                if block.has_room(entry.size, fields, self.max_size, self.max_fields) {
                    block.add(entry);
                }
                continue;
            }
            let stored = first & 0x40 != 0;
            let Some(field) = self.literal(&mut rest, if stored { 6 } else { 4 })? else {
                if stored {
                    // Leaving it out of the table would shift all that the peer refers to later.
                    return Err(CompressionError("an indexed field is no valid header"));
                }
                block.malformed.get_or_insert("invalid header name or value");
                continue;
            };
            let entry = Entry::new(field, self.mark);
            if block.has_room(entry.size, fields, self.max_size, self.max_fields) {
                block.add(&entry);
            }
            if stored {
                self.table.insert(Entry { field: detached(&entry.field), ..entry });
            }
        }
        self.expected = block.headers.len().clamp(4, 64) + 4;
        Ok(())
    }

    /// A literal; `None` when it is well coded but no valid field.
    fn literal(&mut self, rest: &mut &[u8], prefix: u8) -> Result<Option<Field>, CompressionError> {
        // Huffman text grows by 8/5 at most. What the first literal of a block reserves is enough for all: asking for more
        // than is left to decode would give each of them a buffer of its own.
        self.scratch.reserve(rest.len() * 8 / 5 + 16);
        let index = integer(rest, prefix)?;
        if index > 0 {
            let named = self.table.get(index).ok_or(CompressionError("index beyond the tables"))?;
            let value = string(&mut self.scratch, rest)?;
            return Ok(with_value(&named.field, value));
        }
        let name = string(&mut self.scratch, rest)?;
        let value = string(&mut self.scratch, rest)?;
        Ok(from_parts(&name, value))
    }
}

fn string(scratch: &mut BytesMut, rest: &mut &[u8]) -> Result<Bytes, CompressionError> {
    let coded = rest.first().is_some_and(|b| b & 0x80 != 0);
    let length = integer(rest, 7)?;
    let Some((raw, after)) = rest.split_at_checked(length) else {
        return Err(CompressionError("string beyond the block"));
    };
    *rest = after;
    if coded {
        if !huffman::decode(raw, scratch) {
            return Err(CompressionError("invalid Huffman coding"));
        }
    } else {
        scratch.extend_from_slice(raw);
    }
    Ok(scratch.split().freeze())
}

impl Block {
    /// Counts a field against the limits.
    fn has_room(&mut self, size: usize, fields: usize, max_size: usize, max_fields: usize) -> bool {
        self.size += size;
        let over = self.size > max_size || fields > max_fields;
        self.too_large |= over;
        !over
    }

    fn add(&mut self, entry: &Entry) {
        let twice = match &entry.field {
            Field::Header(name, value) => {
                self.regular = true;
                self.marks |= entry.mark;
                if entry.sort == Sort::Plain || self.stays(entry.sort, value) {
                    self.headers.append(name.clone(), value.clone());
                }
                return;
            }
            Field::Authority(v) => self.authority.replace(v.clone()).is_some(),
            Field::Scheme(v) => self.scheme.replace(v.clone()).is_some(),
            Field::Path(v) => self.path.replace(v.clone()).is_some(),
            Field::Protocol(v) => self.protocol.replace(v.clone()).is_some(),
            Field::Method(v) => self.method.replace(v.clone()).is_some(),
            Field::Status(v) => self.status.replace(*v).is_some(),
        };
        if twice {
            self.malformed.get_or_insert("repeated pseudo header");
        }
        if self.regular {
            self.malformed.get_or_insert("pseudo header after a header");
        }
    }

    /// Takes note of a header that means something to the codec; whether it belongs among the others.
    fn stays(&mut self, sort: Sort, value: &HeaderValue) -> bool {
        match sort {
            Sort::Forbidden => {
                self.malformed.get_or_insert("connection-specific header");
                return false;
            }
            Sort::Te => {
                self.te = true;
                return false;
            }
            Sort::Length => {
                match decimal(value.as_bytes()) {
                    Some(length) if self.length.is_none_or(|other| other == length) => self.length = Some(length),
                    _ => _ = self.malformed.get_or_insert("content-length is not one number"),
                }
                return false;
            }
            Sort::Cookie => return !self.join_cookie(value),
            Sort::Host => self.host = true,
            Sort::Expect => self.expect = true,
            Sort::Plain | Sort::Pseudo => {}
        }
        true
    }

    /// Crumbs of a cookie are one header again for whoever reads it (RFC 9113, section 8.2.3).
    fn join_cookie(&mut self, crumb: &HeaderValue) -> bool {
        let Some(cookie) = self.headers.get_mut(http::header::COOKIE) else { return false };
        let mut joined = BytesMut::with_capacity(cookie.len() + crumb.len() + 2);
        joined.extend_from_slice(cookie.as_bytes());
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
        HeaderValue::from_maybe_shared(joined.freeze()).map(|value| *cookie = value).is_ok()
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
}

/// An integer with a prefix of `bits` (RFC 7541, section 5.1), at most 2^28.
#[inline]
fn integer(rest: &mut &[u8], bits: u8) -> Result<usize, CompressionError> {
    let short = CompressionError("integer beyond the block");
    let (first, mut after) = rest.split_first().ok_or(short)?;
    let mask = (1usize << bits) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (byte, more) = after.split_first().ok_or(CompressionError("integer beyond the block"))?;
            after = more;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return Err(CompressionError("integer too large"));
            }
        }
    }
    *rest = after;
    Ok(value)
}

fn with_value(named: &Field, value: Bytes) -> Option<Field> {
    Some(match named {
        Field::Authority(_) => Field::Authority(visible(value)?),
        Field::Path(_) => Field::Path(visible(value)?),
        Field::Scheme(_) => Field::Scheme(visible(value)?),
        Field::Protocol(_) => Field::Protocol(visible(value)?),
        Field::Method(_) => Field::Method(Method::from_bytes(&value).ok()?),
        Field::Status(_) => Field::Status(StatusCode::from_bytes(&value).ok()?),
        Field::Header(name, _) => Field::Header(name.clone(), header_value(value)?),
    })
}

fn from_parts(name: &Bytes, value: Bytes) -> Option<Field> {
    Some(match &name[..] {
        b":authority" => Field::Authority(visible(value)?),
        b":path" => Field::Path(visible(value)?),
        b":scheme" => Field::Scheme(visible(value)?),
        b":protocol" => Field::Protocol(visible(value)?),
        b":method" => Field::Method(Method::from_bytes(&value).ok()?),
        b":status" => Field::Status(StatusCode::from_bytes(&value).ok()?),
        name if name.iter().any(u8::is_ascii_uppercase) => return None,
        name => Field::Header(crate::known_name(name).or_else(|| HeaderName::from_bytes(name).ok())?, header_value(value)?),
    })
}

/// Values of pseudo headers: no control characters, no space, so that they may stand in a request line.
fn visible(value: Bytes) -> Option<Bytes> {
    value.iter().all(|b| *b > b' ' && *b != 0x7f).then_some(value)
}

/// CR, LF and NUL are refused by the type; surrounding white space is cut off before anything matches it.
fn header_value(value: Bytes) -> Option<HeaderValue> {
    let padded = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    let value = if padded(value.first()) || padded(value.last()) { value.slice_ref(value.trim_ascii()) } else { value };
    HeaderValue::from_maybe_shared(value).ok()
}

/// A copy that does not keep the block's allocation alive: a table entry may live for hours.
fn detached(field: &Field) -> Field {
    let copy = |b: &Bytes| Bytes::copy_from_slice(b);
    match field {
        Field::Authority(v) => Field::Authority(copy(v)),
        Field::Scheme(v) => Field::Scheme(copy(v)),
        Field::Path(v) => Field::Path(copy(v)),
        Field::Protocol(v) => Field::Protocol(copy(v)),
        Field::Method(_) | Field::Status(_) => field.clone(),
        Field::Header(name, value) => match HeaderValue::from_bytes(value.as_bytes()) {
            Ok(value) => Field::Header(name.clone(), value),
            Err(_) => field.clone(),
        },
    }
}

const _: () = assert!(OVERHEAD == 32);

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder() -> Decoder {
        Decoder::new(4096, 1 << 16, 100, |name| u8::from(name.starts_with(b"x-")))
    }

    fn decode(decoder: &mut Decoder, input: &[u8]) -> Result<Block, CompressionError> {
        let mut block = Block::default();
        decoder.decode(input, &mut block).map(|()| block)
    }

    /// A literal that enters no table.
    fn plain(name: &str, value: &str) -> Vec<u8> {
        [&[0x00, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    }

    #[test]
    fn the_standards_request_examples_decode_over_one_table() {
        let mut d = decoder();
        let first = decode(&mut d, &[0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff])
            .unwrap();
        assert_eq!(first.authority.unwrap(), "www.example.com");
        assert_eq!((first.method.unwrap(), first.path.unwrap()), (Method::GET, Bytes::from_static(b"/")));
        let second = decode(&mut d, &[0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap();
        assert_eq!(second.authority.unwrap(), "www.example.com");
        assert_eq!(second.headers["cache-control"], "no-cache");
    }

    /// Each literal with a buffer of its own would let a block of 60 KiB keep a hundred times as much.
    #[test]
    fn the_strings_of_a_block_lie_in_one_buffer() {
        let names: Vec<String> = (0..99).map(|n| format!("x-{n}")).collect();
        let mut input: Vec<u8> = names.iter().flat_map(|name| plain(name, "v")).collect();
        // A large one that is not decoded before all others are.
        input.extend([&[0x00, 3], &b"big"[..], &[0x7f, 0x81, 0xff, 0x01], &[b'x'; 0x7f + 0x7f81][..]].concat());
        let block = decode(&mut decoder(), &input).unwrap();
        assert_eq!(block.headers.len(), 100);
        let at = |name: &str| block.headers[name].as_bytes().as_ptr() as usize;
        for name in &names {
            assert!(at(name).abs_diff(at("big")) < input.len(), "{name} has a buffer of its own");
        }
    }

    #[test]
    fn what_a_request_must_not_hold_makes_it_malformed_and_keeps_the_connection() {
        for (name, value) in [
            ("connection", "close"),
            ("te", "gzip"),
            ("UPPER", "x"),
            ("a b", "x"),
            ("x", "a\r\nb"),
            ("x", "a\0"),
            (":path", "/a b"),
            (":nope", "x"),
            ("content-length", "1x"),
        ] {
            assert!(decode(&mut decoder(), &plain(name, value)).unwrap().malformed.is_some(), "{name}: {value:?}");
        }
        assert_eq!(decode(&mut decoder(), &plain("x", " padded ")).unwrap().headers["x"], "padded");
        assert!(decode(&mut decoder(), &[0x82, 0x83]).unwrap().malformed.is_some(), "two methods");
    }

    #[test]
    fn a_block_that_grows_when_decoded_is_cut_at_the_limit() {
        let mut d = Decoder::new(4096, 4096, 100, |_| 0);
        let mut block = vec![0x40, 0x01, b'a', 0x7f, 0xe1, 0x05];
        block.extend(std::iter::repeat_n(b'v', 127 + 0x61 + (5 << 7)));
        block.extend(std::iter::repeat_n(0xbe, 1000));
        let decoded = decode(&mut d, &block).unwrap();
        assert!(decoded.too_large && decoded.headers.len() < 10);
    }

    #[test]
    fn cookie_crumbs_are_joined_and_counted() {
        let mut d = decoder();
        let crumb = [0x00, 0x06, b'c', b'o', b'o', b'k', b'i', b'e', 0x03, b'a', b'=', b'b'];
        let block = decode(&mut d, &[crumb, crumb].concat()).unwrap();
        assert_eq!(block.headers["cookie"], "a=b; a=b");
        assert_eq!(block.size, 2 * (6 + 3 + 32));
    }

    #[test]
    fn what_the_codec_reads_itself_is_noted_and_not_among_the_headers() {
        let all = [plain("content-length", "12"), plain("te", "trailers"), plain("expect", "100-continue"), plain("host", "a")].concat();
        let block = decode(&mut decoder(), &all).unwrap();
        assert_eq!((block.length, block.te, block.expect, block.host), (Some(12), true, true, true));
        assert_eq!((block.headers.len(), block.malformed), (2, None));
        let twice = [plain("content-length", "12"), plain("content-length", "12")].concat();
        assert_eq!(decode(&mut decoder(), &twice).unwrap().malformed, None);
        for (first, then) in [("12", "13"), ("13", ""), ("1", "99999999999999999999")] {
            let two = [plain("content-length", first), plain("content-length", then)].concat();
            assert!(decode(&mut decoder(), &two).unwrap().malformed.is_some(), "{first} {then}");
        }
        let late = [plain("content-length", "12"), plain(":path", "/")].concat();
        assert!(decode(&mut decoder(), &late).unwrap().malformed.is_some(), "a pseudo header after a header");
    }

    #[test]
    fn names_are_marked_in_a_literal_and_from_the_table() {
        let mut d = decoder();
        let stored = [0x40, 3, b'x', b'-', b'a', 1, b'1'];
        assert_eq!(decode(&mut d, &stored).unwrap().marks, 1);
        assert_eq!(decode(&mut d, &[0xbe]).unwrap().marks, 1);
        assert_eq!(decode(&mut d, &[0x90]).unwrap().marks, 0);
    }

    #[test]
    fn broken_coding_is_an_error_and_never_a_panic() {
        for input in
            [&[0x80][..], &[0xff], &[0x00, 0x05, b'a'], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x82, 0x20], &[0x3f, 0xff, 0xff, 0x7f]]
        {
            assert!(decode(&mut decoder(), input).is_err(), "{input:x?}");
        }
    }
}
