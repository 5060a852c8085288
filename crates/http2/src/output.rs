//! Bytes waiting to be written: small frames in one buffer, large bodies by reference.
use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Bodies up to this size are copied behind their frame header, so that few pieces need writing.
const COPY_LIMIT: usize = 8 * 1024;
/// An empty buffer that had grown beyond this is given back.
const KEEP: usize = 64 * 1024;

/// What a connection has to send, in order: `queue`, then `tail`.
#[derive(Debug, Default)]
pub struct Output {
    queue: VecDeque<Bytes>,
    tail: BytesMut,
    queued: usize,
}

impl Output {
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    pub(crate) fn body(&mut self, data: Bytes) {
        if data.len() <= COPY_LIMIT {
            self.tail.extend_from_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            let head = self.tail.split().freeze();
            self.queued += head.len();
            self.queue.push_back(head);
        }
        self.queued += data.len();
        self.queue.push_back(data);
    }

    pub fn is_empty(&self) -> bool {
        self.queued == 0 && self.tail.is_empty()
    }

    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.queued + self.tail.len()
    }

    /// Fills `slices` for a vectored write and returns how many it filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.queue.iter().map(|b| &b[..]).chain(std::iter::once(&self.tail[..]));
        let mut filled = 0;
        for (slot, piece) in slices.iter_mut().zip(pieces.filter(|p| !p.is_empty())) {
            *slot = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    /// Takes note that `count` bytes were written.
    pub fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.queue.front_mut() {
            let part = count.min(first.len());
            first.advance(part);
            self.queued -= part;
            count -= part;
            if !first.is_empty() {
                return;
            }
            self.queue.pop_front();
        }
        self.tail.advance(count.min(self.tail.len()));
        if self.tail.is_empty() && self.tail.capacity() > KEEP {
            self.tail = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_leave_in_order_whatever_is_written_at_once() {
        let mut out = Output::default();
        out.buffer().extend_from_slice(b"head");
        out.body(Bytes::from(vec![b'x'; COPY_LIMIT + 1]));
        out.buffer().extend_from_slice(b"tail");
        let mut all = Vec::new();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); 4];
            let filled = out.slices(&mut slices);
            let bytes: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).take(1001).collect();
            out.advance(bytes.len());
            all.extend(bytes);
        }
        assert_eq!(all.len(), COPY_LIMIT + 9);
        assert!(all.starts_with(b"headx") && all.ends_with(b"xtail"));
    }
}
