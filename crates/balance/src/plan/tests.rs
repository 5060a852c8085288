use proptest::prelude::*;

use super::*;
use crate::config::LbPolicy;
use crate::host::{Address, DEGRADED_EDS, DRAINING_EDS, FAILED_EDS, Locality, PENDING_ACTIVE_HC};

fn host(flags: u32) -> Arc<Host> {
    static PORT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let port = PORT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let host = Host::new(Address::Socket(([10, 0, 0, 1], port).into()));
    host.set_flag(flags, true);
    Arc::new(host)
}

/// So many healthy, degraded and failed hosts.
fn hosts((up, degraded, down): (usize, usize, usize)) -> Vec<Arc<Host>> {
    let some = |n, flags| (0..n).map(move |_| host(flags));
    some(up, 0).chain(some(degraded, DEGRADED_EDS)).chain(some(down, FAILED_EDS)).collect()
}

fn set(priorities: &[(usize, usize, usize)]) -> HostSet {
    let priority = |counts: &_| Priority { localities: vec![LocalityHosts { hosts: hosts(*counts), ..LocalityHosts::default() }] };
    HostSet::new(priorities.iter().map(priority).collect())
}

fn planned(set: &HostSet, settings: &Settings) -> Vec<Group> {
    plan(&View { priorities: &set.priorities, set, settings, local: None, past: 0, only: None }).0
}

/// Share and number of hosts of each group.
fn shares(priorities: &[(usize, usize, usize)], panic_threshold_percent: u32) -> Vec<(u32, usize)> {
    let settings = Settings { panic_threshold_percent, ..Settings::default() };
    planned(&set(priorities), &settings).iter().map(|g| (g.share, count(&g.spread))).collect()
}

fn count(spread: &Spread) -> usize {
    match spread {
        Spread::Flat(hosts) | Spread::FailZones(hosts) => hosts.len(),
        Spread::Weighted(localities) => localities.iter().map(|l| l.hosts.len()).sum(),
        Spread::Zones { zones, .. } => zones.iter().map(Vec::len).sum(),
        Spread::Fail => 0,
    }
}

#[test]
fn spill_over_follows_envoys_table() {
    assert_eq!(shares(&[(100, 0, 0), (100, 0, 0)], 0), [(100, 100)]);
    assert_eq!(shares(&[(72, 0, 28), (100, 0, 0)], 0), [(100, 72)]);
    assert_eq!(shares(&[(71, 0, 29), (100, 0, 0)], 0), [(99, 71), (1, 100)]);
    assert_eq!(shares(&[(50, 0, 50), (100, 0, 0)], 0), [(70, 50), (30, 100)]);
    assert_eq!(shares(&[(25, 0, 75), (100, 0, 0)], 0), [(35, 25), (65, 100)]);
    assert_eq!(shares(&[(0, 0, 100), (100, 0, 0)], 0), [(100, 100)]);
    assert_eq!(shares(&[(25, 0, 75), (25, 0, 75)], 0), [(50, 25), (50, 25)]);
    assert_eq!(shares(&[(5, 0, 95), (5, 0, 95), (5, 0, 95)], 0), [(34, 5), (33, 5), (33, 5)]);
}

#[test]
fn priorities_are_gone_past_while_another_has_anybody() {
    let set = set(&[(100, 0, 0), (50, 0, 50), (0, 0, 100), (10, 0, 0)]);
    let settings = Settings { panic_threshold_percent: 0, ..Settings::default() };
    let past = |past| -> Vec<_> {
        let groups = plan(&View { priorities: &set.priorities, set: &set, settings: &settings, local: None, past, only: None }).0;
        groups.iter().map(|g| (g.share, count(&g.spread))).collect()
    };
    assert_eq!(past(0), [(100, 100)]);
    assert_eq!(past(1), [(70, 50), (30, 10)]);
    assert_eq!(past(0b1010), [(100, 100)]);
    assert_eq!(past(0b11), [(100, 10)]);
    assert_eq!(past(0b1011), [(100, 100)], "nobody is left: as if none were gone past");
}

#[test]
fn priorities_are_gone_past_in_panic_too() {
    let settings = Settings::default();
    let past = |priorities: &[(usize, usize, usize)], past| -> Vec<_> {
        let set = set(priorities);
        let groups = plan(&View { priorities: &set.priorities, set: &set, settings: &settings, local: None, past, only: None }).0;
        groups.iter().map(|g| (g.share, count(&g.spread))).collect()
    };
    let all_in_panic = [(1, 0, 9), (2, 0, 18)];
    assert_eq!(past(&all_in_panic, 0), [(34, 10), (66, 20)]);
    assert_eq!(past(&all_in_panic, 0b1), [(100, 20)]);
    assert_eq!(past(&all_in_panic, 0b11), [(50, 10), (50, 20)], "all were tried: by who serves");
    assert_eq!(past(&[(0, 0, 10), (0, 0, 20)], 0b1), [(34, 10), (66, 20)], "nobody serves: as if none were gone past");
}

