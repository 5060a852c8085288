//! Header maps of requests that are over, for those to come: each has two tables of some kilobytes.
use std::cell::RefCell;

use http::HeaderMap;

/// Maps that a thread keeps: two for each of the requests that a busy one has under way.
const KEPT: usize = 128;
/// Larger ones are let go: few requests have so many headers.
const LARGEST_KEPT: usize = 128;

thread_local! {
    static FREE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty map with room for so many headers.
pub fn take(headers: usize) -> HeaderMap {
    let found = FREE.with_borrow_mut(Vec::pop);
    found.filter(|map| map.capacity() >= headers).unwrap_or_else(|| HeaderMap::with_capacity(headers))
}

/// Gives a map back that nobody reads any more.
pub fn recycle(mut map: HeaderMap) {
    if map.capacity() == 0 || map.capacity() > LARGEST_KEPT {
        return;
    }
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT {
            map.clear();
            free.push(map);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{ACCEPT, HeaderValue};

    #[test]
    fn a_map_comes_back_empty_and_never_too_small() {
        let mut map = take(20);
        map.append(ACCEPT, HeaderValue::from_static("a"));
        map.append(ACCEPT, HeaderValue::from_static("b"));
        let room = map.capacity();
        recycle(map);
        let map = take(10);
        assert_eq!((map.len(), map.capacity(), map.get(ACCEPT)), (0, room, None));
        recycle(map);
        assert!(take(100).capacity() >= 100);
        recycle(HeaderMap::with_capacity(1000));
        assert!(take(1).capacity() < 1000);
    }
}
