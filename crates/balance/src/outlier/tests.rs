use std::time::Duration;

use super::*;
use crate::host::Address;

fn hosts(n: u16) -> HostSet {
    let host = |i| Arc::new(Host::new(Address::Socket(([10, 0, 0, 1], i).into())));
    HostSet::flat((1..=n).map(host).collect())
}

fn settings() -> OutlierSettings {
    OutlierSettings { consecutive_5xx: 3, max_ejection_percent: 100, ..OutlierSettings::default() }
}

fn first(set: &HostSet) -> Arc<Host> {
    Arc::clone(set.hosts().next().unwrap())
}

#[test]
fn three_failures_in_a_row_eject_and_a_success_between_starts_over() {
    let (set, s) = (hosts(2), settings());
    let host = first(&set);
    for status in [500, 500, 200, 500, 500] {
        assert!(report(&s, &set, &host, Outcome::Response(status), 0, 0).is_none());
    }
    let epoch = set.health_epoch();
    let detection = report(&s, &set, &host, Outcome::Response(500), 0, 0).unwrap();
    assert_eq!((detection.detector, detection.result), (Detector::Consecutive5xx, Ejection::Ejected));
    assert!(!host.is_healthy());
    assert_ne!(set.health_epoch(), epoch);
}

#[test]
fn an_ejection_lasts_its_base_time_and_twice_that_the_second_time() {
    let (set, s) = (hosts(2), OutlierSettings { consecutive_5xx: 1, ..settings() });
    let host = first(&set);
    report(&s, &set, &host, Outcome::Response(503), 1_000, 0);
    assert!(tick(&s, &set, 30_999, || 0).returned.is_empty());
    assert_eq!(tick(&s, &set, 31_000, || 0).returned.len(), 1);
    report(&s, &set, &host, Outcome::Response(503), 32_000, 0);
    assert!(tick(&s, &set, 62_000, || 0).returned.is_empty());
    assert_eq!(tick(&s, &set, 92_000, || 0).returned.len(), 1);
}

#[test]
fn a_released_host_needs_as_many_failures_as_before_to_go_again() {
    let (set, s) = (hosts(2), settings());
    let host = first(&set);
    (0..3).for_each(|_| drop(report(&s, &set, &host, Outcome::Response(500), 0, 0)));
    assert!(!host.is_healthy());
    release(&host, 0);
    (0..2).for_each(|_| drop(report(&s, &set, &host, Outcome::Response(500), 0, 0)));
    assert!(host.is_healthy());
    report(&s, &set, &host, Outcome::Response(500), 0, 0);
    assert!(!host.is_healthy());
}

#[test]
fn without_detection_nobody_stays_ejected() {
    let set = hosts(10);
    let host = first(&set);
    for _ in 0..5 {
        report(&settings(), &set, &host, Outcome::Response(500), 0, 0);
    }
    assert!(!host.is_healthy());
    let before = set.health_epoch();
    assert!(end(&set));
    assert!(host.is_healthy() && set.health_epoch() != before);
    assert!(!end(&set), "nobody is left to let in");
}

#[test]
fn ejections_stop_at_the_maximum_percentage() {
    let (set, s) = (hosts(4), OutlierSettings { consecutive_5xx: 1, max_ejection_percent: 50, ..settings() });
    let results: Vec<Ejection> = set.hosts().map(|h| report(&s, &set, h, Outcome::Response(500), 0, 0).unwrap().result).collect();
    assert_eq!(results, [Ejection::Ejected, Ejection::Ejected, Ejection::Overflow, Ejection::Overflow]);
}

#[test]
fn the_default_of_ten_percent_ejects_nobody_from_a_pair_unless_one_is_always_allowed() {
    let s = OutlierSettings { consecutive_5xx: 1, max_ejection_percent: 10, ..settings() };
    let set = hosts(2);
    assert_eq!(report(&s, &set, &first(&set), Outcome::Response(500), 0, 0).unwrap().result, Ejection::Overflow);
    let s = OutlierSettings { always_eject_one_host: true, ..s };
    assert_eq!(report(&s, &set, &first(&set), Outcome::Response(500), 0, 0).unwrap().result, Ejection::Ejected);
}

