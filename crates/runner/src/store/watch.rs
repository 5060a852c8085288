//! The probes of a running container: when it counts as started, ready, and alive.
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use super::mesh::{Mesh, PodKey, Slot, Task};
use crate::namespaces::pod::PodNamespaces;
use crate::pod::probe::{self, Check, Probe, Verdict};
use crate::pod::process;
use crate::pod::restart::End;

impl Mesh {
    /// Runs the probes of a container that has just started.
    pub(super) fn watch_container(&self, key: &PodKey, uid: &str, slot: Slot) {
        if slot.init {
            return;
        }
        let mut state = self.state_mut();
        let Some(pod) = state.pods.get_mut(key) else { return };
        let (namespaces, address) = (pod.namespaces.clone(), pod.addresses.first().copied());
        let (Some(container), Some(address)) = (pod.container_mut(slot), address) else { return };
        let plan = container.plan.clone();
        let target = Target { mesh: self.clone(), key: key.clone(), uid: uid.to_owned(), slot, namespaces, address };
        let task = tokio::task::spawn_local(async move {
            if let Some(startup) = &plan.startup
                && !target.starts(startup).await
            {
                return target.kill();
            }
            let live = async {
                match &plan.liveness {
                    Some(liveness) => target.lives(liveness).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! { () = target.readies(&plan.readiness) => {}, () = live => target.kill() }
        });
        container.probes = vec![Task(task.abort_handle())];
    }
}

/// A container that is probed.
struct Target {
    mesh: Mesh,
    key: PodKey,
    uid: String,
    slot: Slot,
    namespaces: Rc<PodNamespaces>,
    address: IpAddr,
}

impl Target {
    async fn ask(&self, probe: &Probe) -> bool {
        match &probe.check {
            Check::Exec { command } => {
                let run = self.mesh.run_in_container(&self.key, self.slot, command.clone(), None);
                match run {
                    Ok((pid, end)) => match tokio::time::timeout(probe.timeout, end).await {
                        Ok(Ok(end)) => end == End::Code(0),
                        _ => {
                            process::signal(pid, nix::sys::signal::Signal::SIGKILL);
                            false
                        }
                    },
                    Err(_) => false,
                }
            }
            check => probe::ask(check, &self.namespaces, self.address, probe.timeout).await,
        }
    }

    /// Until the startup probe has succeeded (true) or failed for good (false).
    async fn starts(&self, probe: &Probe) -> bool {
        tokio::time::sleep(probe.initial_delay).await;
        for _ in 0..probe.failure_threshold.max(1) {
            let until = Instant::now() + probe.period;
            while Instant::now() < until {
                if self.ask(probe).await {
                    return true;
                }
                tokio::time::sleep(Verdict::default().pause(probe)).await;
            }
        }
        false
    }

    async fn readies(&self, probe: &Probe) {
        tokio::time::sleep(probe.initial_delay).await;
        let mut verdict = Verdict::default();
        loop {
            let success = self.ask(probe).await;
            if let Some(ready) = verdict.count(success, probe) {
                self.set_ready(ready);
            }
            tokio::time::sleep(verdict.pause(probe)).await;
        }
    }

    /// Returns when the liveness probe has failed.
    async fn lives(&self, probe: &Probe) {
        tokio::time::sleep(probe.initial_delay.max(probe.period)).await;
        let mut failures = 0;
        loop {
            failures = if self.ask(probe).await { 0 } else { failures + 1 };
            if failures >= probe.failure_threshold {
                return;
            }
            tokio::time::sleep(probe.period).await;
        }
    }

    fn set_ready(&self, ready: bool) {
        let mut state = self.mesh.state_mut();
        let Some(pod) = state.pods.get_mut(&self.key).filter(|p| p.uid == self.uid) else { return };
        if let Some(container) = pod.container_mut(self.slot) {
            container.ready = ready;
        }
        drop(state);
        self.mesh.touch();
    }

    fn kill(&self) {
        let mut state = self.mesh.state_mut();
        let Some(pod) = state.pods.get_mut(&self.key).filter(|p| p.uid == self.uid) else { return };
        if let Some(pid) = pod.container_mut(self.slot).and_then(|c| c.pid) {
            process::signal(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