#[test]
fn degraded_hosts_take_what_healthy_ones_of_all_priorities_leave() {
    assert_eq!(shares(&[(50, 50, 0), (0, 0, 100)], 0), [(70, 50), (30, 50)]);
    assert_eq!(shares(&[(0, 100, 0), (100, 0, 0)], 0), [(100, 100)], "healthy ones come first");
    // Health 10, 20 and 10 percent, degraded 20, 10 and none: all of it is scaled up to 100.
    let mut exact = set(&[(10, 20, 70), (20, 10, 70), (10, 0, 90)]);
    exact.overprovisioning_percent = 100;
    let settings = Settings { panic_threshold_percent: 0, ..Settings::default() };
    let loads: Vec<u32> = planned(&exact, &settings).iter().map(|g| g.share).collect();
    assert_eq!(loads, [16, 28, 14, 28, 14]);
}

#[test]
fn panic_sends_to_unhealthy_hosts_too_unless_the_threshold_is_zero() {
    assert_eq!(shares(&[(1, 0, 3)], 50), [(100, 4)]);
    assert_eq!(shares(&[(1, 0, 3)], 0), [(100, 1)]);
    assert_eq!(shares(&[(0, 0, 4)], 50), [(100, 4)]);
    assert_eq!(shares(&[(2, 0, 2)], 50), [(100, 2)], "half is not less than half");
    assert_eq!(shares(&[(1, 1, 2)], 50), [(50, 1), (50, 1)], "degraded ones serve too");
    assert!(shares(&[(0, 0, 4)], 0).is_empty());
}

#[test]
fn the_last_hosts_that_serve_get_all_however_few_they_are() {
    assert_eq!(shares(&[(1, 0, 139)], 0), [(100, 1)]);
    assert_eq!(shares(&[(1, 0, 140)], 0), [(100, 1)], "less than a percent of what is there");
    assert_eq!(shares(&[(0, 1, 140)], 0), [(100, 1)]);
    assert_eq!(shares(&[(0, 0, 141), (0, 1, 140), (1, 0, 200)], 0), [(100, 1)]);
    assert_eq!(shares(&[(1, 0, 140)], 1), [(100, 141)], "less than the threshold: panic");
    let mut set = set(&[(3, 0, 197)]);
    set.overprovisioning_percent = 50;
    let settings = Settings { panic_threshold_percent: 1, ..Settings::default() };
    assert_eq!(count(&planned(&set, &settings)[0].spread), 3, "enough for the threshold, but half of it is no percent");
}

#[test]
fn with_every_priority_in_panic_the_number_of_hosts_decides() {
    assert_eq!(shares(&[(1, 0, 9), (1, 0, 19)], 50), [(34, 10), (66, 20)]);
    assert_eq!(shares(&[(0, 0, 1), (0, 0, 1), (0, 0, 1)], 50), [(34, 1), (33, 1), (33, 1)]);
    // A priority that nobody is in is in panic like the others.
    assert_eq!(shares(&[(0, 0, 0), (1, 0, 9)], 50), [(100, 10)]);
    // One priority of two is well enough: only the other ignores health.
    assert_eq!(shares(&[(1, 0, 9), (5, 0, 5)], 50), [(17, 10), (83, 5)]);
}

#[test]
fn no_panic_while_other_priorities_carry_the_load() {
    assert_eq!(shares(&[(1, 0, 9), (10, 0, 0)], 50), [(14, 1), (86, 10)]);
}

#[test]
fn hosts_that_wait_for_their_first_check_or_are_drained_start_no_panic() {
    let settings = Settings::default();
    for flag in [PENDING_ACTIVE_HC, DRAINING_EDS] {
        let set = set(&[(2, 0, 6), (1, 0, 0)]);
        let groups = || planned(&set, &settings).iter().map(|g| (g.share, count(&g.spread))).collect::<Vec<_>>();
        set.hosts().filter(|h| !h.is_healthy()).skip(1).for_each(|h| h.set_flag(flag, true));
        assert_eq!(groups(), [(93, 2), (7, 1)], "two of three serve");
        set.hosts().for_each(|h| h.set_flag(flag, false));
        assert_eq!(groups(), [(35, 2), (65, 1)], "two of eight");
    }
    let set = set(&[(2, 0, 6)]);
    let number = || count(&planned(&set, &settings)[0].spread);
    assert_eq!(number(), 8, "a quarter is less than half");
    set.hosts().filter(|h| !h.is_healthy()).for_each(|h| h.set_flag(DRAINING_EDS, true));
    assert_eq!(number(), 2);
}