#[test]
fn gateway_errors_are_502_to_504_only() {
    let s =
        OutlierSettings { consecutive_5xx: 0, consecutive_gateway_failure: 2, enforcing_consecutive_gateway_failure: 100, ..settings() };
    let set = hosts(2);
    let host = first(&set);
    for status in [502, 500, 503] {
        assert!(report(&s, &set, &host, Outcome::Response(status), 0, 0).is_none(), "500 breaks the row");
    }
    assert_eq!(report(&s, &set, &host, Outcome::LocalTimeout, 0, 0).unwrap().result, Ejection::Ejected);
}

#[test]
fn split_local_errors_are_counted_apart() {
    let s =
        OutlierSettings { consecutive_5xx: 1, split_external_local_origin_errors: true, consecutive_local_origin_failure: 2, ..settings() };
    let set = hosts(2);
    let host = first(&set);
    assert!(report(&s, &set, &host, Outcome::LocalFailure, 0, 0).is_none());
    report(&s, &set, &host, Outcome::LocalSuccess, 0, 0);
    assert!(report(&s, &set, &host, Outcome::LocalFailure, 0, 0).is_none());
    let detection = report(&s, &set, &host, Outcome::LocalFailure, 0, 0).unwrap();
    assert_eq!(detection.detector, Detector::ConsecutiveLocalOriginFailure);
}

#[test]
fn a_host_far_below_the_mean_success_rate_goes() {
    let s = OutlierSettings { consecutive_5xx: 0, success_rate_request_volume: 10, ..settings() };
    let set = hosts(6);
    for (i, host) in set.hosts().enumerate() {
        for n in 0..20 {
            let status = if i == 0 && n % 2 == 0 { 500 } else { 200 };
            report(&s, &set, host, Outcome::Response(status), 0, 0);
        }
    }
    let detections = tick(&s, &set, 10_000, || 0).detections;
    assert_eq!(detections.len(), 1);
    assert!(!first(&set).is_healthy());
    assert_eq!(first(&set).outlier.success_rate(), Some(50.0));
}

#[test]
fn shares_of_failures_are_compared_with_the_limit() {
    let s = OutlierSettings {
        consecutive_5xx: 0,
        enforcing_success_rate: 0,
        enforcing_failure_percentage: 100,
        failure_percentage_threshold: 50,
        failure_percentage_minimum_hosts: 3,
        failure_percentage_request_volume: 4,
        ..settings()
    };
    let out = |failures: [usize; 3], requests: usize| {
        let set = hosts(3);
        for (host, failures) in set.hosts().zip(failures) {
            (0..requests).for_each(|n| drop(report(&s, &set, host, Outcome::Response(if n < failures { 500 } else { 200 }), 0, 0)));
        }
        tick(&s, &set, 10_000, || 0);
        set.hosts().map(|h| h.is_healthy()).collect::<Vec<_>>()
    };
    assert_eq!(out([2, 1, 4], 4), [false, true, false], "half is enough");
    assert_eq!(out([3, 3, 3], 3), [true; 3], "too few requests");
}

#[test]
fn local_errors_are_compared_apart_where_they_are_told_apart() {
    let s = OutlierSettings {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: 0,
        success_rate_request_volume: 10,
        failure_percentage_request_volume: 10,
        ..settings()
    };
    let run = |s: &OutlierSettings| {
        let set = hosts(6);
        for (i, host) in set.hosts().enumerate() {
            for n in 0..20 {
                let outcome = if i == 0 && n % 2 == 0 { Outcome::LocalFailure } else { Outcome::LocalSuccess };
                report(s, &set, host, outcome, 0, 0);
                report(s, &set, host, Outcome::Response(200), 0, 0);
            }
        }
        let found = tick(s, &set, 10_000, || 0).detections.iter().map(|d| (d.detector, d.result)).collect::<Vec<_>>();
        assert_eq!(first(&set).outlier.local_origin_success_rate(), Some(50.0));
        assert_eq!(first(&set).outlier.success_rate(), Some(100.0));
        found
    };
    assert_eq!(run(&s), [(Detector::LocalOriginSuccessRate, Ejection::Ejected)]);
    let by_percentage = OutlierSettings {
        enforcing_local_origin_success_rate: 0,
        enforcing_failure_percentage_local_origin: 100,
        failure_percentage_threshold: 50,
        ..s
    };
    let found = [(Detector::LocalOriginSuccessRate, Ejection::NotEnforced), (Detector::LocalOriginFailurePercentage, Ejection::Ejected)];
    assert_eq!(run(&by_percentage), found);
}

