//! Admission control: requests are refused before they are sent when too many of the last ones failed (Envoy
//! `admission_control` filter).
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// The filter.
#[derive(Debug)]
pub struct AdmissionControl {
    pub enabled: bool,
    /// HTTP statuses of success.
    pub http_success: Vec<RangeInclusive<u16>>,
    /// gRPC statuses of success.
    pub grpc_success: Vec<u32>,
    /// How far back is looked; 30 s unless set.
    pub window: Duration,
    /// At least 1, which is the default: the larger, the more is refused early.
    pub aggression: f64,
    /// Share of successes below which requests are refused; 0.95 unless set.
    pub threshold: f64,
    /// Below so many requests a second nothing is refused.
    pub rps_threshold: u32,
    /// Share of requests that is never exceeded; 0.8 unless set.
    pub most_rejected: f64,
}

impl AdmissionControl {
    /// How probably a request is refused after `requests` of which `successes` went well.
    pub fn rejection(&self, requests: u64, successes: u64) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let (requests, successes) = (requests as f64, successes as f64);
        let base = ((requests - successes / self.threshold) / (requests + 1.0)).max(0.0);
        base.powf(1.0 / self.aggression).min(self.most_rejected)
    }

    pub fn is_http_success(&self, status: u16) -> bool {
        self.http_success.iter().any(|range| range.contains(&status))
    }

    pub fn is_grpc_success(&self, status: u32) -> bool {
        self.grpc_success.contains(&status)
    }
}

/// What became of the last requests, by the second.
#[derive(Debug, Default)]
pub struct Window {
    seconds: VecDeque<Second>,
    requests: u64,
    successes: u64,
}

#[derive(Debug)]
struct Second {
    since: Instant,
    requests: u64,
    successes: u64,
}

impl Window {
    /// Notes a response.
    pub fn record(&mut self, success: bool, now: Instant, window: Duration) {
        self.forget(now, window);
        if self.seconds.back().is_none_or(|last| now.saturating_duration_since(last.since) >= Duration::from_secs(1)) {
            self.seconds.push_back(Second { since: now, requests: 0, successes: 0 });
        }
        if let Some(last) = self.seconds.back_mut() {
            last.requests += 1;
            last.successes += u64::from(success);
        }
        self.requests += 1;
        self.successes += u64::from(success);
    }

    /// Requests and successes within the window.
    pub fn counts(&mut self, now: Instant, window: Duration) -> (u64, u64) {
        self.forget(now, window);
        (self.requests, self.successes)
    }

    /// Requests a second since the oldest that counts, for at least a second.
    pub fn rate(&mut self, now: Instant, window: Duration) -> u64 {
        self.forget(now, window);
        let age = self.seconds.front().map_or(0, |oldest| now.saturating_duration_since(oldest.since).as_secs());
        self.requests / age.max(1)
    }

    fn forget(&mut self, now: Instant, window: Duration) {
        while let Some(oldest) = self.seconds.front().filter(|oldest| now.saturating_duration_since(oldest.since) >= window) {
            self.requests -= oldest.requests;
            self.successes -= oldest.successes;
            self.seconds.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(3);

    fn control(aggression: f64) -> AdmissionControl {
        AdmissionControl {
            enabled: true,
            http_success: vec![100..=499],
            grpc_success: vec![0],
            window: WINDOW,
            aggression,
            threshold: 0.5,
            rps_threshold: 0,
            most_rejected: 0.8,
        }
    }

    #[test]
    fn the_fewer_succeed_the_more_are_refused() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let linear = control(1.0);
        assert!(near(linear.rejection(0, 0), 0.0) && near(linear.rejection(100, 100), 0.0) && near(linear.rejection(100, 50), 0.0));
        assert!(near(linear.rejection(99, 25), 0.49));
        assert!(near(linear.rejection(1000, 0), 0.8), "never more than that");
        assert!(near(control(2.0).rejection(99, 25), 0.7));
        assert!(near(control(2.0).rejection(100, 100), 0.0));
    }

    #[test]
    fn what_is_longer_ago_than_the_window_is_forgotten() {
        let (mut window, start) = (Window::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        window.record(true, at(0), WINDOW);
        window.record(false, at(500), WINDOW);
        window.record(true, at(1600), WINDOW);
        assert_eq!(window.counts(at(1700), WINDOW), (3, 2));
        assert_eq!((window.rate(at(900), WINDOW), window.rate(at(2999), WINDOW)), (3, 1));
        assert_eq!(window.counts(at(3000), WINDOW), (1, 1));
        assert_eq!(window.counts(at(9000), WINDOW), (0, 0));
        assert_eq!(window.rate(at(9000), WINDOW), 0);
    }
}
