//! A search of hours stays as small as it was in its first minute, or it ends the machine before it has found anything.
use lateen_fuzz::{Mutator, Target};

/// Resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn what_a_run_opened_is_let_go_of() {
    let target = Target::named("http1_requests").unwrap();
    let corpus = target.corpus();
    let mut mutator = Mutator::new(1);
    let mut search = || (0..4000).for_each(|_| (target.run)(&mutator.next(&corpus)));
    search();
    let before = resident();
    search();
    let grown = resident().saturating_sub(before);
    assert!(grown < 3 << 10, "{grown} KiB in 4000 inputs");
}
