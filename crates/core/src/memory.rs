//! Small processes: a mesh on one machine has a dozen of them, so what only the start needed is given back.
//!
//! Reading a command line, a bootstrap and a first configuration touches most of the program and several megabytes of
//! heap; serving touches little of either. Nothing here changes what the process can do: a page of the program that
//! is needed again comes back from the page cache, at the price of one minor fault.
#![allow(unsafe_code)]

use std::ops::Range;
use std::time::Duration;

/// Threads of this process share one heap. glibc otherwise keeps one for each thread, which pays off where several
/// threads allocate all the time, and is waste in a process that mostly waits. To be called before any thread starts.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes no pointers; it may be called at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back, once `after` has passed, what only the start needed. Costs a thread until then.
pub fn settle_after(after: Duration) {
    // Without the thread everything works and stays larger.
    let _ = std::thread::Builder::new().name("settle".into()).stack_size(64 << 10).spawn(move || {
        std::thread::sleep(after);
        settle();
    });
}

/// Gives back free heap, and the pages of the program that are mapped but can be had from its file again.
pub fn settle() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes no pointers; it may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for range in restorable(&maps) {
        // SAFETY: the range is one mapping of this process, of a file, not writable, and without a page of its own
        // (all of them are the file's), so that whoever reads or runs it next finds the same bytes.
        unsafe {
            libc::madvise(range.start as *mut libc::c_void, range.end - range.start, libc::MADV_DONTNEED);
        }
    }
}

/// The mappings in a text of `/proc/PID/smaps` that hold nothing but a file's unchanged content. Relocated data is
/// read-only too but differs from the file: it counts as anonymous, and is left alone.
fn restorable(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut current: Option<Range<usize>> = None;
    let (mut kept, mut clean) = (0, 0);
    let mut close = |range: Option<Range<usize>>, kept: i32, clean: i32| {
        // All three lines have to be there: a kernel that does not say is not guessed about.
        if let Some(range) = range.filter(|_| kept == 0 && clean == 2) {
            found.push(range);
        }
    };
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((start, end)) = first.split_once('-') {
            close(current.take(), kept, clean);
            (kept, clean) = (0, 0);
            let (rights, inode) = (words.next().unwrap_or_default(), words.nth(2).unwrap_or("0"));
            let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)) else { continue };
            let of_file = matches!(rights, "r--p" | "r-xp") && inode != "0";
            current = (of_file && start < end).then_some(start..end);
        } else if matches!(first, "Anonymous:" | "Swap:") {
            match words.next() {
                Some("0") => clean += 1,
                _ => kept += 1,
            }
        }
    }
    close(current, kept, clean);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_pages_of_files_are_given_back() {
        let entry = |head: &str, anonymous: u32| format!("{head}\nSize: 64 kB\nRss: 64 kB\nAnonymous: {anonymous} kB\nSwap: 0 kB\n");
        let text = [
            entry("1000-2000 r--p 00000000 fe:00 77 /bin/program", 0),
            entry("2000-9000 r-xp 00001000 fe:00 77 /bin/program", 0),
            entry("9000-a000 r--p 00008000 fe:00 77 /bin/program", 8),
            entry("a000-b000 rw-p 00009000 fe:00 77 /bin/program", 0),
            entry("c000-d000 r-xp 00000000 00:00 0 [vdso]", 0),
            "e000-f000 r-xp 00000000 fe:00 78 /lib/silent\nRss: 4 kB\n".to_owned(),
        ];
        assert_eq!(restorable(&text.concat()), [0x1000..0x2000, 0x2000..0x9000]);
        for odd in ["", "\n", "-", "x-y r-xp", "2000-1000 r-xp 0 0 1\nAnonymous: 0 kB\nSwap: 0 kB", "Anonymous:"] {
            assert!(restorable(odd).is_empty(), "{odd}");
        }
    }

    #[test]
    fn a_process_that_has_settled_works_and_is_smaller() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
        };
        let text: String = (0..1000).map(|n| n.to_string()).collect();
        let before = resident();
        settle();
        assert!(resident() < before, "{} of {before} pages", resident());
        assert_eq!(text, (0..1000).map(|n| n.to_string()).collect::<String>());
        let caught = std::panic::catch_unwind(|| std::panic::resume_unwind(Box::new(7)));
        assert_eq!(*caught.unwrap_err().downcast::<i32>().unwrap(), 7);
    }
}
