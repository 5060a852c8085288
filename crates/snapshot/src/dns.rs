//! How names are resolved: which servers are asked and how, and when to ask again.
pub mod cache;

use std::net::SocketAddr;
use std::time::Duration;

/// How a cluster's names are looked up, and how often (Envoy `DnsCluster`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsSettings {
    pub family: DnsFamily,
    /// That of the bootstrap where nothing is said.
    pub resolver: Option<DnsResolver>,
    /// Envoy default 5 s.
    pub refresh: Duration,
    /// Whether the time to live of an answer replaces `refresh`.
    pub respect_ttl: bool,
    /// A shorter time to live counts as this.
    pub min_refresh: Duration,
    /// A refresh comes later by a random time below this.
    pub jitter: Duration,
    /// First and longest pause after failures; `refresh` when not given.
    pub failure: Option<Backoff>,
}

/// Pauses that double from the first to the longest, each shortened at random (Envoy `JitteredExponentialBackOffStrategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DnsFamily {
    /// IPv6 addresses, or those of IPv4 where there are none.
    Auto,
    V4Only,
    V6Only,
    V4Preferred,
    All,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DnsResolver {
    /// Our own: asks DNS servers, and knows the time to live of answers.
    Stub(StubResolver),
    /// The C library's `getaddrinfo`, with all that the system has for names. It tells no time to live.
    System,
}

/// Envoy `CaresDnsResolverConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StubResolver {
    /// Servers to ask; those of the system where empty.
    pub servers: Vec<SocketAddr>,
    /// The servers above count only where the system has none.
    pub servers_as_fallback: bool,
    pub tcp: bool,
    /// Names are asked for as they are, without the system's search domains.
    pub no_search: bool,
    /// No addresses of a family in which no interface but loopback has an address.
    pub filter_unroutable: bool,
    /// How long a server has for its answer; Envoy default 5 s.
    pub timeout: Duration,
    /// How often each server is asked; Envoy default 4.
    pub tries: u32,
    /// Begin with another server each time.
    pub rotate: bool,
    /// The longest datagram we take.
    pub payload: u16,
}

impl Default for StubResolver {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            servers_as_fallback: false,
            tcp: false,
            no_search: false,
            filter_unroutable: false,
            timeout: Duration::from_secs(5),
            tries: 4,
            rotate: false,
            payload: 1232,
        }
    }
}

impl Default for DnsResolver {
    fn default() -> Self {
        Self::Stub(StubResolver::default())
    }
}

/// An upper bound for what an answer may say of itself: RFC 2181 has no time to live above 68 years, and nobody means a week.
pub(crate) const LONGEST_TTL: Duration = Duration::from_secs(7 * 86_400);

impl DnsSettings {
    /// When to ask again after an answer. `ttl` is that of its addresses, if it had any and they have one.
    pub fn after_answer(&self, ttl: Option<Duration>, roll: u64) -> Duration {
        let pause = match ttl.filter(|ttl| self.respect_ttl && !ttl.is_zero()) {
            Some(ttl) => ttl.min(LONGEST_TTL).max(self.min_refresh),
            None => self.refresh,
        };
        pause + below(self.jitter, roll)
    }

    /// When to ask again after `failures` failures in a row.
    pub fn after_failure(&self, failures: u32, roll: u64) -> Duration {
        self.failure.map_or(self.refresh, |backoff| backoff.pause(failures, roll))
    }
}

impl Backoff {
    pub fn pause(&self, failures: u32, roll: u64) -> Duration {
        let doubled = self.base.saturating_mul(1 << failures.saturating_sub(1).min(20));
        below(doubled.min(self.max), roll).max(Duration::from_millis(1))
    }
}

/// A time below `bound`, in whole milliseconds.
fn below(bound: Duration, roll: u64) -> Duration {
    let bound = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(roll.checked_rem(bound).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings() -> DnsSettings {
        DnsSettings {
            family: DnsFamily::All,
            resolver: None,
            refresh: 5 * SECOND,
            respect_ttl: false,
            min_refresh: Duration::ZERO,
            jitter: Duration::ZERO,
            failure: None,
        }
    }

    #[test]
    fn the_time_to_live_counts_where_it_is_respected_and_not_zero() {
        let mut settings = settings();
        assert_eq!(settings.after_answer(Some(60 * SECOND), 9), 5 * SECOND);
        settings.respect_ttl = true;
        assert_eq!(settings.after_answer(Some(60 * SECOND), 9), 60 * SECOND);
        assert_eq!(settings.after_answer(Some(Duration::ZERO), 9), 5 * SECOND);
        assert_eq!(settings.after_answer(None, 9), 5 * SECOND);
        settings.min_refresh = 30 * SECOND;
        assert_eq!(settings.after_answer(Some(10 * SECOND), 9), 30 * SECOND);
        settings.jitter = SECOND;
        assert_eq!(settings.after_answer(Some(60 * SECOND), 2_345), 60 * SECOND + Duration::from_millis(345));
    }

    #[test]
    fn pauses_after_failures_double_to_their_limit_and_are_cut_at_random() {
        let mut settings = settings();
        assert_eq!(settings.after_failure(3, 7), 5 * SECOND);
        settings.failure = Some(Backoff { base: SECOND, max: 3 * SECOND });
        assert_eq!(settings.after_failure(1, 999), Duration::from_millis(999));
        assert_eq!(settings.after_failure(1, 1_000), Duration::from_millis(1));
        assert_eq!(settings.after_failure(2, 1_999), Duration::from_millis(1_999));
        assert_eq!(settings.after_failure(3, 2_999), Duration::from_millis(2_999));
        assert_eq!(settings.after_failure(400, 3_000), Duration::from_millis(1));
    }
}
