//! Bytes waiting to be written: small frames in one buffer, large bodies by reference.
use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use crate::StreamId;
use crate::frame::{self, flag, kind};

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
    /// The DATA frame that `tail` ends with: where in it, and whose.
    last: Option<(usize, StreamId)>,
}

impl Output {
    /// For any frame but DATA.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        self.last = None;
        &mut self.tail
    }

    /// Adds a DATA frame; `end` when it is the stream's last.
    pub(crate) fn data(&mut self, id: StreamId, data: Bytes, end: bool) {
        let at = self.tail.len();
        frame::put_head(&mut self.tail, data.len(), kind::DATA, if end { flag::END_STREAM } else { 0 }, id);
        if data.len() <= COPY_LIMIT {
            self.tail.extend_from_slice(&data);
            self.last = Some((at, id));
        } else {
            self.by_reference(data);
        }
    }

    /// Ends a stream without trailers: by the flag of its last data where nothing came after them, which saves its peer a frame.
    pub(crate) fn end(&mut self, id: StreamId) {
        if let Some((at, last)) = self.last.take()
            && last == id
            && let Some(flags) = self.tail.get_mut(at + frame::FLAGS_AT)
        {
            *flags |= flag::END_STREAM;
        } else {
            frame::put_head(&mut self.tail, 0, kind::DATA, flag::END_STREAM, id);
        }
    }

    fn by_reference(&mut self, data: Bytes) {
        self.last = None;
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
        // What has left cannot be changed, and `tail` may begin elsewhere now.
        self.last = None;
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
        out.data(1, Bytes::from(vec![b'x'; COPY_LIMIT + 1]), false);
        out.buffer().extend_from_slice(b"tail");
        let mut all = Vec::new();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); 4];
            let filled = out.slices(&mut slices);
            let bytes: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).take(1001).collect();
            out.advance(bytes.len());
            all.extend(bytes);
        }
        assert_eq!(all.len(), COPY_LIMIT + 9 + 9);
        assert_eq!(all[13], b'x');
        assert!(all.starts_with(b"head") && all.ends_with(b"xtail"));
    }

    #[test]
    fn an_end_joins_the_data_before_it_and_nothing_else() {
        const HEAD: usize = 9;
        let data = || Bytes::from_static(b"abc");
        let joined = |prepare: &dyn Fn(&mut Output)| {
            let mut out = Output::default();
            out.data(1, data(), false);
            prepare(&mut out);
            let before = out.len();
            out.end(1);
            (out.len() - before, out.tail.get(frame::FLAGS_AT).copied())
        };
        assert_eq!(joined(&|_| ()), (0, Some(flag::END_STREAM)));
        assert_eq!(joined(&|out| out.data(3, data(), false)), (HEAD, Some(0)), "another stream's data");
        assert_eq!(joined(&|out| frame::put_window_update(out.buffer(), 1, 1)), (HEAD, Some(0)), "another frame");
        assert_eq!(joined(&|out| out.data(1, Bytes::from(vec![0; COPY_LIMIT + 1]), false)).0, HEAD, "data that stand elsewhere");
        assert_eq!(joined(&|out| out.advance(2)).0, HEAD, "data that have left in part");
        assert_eq!(joined(&|out| out.advance(HEAD + 3)).0, HEAD, "data that have left");
    }
}
