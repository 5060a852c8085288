//! Keeping a workload's certificate fresh: renewed at half its life, retried with growing pauses,
//! and never taken away before a better one is there.
//!
//! [`Schedule`] decides when, without a clock or a socket; [`Rotation`] is the task around it.
use crate::secrets::WorkloadSecrets;
use futures_util::future::BoxFuture;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// When to renew and how to retry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Part of the lifetime after which a certificate is renewed (Istio `SECRET_GRACE_PERIOD_RATIO`, 0.5).
    pub renew_at: f64,
    /// The renewal moves by up to this part of the lifetime either way, so that workloads started
    /// together do not all come back together.
    pub jitter: f64,
    /// First and longest pause after a failure; it doubles in between.
    pub first_retry: Duration,
    pub last_retry: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { renew_at: 0.5, jitter: 0.05, first_retry: Duration::from_secs(1), last_retry: Duration::from_secs(60) }
    }
}

/// Long sleeps are cut into these, so that a clock that was set, or a machine that slept, is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Even a certificate of a few seconds is not renewed in a tight loop.
const SHORTEST_WAIT: Duration = Duration::from_millis(500);

/// A policy without pauses must not starve the rest of the runtime.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// Decides when the next certificate is fetched. Owned by one task.
#[derive(Debug)]
pub struct Schedule {
    policy: Policy,
    dice: SmallRng,
    due: Option<SystemTime>,
    failures: u32,
}

impl Schedule {
    /// Due at once: there is no certificate yet. `seed` fixes the jitter.
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self { policy, dice: SmallRng::seed_from_u64(seed), due: None, failures: 0 }
    }

    /// A certificate was obtained at `now` and ends at `expiry`. The lifetime counts from `now`: the
    /// start in the certificate lies in the past to tolerate slow clocks.
    pub fn renewed(&mut self, expiry: SystemTime, now: SystemTime) {
        self.failures = 0;
        let life = expiry.duration_since(now).unwrap_or_default();
        let jitter = self.policy.jitter.abs();
        let part = self.policy.renew_at + if jitter > 0.0 { self.dice.random_range(-jitter..=jitter) } else { 0.0 };
        let wait = life.mul_f64(part.clamp(0.0, 0.95)).max(SHORTEST_WAIT);
        self.due = Some(now + wait);
    }

    /// Fetching failed; the next attempt is due after the returned pause.
    pub fn failed(&mut self, now: SystemTime) -> Duration {
        let doubled = self.policy.first_retry.saturating_mul(2u32.saturating_pow(self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        let longest = doubled.min(self.policy.last_retry);
        // Between half and all of it: a crowd that failed together must not come back together.
        let pause = longest.mul_f64(self.dice.random_range(0.5..=1.0)).max(SHORTEST_PAUSE);
        self.due = Some(now + pause);
        pause
    }

    /// Makes the next attempt due now.
    pub fn hurry(&mut self) {
        self.due = None;
    }

    pub fn is_due(&self, now: SystemTime) -> bool {
        self.due.is_none_or(|due| now >= due)
    }

    /// How long to sleep before asking [`Schedule::is_due`] again.
    pub fn pause(&self, now: SystemTime) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.duration_since(now).unwrap_or_default()).min(LONGEST_SLEEP)
    }

    /// Attempts that failed since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// Where certificates come from: [`crate::csr_client::CsrClient`], or a test's own.
pub trait CertificateSource: Send + Sync + 'static {
    /// Obtains a new certificate; `current` may serve as the credential. Must end in bounded time.
    fn fetch(&self, current: Option<Arc<WorkloadSecrets>>) -> BoxFuture<'_, Result<WorkloadSecrets, FetchError>>;
}

/// Why no new certificate was obtained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(pub String);

/// How the rotation is doing: for the admin port and readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Certificates obtained so far.
    pub renewals: u64,
    /// Attempts that failed since the last success.
    pub failures: u32,
    pub last_error: Option<String>,
}

