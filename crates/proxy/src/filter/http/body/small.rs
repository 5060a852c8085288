//! Small pieces of a body that is held are put together: what holds them costs as much as hundreds of bytes, and a slice of a
//! read keeps all that was read.
use bytes::{Bytes, BytesMut};

/// What pieces are put together up to.
const SMALL: usize = 4096;

/// Puts a small piece behind the one that was held last, where that is small too; `false` where it is to be held by itself.
pub(crate) fn join(last: Option<&mut Bytes>, data: &Bytes) -> bool {
    let Some(last) = last.filter(|last| last.len() + data.len() <= SMALL) else { return false };
    let mut joined = match std::mem::take(last).try_into_mut() {
        // Put together before: the room is there.
        Ok(own) if own.capacity() == SMALL => own,
        Ok(other) => copy(&other),
        Err(shared) => copy(&shared),
    };
    joined.extend_from_slice(data);
    *last = joined.freeze();
    true
}

fn copy(data: &[u8]) -> BytesMut {
    let mut own = BytesMut::with_capacity(SMALL);
    own.extend_from_slice(data);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_become_one_and_keep_no_more_than_they_are() {
        let read = Bytes::from(vec![b'a'; 32 * 1024]);
        let mut held = read.slice(..1);
        for at in 1..SMALL {
            let before = held.as_ptr();
            assert!(join(Some(&mut held), &read.slice(at..=at)));
            assert!(at == 1 || held.as_ptr() == before, "moved at {at}");
        }
        assert_eq!(held, read.slice(..SMALL));
        assert!(!join(Some(&mut held), &read.slice(..1)));
        assert!(!join(None, &read.slice(..1)));
        assert!(held.is_unique() && held.try_into_mut().unwrap().capacity() == SMALL);
    }

    #[test]
    fn what_others_hold_too_is_left_to_them() {
        let mut held = Bytes::from(vec![b'a'; 10]);
        let sent = held.clone();
        assert!(join(Some(&mut held), &Bytes::from_static(b"b")));
        assert_eq!((&sent[..], &held[..]), (&b"aaaaaaaaaa"[..], &b"aaaaaaaaaab"[..]));
    }
}
