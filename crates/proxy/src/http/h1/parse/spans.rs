//! Where the headers of a head lie in its bytes: what outlives the parser, which borrows them.
use std::ops::Range;

/// Most heads have no more.
pub(super) const FEW_HEADERS: usize = 32;

/// Where a header's name and value lie in the head: start and length of each.
pub(super) type Span = [u32; 4];

fn span(base: usize, header: &httparse::Header<'_>) -> Span {
    let at = |part: &[u8]| (part.as_ptr() as usize).wrapping_sub(base) as u32;
    [at(header.name.as_bytes()), header.name.len() as u32, at(header.value), header.value.len() as u32]
}

/// Those of all headers, in `few` if they fit: it is short because it is cleared for each head.
pub(super) fn spans<'a>(
    base: usize,
    headers: &[httparse::Header<'_>],
    few: &'a mut [Span; FEW_HEADERS],
    many: &'a mut Vec<Span>,
) -> &'a [Span] {
    match few.get_mut(..headers.len()) {
        Some(few) => {
            for (slot, header) in few.iter_mut().zip(headers) {
                *slot = span(base, header);
            }
            few
        }
        None => {
            many.extend(headers.iter().map(|header| span(base, header)));
            many
        }
    }
}

pub(super) fn ranges([name, name_len, value, value_len]: Span) -> (Range<usize>, Range<usize>) {
    let range = |start: u32, len: u32| start as usize..start as usize + len as usize;
    (range(name, name_len), range(value, value_len))
}