#[test]
fn availability_by_weight_counts_a_heavy_host_more() {
    let mut set = set(&[(1, 0, 1), (1, 0, 0)]);
    set.hosts().next().unwrap().set_weight(9);
    let settings = Settings { panic_threshold_percent: 0, ..Settings::default() };
    let shares = |set: &HostSet| planned(set, &settings).iter().map(|g| g.share).collect::<Vec<_>>();
    assert_eq!(shares(&set), [70, 30]);
    set.weighted_priority_health = true;
    assert_eq!(shares(&set), [100], "nine tenths and the overprovisioning are all of it");
}

#[test]
fn a_cluster_may_refuse_traffic_in_panic() {
    let mut settings = Settings::default();
    settings.zone_aware.fail_traffic_on_panic = true;
    assert!(matches!(planned(&set(&[(1, 0, 3)]), &settings)[0].spread, Spread::Fail));
    assert!(matches!(planned(&set(&[(3, 0, 1)]), &settings)[0].spread, Spread::Flat(_)));
}

fn localities(weights: &[(u32, (usize, usize, usize))]) -> HostSet {
    let locality = |(index, (weight, counts)): (usize, &(u32, _))| LocalityHosts {
        locality: Locality { zone: format!("z{index}").into(), ..Locality::default() },
        weight: *weight,
        hosts: hosts(*counts),
    };
    HostSet::new(vec![Priority { localities: weights.iter().enumerate().map(locality).collect() }])
}

fn weights(set: &HostSet, settings: &Settings) -> Vec<f64> {
    match &planned(set, settings)[0].spread {
        Spread::Weighted(localities) => localities.iter().map(|l| l.weight).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn localities_keep_their_weight_until_overprovisioning_is_used_up() {
    let settings = Settings { locality_weighted: true, panic_threshold_percent: 0, ..Settings::default() };
    assert_eq!(weights(&localities(&[(1, (10, 0, 0)), (2, (10, 0, 0))]), &settings), [1.0, 2.0]);
    assert_eq!(weights(&localities(&[(1, (10, 0, 0)), (2, (72, 0, 28))]), &settings), [1.0, 2.0]);
    assert_eq!(weights(&localities(&[(1, (10, 0, 0)), (2, (50, 0, 50))]), &settings), [1.0, 1.4]);
    assert_eq!(weights(&localities(&[(1, (10, 0, 0)), (2, (0, 0, 5))]), &settings), [1.0], "nobody is there");
    let unweighted = localities(&[(0, (1, 0, 0)), (3, (0, 0, 1))]);
    assert!(weights(&unweighted, &settings).is_empty(), "with no weight left, all who serve are alike");
    let hash = Settings { policy: LbPolicy::Maglev { table_size: 7 }, ..settings };
    assert_eq!(weights(&localities(&[(1, (10, 0, 0)), (2, (1, 0, 9))]), &hash), [1.0, 2.0], "tables keep weights as they are");
}

#[test]
fn in_panic_localities_have_no_weights() {
    let settings = Settings { locality_weighted: true, ..Settings::default() };
    assert!(weights(&localities(&[(1, (1, 0, 9)), (2, (1, 0, 9))]), &settings).is_empty());
}

proptest! {
    #[test]
    fn all_of_the_traffic_goes_somewhere_and_never_to_nobody(
        priorities in proptest::collection::vec((0usize..5, 0usize..5, 0usize..5), 0..5),
        threshold in 0u32..=100,
        overprovisioning_percent in 1u32..300,
    ) {
        let mut set = set(&priorities);
        set.overprovisioning_percent = overprovisioning_percent;
        let settings = Settings { panic_threshold_percent: threshold, ..Settings::default() };
        let groups = planned(&set, &settings);
        let serving = priorities.iter().any(|(up, degraded, _)| up + degraded > 0);
        let anybody = serving || (threshold > 0 && !set.is_empty());
        prop_assert_eq!(groups.iter().map(|g| g.share).sum::<u32>(), if anybody { 100 } else { 0 });
        for group in groups {
            prop_assert!(count(&group.spread) > 0 && group.share > 0);
        }
    }
}
