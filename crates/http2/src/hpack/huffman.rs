//! Huffman coding of HPACK strings (RFC 7541, appendix B), decoded four bits at a time.
use std::sync::LazyLock;

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

/// What follows from a state and four bits.
#[derive(Clone, Copy, Default)]
struct Step {
    next: u16,
    /// The octet completed by these bits; the shortest code has five bits, so at most one is.
    octet: Option<u8>,
    /// The bits run into the end-of-string symbol or into no code at all.
    fails: bool,
}

struct Table {
    steps: Vec<[Step; 16]>,
    /// States in which a string may end: only ones (a prefix of the end symbol), fewer than eight.
    may_end: Vec<bool>,
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::build);

/// A node of the code's tree: children by bit, or the symbol.
#[derive(Clone, Copy)]
enum Node {
    Inner([u16; 2]),
    Leaf(u16),
}

impl Table {
    fn build() -> Self {
        let nodes = tree();
        let mut steps = vec![[Step::default(); 16]; nodes.len()];
        for (state, row) in steps.iter_mut().enumerate() {
            for (nibble, step) in row.iter_mut().enumerate() {
                *step = walk(&nodes, state as u16, nibble);
            }
        }
        let mut may_end = vec![false; nodes.len()];
        let mut state = 0u16;
        for _ in 0..8 {
            may_end[state as usize] = true;
            if let Node::Inner(children) = nodes[state as usize] {
                state = children[1];
            }
        }
        Self { steps, may_end }
    }
}

fn tree() -> Vec<Node> {
    let mut nodes = vec![Node::Inner([0, 0])];
    let mut symbols: Vec<u16> = (0..=END).collect();
    symbols.sort_by_key(|s| (LENGTHS[*s as usize], *s));
    let (mut code, mut length) = (0u32, LENGTHS[symbols[0] as usize]);
    for symbol in symbols {
        code <<= LENGTHS[symbol as usize] - length;
        length = LENGTHS[symbol as usize];
        insert(&mut nodes, code, length, symbol);
        code += 1;
    }
    nodes
}

fn insert(nodes: &mut Vec<Node>, code: u32, length: u8, symbol: u16) {
    let mut at = 0usize;
    for shift in (0..length).rev() {
        let bit = (code >> shift & 1) as usize;
        let Node::Inner(children) = nodes[at] else { return };
        if children[bit] == 0 {
            let new = if shift == 0 { Node::Leaf(symbol) } else { Node::Inner([0, 0]) };
            nodes.push(new);
            let index = (nodes.len() - 1) as u16;
            if let Node::Inner(children) = &mut nodes[at] {
                children[bit] = index;
            }
            at = index as usize;
        } else {
            at = children[bit] as usize;
        }
    }
}

fn walk(nodes: &[Node], state: u16, nibble: usize) -> Step {
    let mut step = Step { next: state, ..Step::default() };
    for shift in (0..4).rev() {
        let Node::Inner(children) = nodes[step.next as usize] else {
            step.fails = true;
            return step;
        };
        step.next = children[nibble >> shift & 1];
        if let Node::Leaf(symbol) = nodes[step.next as usize] {
            match u8::try_from(symbol) {
                Ok(octet) => step.octet = Some(octet),
                Err(_) => step.fails = true,
            }
            step.next = 0;
        }
    }
    step
}

/// Appends the decoded string to `out`; false when the input is not a valid encoding.
pub(crate) fn decode(input: &[u8], out: &mut impl Extend<u8>) -> bool {
    let table = &*TABLE;
    let mut state = 0u16;
    for byte in input {
        for nibble in [byte >> 4, byte & 15] {
            let step = table.steps[state as usize][nibble as usize];
            if step.fails {
                return false;
            }
            out.extend(step.octet);
            state = step.next;
        }
    }
    table.may_end[state as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(input: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(input, &mut out).then_some(out)
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
}
