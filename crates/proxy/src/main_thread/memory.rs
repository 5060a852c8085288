//! Giving memory back: reading a configuration and dumping it take megabytes for a moment, which the
//! allocator would otherwise keep for the life of a process that needs few.
#![allow(unsafe_code)]

/// Returns what the allocator holds but nobody uses.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes no pointers and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
