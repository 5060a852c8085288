//! The control plane's own server certificate, renewed at half its life and when the authority changes.
use super::{CertificateAuthority, SignError};
use crate::rotation::{Policy, Schedule};
use crate::secrets::WorkloadSecrets;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// The names under which agents know the control plane.
pub const CONTROL_PLANE_NAMES: [&str; 10] = [
    "istiod.istio-system.svc",
    "istiod.istio-system.svc.cluster.local",
    "istiod.istio-system",
    "istio-pilot.istio-system.svc",
    "lateen.istio-system.svc",
    "lateen.istio-system.svc.cluster.local",
    "lateen",
    "localhost",
    "127.0.0.1",
    "::1",
];

/// Publishes a server certificate with these names (see [`CONTROL_PLANE_NAMES`]; addresses become
/// IP names) and keeps it fresh until every receiver is dropped.
///
/// The first certificate is there on return. Must be called within a tokio runtime.
///
/// # Errors
/// When the first certificate cannot be issued.
pub fn serve_certificate(
    ca: Arc<CertificateAuthority>,
    names: Vec<String>,
    ttl: Duration,
) -> Result<watch::Receiver<Option<Arc<WorkloadSecrets>>>, SignError> {
    // Before the first certificate is made: a change in between must not be missed.
    let mut changes = ca.changes();
    let first = ca.issue_server(&names, ttl, SystemTime::now())?;
    let mut schedule = Schedule::new(Policy::default(), rand::random());
    schedule.renewed(first.expiry(), SystemTime::now());
    let (publish, receiver) = watch::channel(Some(Arc::new(first)));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = publish.closed() => return,
                () = tokio::time::sleep(schedule.pause(SystemTime::now())) => {}
                Ok(()) = changes.changed() => schedule.hurry(),
            }
            let now = SystemTime::now();
            if !schedule.is_due(now) {
                continue;
            }
            match ca.issue_server(&names, ttl, now) {
                Ok(fresh) => {
                    schedule.renewed(fresh.expiry(), now);
                    publish.send_replace(Some(Arc::new(fresh)));
                }
                Err(error) => {
                    let pause = schedule.failed(now);
                    tracing::warn!(%error, retry_in = ?pause, "the control plane's certificate cannot be renewed; the current one stays");
                }
            }
        }
    });
    Ok(receiver)
}
