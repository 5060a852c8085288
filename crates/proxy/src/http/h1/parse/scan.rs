//! How far a head has been looked through that has not arrived whole.
use bytes::BytesMut;

/// How far `input` has been looked through for the end of a head, so that a slow sender costs no rescans. A head is nearly
/// always all there at the first look, which is left to the parser: only one that was not is looked through.
#[derive(Default)]
pub(crate) struct HeadScan {
    looked: usize,
    /// The parser has seen a part of this head.
    partial: bool,
}

impl HeadScan {
    /// Whether the parser is worth asking.
    pub(super) fn may_be_complete(&mut self, input: &[u8]) -> bool {
        !self.partial || self.complete(input)
    }

    /// The parser has seen a part of a head.
    pub(super) fn begun(&mut self) {
        self.partial = true;
    }

    /// Whether the blank line that ends a head is there.
    fn complete(&mut self, input: &[u8]) -> bool {
        let mut at = self.looked;
        while let Some(found) = input.get(at..).and_then(|rest| rest.iter().position(|b| *b == b'\n')) {
            let end = at + found;
            match (input.get(end + 1), input.get(end + 2)) {
                (Some(b'\n'), _) | (Some(b'\r'), Some(b'\n')) => return true,
                (None, _) | (Some(b'\r'), None) => {
                    self.looked = end;
                    return false;
                }
                _ => at = end + 1,
            }
        }
        self.looked = input.len();
        false
    }

    pub(in crate::http::h1) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Clients that send a stray CRLF after a body are tolerated (RFC 9112 2.2). Whole lines only: what is skipped must not
/// depend on how the bytes were cut on their way.
pub(super) fn skip_blank_lines(input: &mut BytesMut, scan: &mut HeadScan) {
    let mut blank = 0;
    loop {
        blank += match (input.get(blank), input.get(blank + 1)) {
            (Some(b'\n'), _) => 1,
            (Some(b'\r'), Some(b'\n')) => 2,
            _ => break,
        };
    }
    if blank > 0 {
        bytes::Buf::advance(input, blank);
        scan.reset();
    }
}
