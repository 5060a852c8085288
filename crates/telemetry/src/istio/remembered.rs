//! What a worker remembers of what callers said: bounded by number and by bytes, since callers can fill it at will.
use std::collections::HashMap;

/// Entries at most.
const ENTRIES: usize = 1024;
/// Bytes of keys at most.
const BYTES: usize = 1024 * 1024;

pub(super) struct Remembered<T> {
    by_key: HashMap<Box<[u8]>, T>,
    /// Of all keys.
    bytes: usize,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), bytes: 0 }
    }
}

impl<T: Copy> Remembered<T> {
    pub(super) fn get(&self, key: &[u8]) -> Option<T> {
        self.by_key.get(key).copied()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets everything when there is no room: what is in use comes again at once.
    pub(super) fn put(&mut self, key: &[u8], value: T) {
        if self.by_key.len() >= ENTRIES || self.bytes + key.len() > BYTES {
            self.by_key.clear();
            self.bytes = 0;
        }
        if self.by_key.insert(key.into(), value).is_none() {
            self.bytes += key.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_many_keys_nor_long_ones_are_kept() {
        let mut short = Remembered::default();
        for key in 0..10_000_u32 {
            short.put(&key.to_be_bytes(), key);
            assert!(short.by_key.len() <= ENTRIES);
            assert_eq!(short.get(&key.to_be_bytes()), Some(key));
        }
        let mut long = Remembered::default();
        for key in 0..1_000_u32 {
            let mut bytes = vec![0; 16 * 1024];
            bytes[..4].copy_from_slice(&key.to_be_bytes());
            long.put(&bytes, key);
            long.put(&bytes, key);
            assert_eq!(long.get(&bytes), Some(key));
            let held: usize = long.by_key.keys().map(|key| key.len()).sum();
            assert!(held == long.bytes && held <= BYTES);
        }
    }
}
