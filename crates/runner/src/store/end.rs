//! Ending: a pod leaves its services first, then its containers are asked, then made, to end; the same for the whole mesh.
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::mesh::{Mesh, PodKey};
use super::start::{pod_folder, veth};
use crate::pod::plan::Role;
use crate::pod::process;

/// Callers learn within this time that the pod is no endpoint any more; until then it still serves.
const LEAVE: Duration = Duration::from_millis(1500);
/// A proxy gets this long to drain after the application has ended.
const DRAIN: Duration = Duration::from_secs(5);
/// When the whole mesh ends there is nobody left to serve.
const LAST_GRACE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(25);

impl Mesh {
    /// Begins a pod's end.
    pub(super) fn end_pod(&self, key: &PodKey) {
        {
            let mut state = self.state_mut();
            let Some(pod) = state.pods.get_mut(key).filter(|p| !p.terminating) else { return };
            pod.terminating = true;
        }
        self.touch();
        let (mesh, key) = (self.clone(), key.clone());
        tokio::task::spawn_local(async move {
            mesh.wind_down(&key).await;
            mesh.bury(&key);
            mesh.touch();
        });
    }

    async fn wind_down(&self, key: &PodKey) {
        let was_serving = self.state().pods.get(key).is_some_and(|p| p.containers.iter().any(|c| c.ready));
        if was_serving {
            tokio::time::sleep(LEAVE).await;
        }
        let grace = self.state().pods.get(key).map_or(Duration::ZERO, |p| p.plan.grace);
        let is_app = |role: Role| role != Role::Proxy;
        self.signal_containers(key, Signal::SIGTERM, is_app);
        self.until_gone(key, grace, is_app).await;
        self.signal_containers(key, Signal::SIGKILL, is_app);
        self.signal_containers(key, Signal::SIGTERM, |_| true);
        self.until_gone(key, DRAIN.min(grace), |_| true).await;
        self.signal_containers(key, Signal::SIGKILL, |_| true);
        self.until_gone(key, Duration::from_secs(2), |_| true).await;
    }

    fn signal_containers(&self, key: &PodKey, signal: Signal, whose: impl Fn(Role) -> bool) {
        let state = self.state();
        let Some(pod) = state.pods.get(key) else { return };
        for container in pod.all_containers().filter(|c| whose(c.plan.role)) {
            if let Some(pid) = container.pid {
                process::signal(pid, signal);
            }
        }
    }

    async fn until_gone(&self, key: &PodKey, at_most: Duration, whose: impl Fn(Role) -> bool) {
        let until = Instant::now() + at_most;
        let running = || self.state().pods.get(key).is_some_and(|p| p.all_containers().any(|c| whose(c.plan.role) && c.pid.is_some()));
        while running() && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Removes what is left of a pod whose containers are gone.
    fn bury(&self, key: &PodKey) {
        let mut state = self.state_mut();
        let Some(pod) = state.pods.remove(key) else { return };
        process::sweep(&pod.namespaces.net);
        let _ = state.links.remove(&veth(pod.number));
        state.pod_addresses.release(pod.number);
        let _ = std::fs::remove_dir_all(pod_folder(key));
    }

    /// Ends every pod: asks all at once, waits shortly. The kernel does the rest when we end.
    pub async fn end_all(&self) {
        let keys: Vec<PodKey> = {
            let mut state = self.state_mut();
            state.stopping = true;
            state.pods.keys().cloned().collect()
        };
        let is_app = |role: Role| role != Role::Proxy;
        for key in &keys {
            self.signal_containers(key, Signal::SIGTERM, is_app);
        }
        let until = Instant::now() + LAST_GRACE;
        for key in &keys {
            self.until_gone(key, until.saturating_duration_since(Instant::now()), is_app).await;
        }
    }
}
