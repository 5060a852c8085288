//! Read and write buffers shared by a thread's connections, so that an idle connection holds none.
use std::cell::RefCell;

use bytes::BytesMut;

/// What a read of HTTP/1 or TCP asks for at first, in bytes.
pub const SMALL: usize = 8 * 1024;
/// What a read of many streams' frames asks for.
pub const LARGE: usize = 32 * 1024;
/// Buffers that are kept: 512 KiB of each size.
const SMALL_KEPT: usize = 64;
const LARGE_KEPT: usize = 16;
/// A buffer that grew beyond this is let go.
const LARGEST_KEPT: usize = 64 * 1024;

#[derive(Default)]
struct Free {
    small: Vec<BytesMut>,
    large: Vec<BytesMut>,
}

thread_local! {
    static FREE: RefCell<Free> = const { RefCell::new(Free { small: Vec::new(), large: Vec::new() }) };
}

/// An empty buffer with room for [`SMALL`] bytes or so.
pub fn take() -> BytesMut {
    FREE.with_borrow_mut(|free| free.small.pop()).unwrap_or_else(|| BytesMut::with_capacity(SMALL))
}

/// An empty buffer with room for [`LARGE`] bytes, or half of it where the rest is still read.
pub fn take_large() -> BytesMut {
    FREE.with_borrow_mut(|free| free.large.pop()).unwrap_or_else(|| BytesMut::with_capacity(LARGE))
}

/// Makes all the room of an empty buffer free again; `false` while a slice of it is still referenced. Whoever went on behind what
/// was read before would write to another place each time, which the processor has to fetch first.
pub fn rewind(buffer: &mut BytesMut) -> bool {
    buffer.try_reclaim(LARGE) || buffer.try_reclaim(SMALL)
}

/// Gives a buffer back; keeps it only if it is worth keeping.
pub fn recycle(mut buffer: BytesMut) {
    buffer.clear();
    if buffer.capacity() > LARGEST_KEPT || !rewind(&mut buffer) {
        return;
    }
    FREE.with_borrow_mut(|free| {
        let large = buffer.capacity() >= LARGE / 2;
        let (kept, most) = if large { (&mut free.large, LARGE_KEPT) } else { (&mut free.small, SMALL_KEPT) };
        if kept.len() < most {
            kept.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_in_its_size_and_what_is_still_read_of_it_stays() {
        let mut buffer = take_large();
        buffer.extend_from_slice(b"frames");
        let slice = buffer.split_to(3).freeze();
        recycle(buffer);
        let mut other = take_large();
        assert!(other.is_empty() && other.capacity() >= LARGE / 2);
        other.extend_from_slice(b"more");
        assert_eq!(&slice[..], b"fra");
        let place = other.as_ptr();
        recycle(other);
        assert!(take().capacity() < LARGE / 2);
        let again = take_large();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        recycle(BytesMut::with_capacity(1 << 20));
        assert!(take_large().capacity() < 1 << 20);
    }

    #[test]
    fn a_buffer_that_nobody_reads_any_more_is_filled_from_its_beginning() {
        let mut buffer = take();
        buffer.extend_from_slice(&[1; 100]);
        let (place, slice) = (buffer.as_ptr(), buffer.split_to(100).freeze());
        assert!(!rewind(&mut buffer), "{} bytes are still read", slice.len());
        drop(slice);
        assert!(rewind(&mut buffer));
        assert_eq!((buffer.as_ptr(), buffer.capacity() >= SMALL), (place, true));
    }
}
