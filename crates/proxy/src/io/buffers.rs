//! Read buffers shared by a worker's connections, so that an idle connection holds none.
use std::cell::RefCell;

use bytes::BytesMut;

/// What a read asks for at first.
pub(crate) const FIRST_READ: usize = 8 * 1024;
const KEPT: usize = 64;
const LARGEST_KEPT: usize = 64 * 1024;

thread_local! {
    static FREE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for a first read.
pub(crate) fn take_buffer() -> BytesMut {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(FIRST_READ))
}

/// Gives a buffer back; keeps it only if it is worth keeping.
pub(crate) fn recycle(mut buffer: BytesMut) {
    buffer.clear();
    // A slice of it may still be referenced: then this reclaims nothing and the buffer is let go.
    if buffer.capacity() > LARGEST_KEPT || !buffer.try_reclaim(FIRST_READ / 2) {
        return;
    }
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT {
            free.push(buffer);
        }
    });
}