/// A running rotation; stops when dropped. What it published stays readable.
pub struct Rotation {
    secrets: watch::Receiver<Option<Arc<WorkloadSecrets>>>,
    status: watch::Receiver<Status>,
    hurry: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Rotation {
    /// Starts fetching from `source`. Must be called within a tokio runtime.
    pub fn start(source: Arc<dyn CertificateSource>, policy: Policy) -> Self {
        let (publish, secrets) = watch::channel(None);
        let (report, status) = watch::channel(Status::default());
        let hurry = Arc::new(Notify::new());
        let task = tokio::spawn(run(source, Schedule::new(policy, rand::random()), publish, report, hurry.clone()));
        Self { secrets, status, hurry, task }
    }

    /// The current identity, `None` until the first is there. A receiver sees every replacement.
    pub fn secrets(&self) -> watch::Receiver<Option<Arc<WorkloadSecrets>>> {
        self.secrets.clone()
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Renews at once, for instance when the trusted roots changed.
    pub fn renew_now(&self) {
        self.hurry.notify_one();
    }

    /// Waits for the first identity, or returns the last error after `timeout`.
    ///
    /// # Errors
    /// When none was obtained in time.
    pub async fn ready(&self, timeout: Duration) -> Result<Arc<WorkloadSecrets>, FetchError> {
        let mut secrets = self.secrets();
        let first = async { secrets.wait_for(Option::is_some).await.ok().and_then(|s| s.clone()) };
        match tokio::time::timeout(timeout, first).await {
            Ok(Some(first)) => Ok(first),
            _ => {
                let reason = self.status.borrow().last_error.clone().unwrap_or_else(|| "no answer".to_owned());
                Err(FetchError(format!("no certificate within {timeout:?}: {reason}")))
            }
        }
    }
}

impl Drop for Rotation {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotation").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

async fn run(
    source: Arc<dyn CertificateSource>,
    mut schedule: Schedule,
    publish: watch::Sender<Option<Arc<WorkloadSecrets>>>,
    report: watch::Sender<Status>,
    hurry: Arc<Notify>,
) {
    loop {
        while !schedule.is_due(SystemTime::now()) {
            tokio::select! {
                () = tokio::time::sleep(schedule.pause(SystemTime::now())) => {}
                () = hurry.notified() => schedule.hurry(),
            }
        }
        let current = publish.borrow().clone();
        let fetched = source.fetch(current).await;
        let now = SystemTime::now();
        match fetched.and_then(|fresh| usable(fresh, now)) {
            Ok(fresh) => {
                tracing::info!(serial = %fresh.leaf().serial, uri = ?fresh.leaf().uri_sans, "workload certificate renewed");
                schedule.renewed(fresh.expiry(), now);
                publish.send_replace(Some(Arc::new(fresh)));
                report.send_modify(|s| *s = Status { renewals: s.renewals + 1, ..Status::default() });
            }
            Err(error) => {
                let pause = schedule.failed(now);
                tracing::warn!(%error, retry_in = ?pause, "no new workload certificate; the current one stays in use");
                report.send_modify(|s| {
                    s.failures = schedule.failures();
                    s.last_error = Some(error.0);
                });
            }
        }
    }
}

/// A certificate that is over already must not replace one that still works.
fn usable(fresh: WorkloadSecrets, now: SystemTime) -> Result<WorkloadSecrets, FetchError> {
    if fresh.expiry() > now { Ok(fresh) } else { Err(FetchError("the new certificate has expired already; compare the clocks".to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::CertificateAuthority;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::UNIX_EPOCH;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn renewal_is_due_around_half_of_the_life() {
        let now = UNIX_EPOCH + 1000 * HOUR;
        let mut seen = Vec::new();
        for seed in 0..50 {
            let mut schedule = Schedule::new(Policy::default(), seed);
            assert!(schedule.is_due(now));
            schedule.renewed(now + 24 * HOUR, now);
            assert!(!schedule.is_due(now + HOUR * 10));
            assert!(schedule.is_due(now + HOUR * 14));
            seen.push(schedule.due.unwrap());
        }
        seen.sort();
        seen.dedup();
        assert!(seen.len() > 40, "renewals are spread");
    }

    #[test]
    fn failures_back_off_to_a_minute_and_success_resets() {
        let now = UNIX_EPOCH + HOUR;
        let mut schedule = Schedule::new(Policy::default(), 7);
        let pauses: Vec<_> = (0..10).map(|_| schedule.failed(now).as_secs_f64()).collect();
        assert!((0.5..=1.0).contains(&pauses[0]), "{pauses:?}");
        assert!((2.0..=4.0).contains(&pauses[2]), "{pauses:?}");
        assert!(pauses.iter().all(|p| *p <= 60.0) && pauses[9] >= 30.0, "{pauses:?}");
        schedule.renewed(now + HOUR, now);
        assert!(schedule.failed(now) <= Duration::from_secs(1));
    }

    #[test]
    fn a_clock_set_forward_makes_the_renewal_due() {
        let now = UNIX_EPOCH + HOUR;
        let mut schedule = Schedule::new(Policy::default(), 7);
        schedule.renewed(now + 24 * HOUR, now);
        assert_eq!(schedule.pause(now), LONGEST_SLEEP);
        assert!(schedule.is_due(now + 100 * HOUR));
        assert_eq!(schedule.pause(now + 100 * HOUR), Duration::ZERO);
    }

    struct Flaky {
        ca: CertificateAuthority,
        calls: AtomicU32,
        failing: std::ops::Range<u32>,
    }

    impl CertificateSource for Flaky {
        fn fetch(&self, _current: Option<Arc<WorkloadSecrets>>) -> BoxFuture<'_, Result<WorkloadSecrets, FetchError>> {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                if self.failing.contains(&call) {
                    return Err(FetchError("the control plane is down".to_owned()));
                }
                let id = "spiffe://td/ns/a/sa/b".parse().unwrap();
                self.ca.issue_workload(&id, HOUR, SystemTime::now()).map_err(|e| FetchError(e.to_string()))
            })
        }
    }

    #[tokio::test]
    async fn an_outage_delays_the_first_certificate_and_never_drops_a_later_one() {
        let ca = CertificateAuthority::in_memory("td", SystemTime::now()).unwrap();
        let source = Arc::new(Flaky { ca, calls: AtomicU32::new(0), failing: 0..2 });
        let policy = Policy { first_retry: Duration::ZERO, last_retry: Duration::ZERO, ..Policy::default() };
        let rotation = Rotation::start(source.clone(), policy);
        let first = rotation.ready(Duration::from_secs(30)).await.unwrap();
        assert_eq!(first.spiffe().unwrap().service_account(), "b");
        assert_eq!(*rotation.status().borrow(), Status { renewals: 1, failures: 0, last_error: None });

        let mut secrets = rotation.secrets();
        secrets.mark_unchanged();
        rotation.renew_now();
        secrets.changed().await.unwrap();
        let second = secrets.borrow().clone().unwrap();
        assert_ne!(second.leaf().serial, first.leaf().serial);
    }

    #[tokio::test]
    async fn while_renewal_fails_the_current_certificate_stays() {
        let ca = CertificateAuthority::in_memory("td", SystemTime::now()).unwrap();
        let source = Arc::new(Flaky { ca, calls: AtomicU32::new(0), failing: 1..u32::MAX });
        let policy = Policy { first_retry: Duration::ZERO, last_retry: Duration::ZERO, ..Policy::default() };
        let rotation = Rotation::start(source.clone(), policy);
        let first = rotation.ready(Duration::from_secs(30)).await.unwrap();
        rotation.renew_now();
        let mut status = rotation.status();
        let failed = status.wait_for(|s| s.failures >= 3).await.unwrap().clone();
        assert_eq!(failed.last_error.as_deref(), Some("the control plane is down"));
        assert_eq!(rotation.secrets().borrow().as_ref().unwrap().leaf().serial, first.leaf().serial);
    }
}