#[test]
fn an_ejected_host_is_not_compared_with_the_others() {
    let s = OutlierSettings { consecutive_5xx: 2, success_rate_request_volume: 1, success_rate_minimum_hosts: 2, ..settings() };
    let set = hosts(3);
    for host in set.hosts() {
        report(&s, &set, host, Outcome::Response(200), 0, 0);
    }
    (0..2).for_each(|_| drop(report(&s, &set, &first(&set), Outcome::Response(500), 0, 0)));
    assert!(!first(&set).is_healthy());
    assert!(tick(&s, &set, 10_000, || 0).detections.is_empty());
    assert_eq!(first(&set).outlier.success_rate(), None);
}

#[test]
fn ejections_are_no_longer_than_the_most_and_jitter_is_settled_when_they_begin() {
    let second = Duration::from_secs(1);
    let s = OutlierSettings {
        consecutive_5xx: 1,
        base_ejection_time: 10 * second,
        max_ejection_time: 25 * second,
        max_ejection_time_jitter: second,
        ..settings()
    };
    let set = hosts(2);
    let host = first(&set);
    let mut now = 0;
    let mut span = |roll: u32| {
        report(&s, &set, &host, Outcome::Response(500), now, roll);
        let began = now;
        while !host.is_healthy() {
            now += 100;
            tick(&s, &set, now, || 0);
        }
        now - began
    };
    assert_eq!([span(0), span(0), span(0), span(0)], [10_000, 20_000, 25_000, 25_000]);
    let jittered: Vec<u64> = (1..20).map(|roll| span(roll * 100)).collect();
    assert!(jittered.iter().all(|t| (25_000..=26_000).contains(t)) && jittered.iter().any(|t| *t != jittered[0]), "{jittered:?}");
}

#[test]
fn a_connection_is_a_success_where_nothing_more_will_be_known() {
    let (set, s) = (hosts(2), OutlierSettings { consecutive_5xx: 2, ..settings() });
    let host = first(&set);
    for outcome in [Outcome::LocalFailure, Outcome::LocalSuccessFinal, Outcome::LocalFailure, Outcome::LocalSuccess] {
        assert!(report(&s, &set, &host, outcome, 0, 0).is_none());
    }
    assert!(report(&s, &set, &host, Outcome::LocalFailure, 0, 0).is_some(), "a connection alone is no answer");
}

#[test]
fn a_host_that_says_it_is_degraded_comes_last_for_a_while() {
    let (set, s) = (hosts(2), OutlierSettings { detect_degraded_hosts: true, ..settings() });
    let host = first(&set);
    assert!(degraded(&s, &set, &host, 0) && !degraded(&s, &set, &host, 5));
    assert!(host.is_degraded() && host.is_healthy());
    tick(&s, &set, 29_999, || 0);
    assert!(host.is_degraded());
    tick(&s, &set, 30_000, || 0);
    assert!(!host.is_degraded());
    degraded(&s, &set, &host, 31_000);
    tick(&s, &set, 90_000, || 0);
    assert!(host.is_degraded(), "twice as long the second time");
    assert!(end(&set) && !host.is_degraded());
    assert!(!degraded(&settings(), &set, &host, 0), "only where it is asked for");
}

#[test]
fn quiet_intervals_make_the_next_ejection_short_again() {
    let (set, s) = (hosts(2), OutlierSettings { consecutive_5xx: 1, ..settings() });
    let host = first(&set);
    report(&s, &set, &host, Outcome::Response(500), 0, 0);
    tick(&s, &set, 30_000, || 0);
    tick(&s, &set, 40_000, || 0);
    report(&s, &set, &host, Outcome::Response(500), 50_000, 0);
    assert_eq!(tick(&s, &set, 80_000, || 0).returned.len(), 1);
    assert_eq!(s.base_ejection_time, Duration::from_secs(30));
}
