//! Huffman coding of HPACK strings (RFC 7541, appendix B), decoded a character at a time.
use std::sync::LazyLock;

use bytes::BytesMut;

/// Code lengths of the 256 octets and of the end-of-string symbol. The code is canonical: codes of one
/// length are consecutive in the order of their symbols, so lengths are all that need to be written down.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, 6, 10,
    10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6,
    7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23,
    21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22,
    22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27,
    26, 30,
];

const END: u16 = 256;

/// Codes up to this many bits are found with one look: all printable characters but eight.
const FAST: u32 = 10;

/// What the next bits begin with: the octet, and how many bits it took; none for a longer code.
#[derive(Clone, Copy, Default)]
struct Short {
    octet: u8,
    bits: u8,
}

/// The codes of one length.
#[derive(Clone, Copy, Default)]
struct Long {
    bits: u32,
    /// Where the codes of the next length begin, as the upper bits of a word.
    end: u64,
    /// The first of these codes, and its place among the symbols.
    first: u64,
    place: usize,
}

struct Table {
    short: Vec<Short>,
    long: Vec<Long>,
    /// In the order of their codes.
    symbols: Vec<u16>,
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::build);

impl Table {
    fn build() -> Self {
        let length = |symbol: u16| u32::from(LENGTHS[symbol as usize]);
        let mut symbols: Vec<u16> = (0..=END).collect();
        symbols.sort_by_key(|s| (length(*s), *s));
        let mut table = Self { short: vec![Short::default(); 1 << FAST], long: Vec::new(), symbols: Vec::new() };
        let (mut code, mut bits) = (0u64, length(symbols[0]));
        for (place, symbol) in symbols.iter().enumerate() {
            code <<= length(*symbol) - bits;
            bits = length(*symbol);
            if bits <= FAST {
                let octet = Short { octet: *symbol as u8, bits: bits as u8 };
                let begin = (code << (FAST - bits)) as usize;
                table.short[begin..begin + (1 << (FAST - bits))].fill(octet);
            } else {
                if table.long.last().is_none_or(|long| long.bits != bits) {
                    table.long.push(Long { bits, end: 0, first: code, place });
                }
                if let Some(long) = table.long.last_mut() {
                    long.end = (code + 1).checked_shl(64 - bits).filter(|end| *end != 0).unwrap_or(u64::MAX);
                }
            }
            code += 1;
        }
        table.symbols = symbols;
        table
    }

    /// The symbol of a long code at the upper end of `word`, with its length.
    fn long(&self, word: u64) -> Option<(u16, u32)> {
        let long = self.long.iter().find(|long| word < long.end)?;
        let offset = (word >> (64 - long.bits)).checked_sub(long.first)?;
        Some((*self.symbols.get(long.place + offset as usize)?, long.bits))
    }
}

/// Appends the decoded string to `out`; false when the input is not a valid encoding.
pub(crate) fn decode(input: &[u8], out: &mut BytesMut) -> bool {
    let table = &*TABLE;
    let start = out.len();
    // The shortest code has five bits.
    out.resize(start + input.len() * 8 / 5, 0);
    let mut length = start;
    let mut input = input.iter();
    // The bits not used yet are the upper ones of `word`; zeros follow.
    let (mut word, mut bits) = (0u64, 0u32);
    let fits = loop {
        while bits <= 56
            && let Some(byte) = input.next()
        {
            word |= u64::from(*byte) << (56 - bits);
            bits += 8;
        }
        let short = table.short.get((word >> (64 - FAST)) as usize).copied().unwrap_or_default();
        let (symbol, used) = match short.bits {
            0 => match table.long(word) {
                Some(long) => long,
                None => break ends(word, bits),
            },
            used => (u16::from(short.octet), u32::from(used)),
        };
        if used > bits {
            break ends(word, bits);
        }
        let (Ok(octet), Some(place)) = (u8::try_from(symbol), out.get_mut(length)) else { break false };
        *place = octet;
        length += 1;
        word <<= used;
        bits -= used;
    };
    out.truncate(length);
    fits
}

/// Whether a string may end before these bits: fewer than eight, all ones, as the end-of-string symbol begins.
fn ends(word: u64, bits: u32) -> bool {
    bits < 8 && word.leading_ones() >= bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(input: &[u8]) -> Option<Vec<u8>> {
        let mut out = BytesMut::from(&b"before"[..]);
        decode(input, &mut out).then(|| out[6..].to_vec())
    }

    #[test]
    fn the_examples_of_the_standard_decode() {
        let input = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&input).unwrap(), b"www.example.com");
        assert_eq!(decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap(), b"no-cache");
        assert_eq!(decoded(&[]).unwrap(), b"");
    }

    #[test]
    fn padding_of_eight_bits_zero_padding_and_the_end_symbol_are_refused() {
        assert!(decoded(&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff, 0xff]).is_none());
        assert!(decoded(&[0x00]).is_none(), "five bits of `0` and three zero bits");
        assert!(decoded(&[0xff, 0xff, 0xff, 0xff]).is_none());
    }

    /// The standard's coding, from the lengths alone.
    fn encoded(text: &[u8]) -> Vec<u8> {
        let mut symbols: Vec<usize> = (0..257).collect();
        symbols.sort_by_key(|s| (LENGTHS[*s], *s));
        let (mut code, mut before, mut codes) = (0u32, LENGTHS[symbols[0]], [0u32; 257]);
        for symbol in symbols {
            code <<= LENGTHS[symbol] - before;
            before = LENGTHS[symbol];
            codes[symbol] = code;
            code += 1;
        }
        let mut bits = String::new();
        for octet in text {
            bits += &format!("{:0width$b}", codes[usize::from(*octet)], width = usize::from(LENGTHS[usize::from(*octet)]));
        }
        bits += &"1".repeat((8 - bits.len() % 8) % 8);
        bits.as_bytes().chunks(8).map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap()).collect()
    }

    proptest::proptest! {
        #[test]
        fn what_is_coded_is_decoded(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
            proptest::prop_assert_eq!(decoded(&encoded(&text)), Some(text));
        }

        #[test]
        fn whatever_is_accepted_is_the_coding_of_what_came_out(input in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40)) {
            if let Some(text) = decoded(&input) {
                proptest::prop_assert_eq!(encoded(&text), input);
            }
        }
    }

    #[test]
    fn every_octet_has_its_code() {
        for octet in 0..=255 {
            assert_eq!(decoded(&encoded(&[octet, b'a'])), Some(vec![octet, b'a']), "{octet}");
        }
    }
}
