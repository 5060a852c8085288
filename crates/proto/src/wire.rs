//! Encoded messages taken apart field by field, by those who need not know the rest of them.
use bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

/// One field of an encoded message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    pub number: u32,
    /// As it stands, with its key.
    pub whole: &'a [u8],
    /// Of a string, bytes or message: the content.
    pub content: Option<&'a [u8]>,
}

/// The fields of an encoded message, in order. Ends at the first thing that is none.
pub fn pieces(encoded: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = encoded;
    std::iter::from_fn(move || {
        let start = rest;
        if start.is_empty() {
            return None;
        }
        let (number, wire_type) = decode_key(&mut rest).ok()?;
        let content = if wire_type == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            let content = rest.get(..length)?;
            rest.advance(length);
            Some(content)
        } else {
            skip_field(wire_type, number, &mut rest, DecodeContext::default()).ok()?;
            None
        };
        let whole = start.get(..start.len() - rest.len())?;
        Some(Piece { number, whole, content })
    })
}

/// Takes the messages at `path` (numbers of fields, from the outside in) out of an encoded message, as they stand, and returns
/// the rest: what has thousands of parts can then be decoded part by part. What cannot be read stays in the rest, for the decoder
/// to complain about.
pub fn take_out<'a>(encoded: &'a [u8], path: &[u32], taken: &mut Vec<&'a [u8]>) -> Vec<u8> {
    let (mut rest, mut read) = (Vec::new(), 0);
    for piece in pieces(encoded) {
        read += piece.whole.len();
        match (piece.content, path) {
            (Some(content), [number]) if piece.number == *number => taken.push(content),
            (Some(content), [number, inner @ ..]) if piece.number == *number => {
                let inside = take_out(content, inner, taken);
                encode_key(piece.number, WireType::LengthDelimited, &mut rest);
                encode_varint(inside.len() as u64, &mut rest);
                rest.extend(inside);
            }
            _ => rest.extend_from_slice(piece.whole),
        }
    }
    rest.extend_from_slice(encoded.get(read..).unwrap_or_default());
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_as_they_stand() {
        // 1: "ab", 2: 300, 3: 4 bytes, 1: ""
        let encoded = [0x0a, 2, b'a', b'b', 0x10, 0xac, 0x02, 0x1d, 1, 2, 3, 4, 0x0a, 0];
        let found: Vec<Piece<'_>> = pieces(&encoded).collect();
        assert_eq!(
            found.iter().map(|p| (p.number, p.content)).collect::<Vec<_>>(),
            [(1, Some(&b"ab"[..])), (2, None), (3, None), (1, Some(&b""[..]))]
        );
        assert_eq!(found.iter().flat_map(|p| p.whole).copied().collect::<Vec<u8>>(), encoded);
    }

    #[test]
    fn what_is_cut_short_ends_it() {
        for encoded in [&[][..], &[0x0a], &[0x0a, 5, b'x'], &[0xff], &[0x1d, 1]] {
            assert_eq!(pieces(encoded).count(), 0, "{encoded:?}");
        }
    }

    #[test]
    fn parts_are_taken_out_and_the_rest_stays_as_it_was() {
        // 1: "ab", 2: { 3: "x", 1: 5, 3: "yz" }, 2: { 3: "" }, and a byte that is no field.
        let encoded = [0x0a, 2, b'a', b'b', 0x12, 9, 0x1a, 1, b'x', 0x08, 5, 0x1a, 2, b'y', b'z', 0x12, 2, 0x1a, 0, 0x07];
        let mut taken = Vec::new();
        let rest = take_out(&encoded, &[2, 3], &mut taken);
        assert_eq!(taken, [&b"x"[..], b"yz", b""]);
        assert_eq!(rest, [0x0a, 2, b'a', b'b', 0x12, 2, 0x08, 5, 0x12, 0, 0x07]);
        taken.clear();
        assert_eq!(take_out(&encoded, &[7], &mut taken), encoded);
        assert!(taken.is_empty());
    }
}
