//! What a mesh that is not ready waits for, in words: for whoever waits with it.
use lateen_model::Kind;

use super::get::status_of;
use crate::pod::restart::End;
use crate::store::mesh::{Container, Pod, State};

/// One line for each pod that is not ready, and for each Deployment that lacks pods.
pub(super) fn lines(state: &State) -> Vec<String> {
    let mut lines = Vec::new();
    for ((namespace, name), pod) in state.pods.iter().filter(|(_, p)| !p.terminating && !p.is_ready()) {
        lines.push(format!("pod {namespace}/{name} is {}: {}", status_of(pod), reasons(pod).join(", ")));
    }
    for deployment in state.resources.deployments() {
        let (namespace, name) = (deployment.namespace(), deployment.name());
        let of = |p: &&Pod| p.owner.kind == Kind::Deployment && p.owner.namespace == namespace && p.owner.name == name;
        let (present, wanted) = (state.pods.values().filter(of).filter(|p| !p.terminating).count(), deployment.spec.replicas() as usize);
        if state.refused.keys().any(|k| k.kind == Kind::Deployment && k.namespace == namespace && k.name == name) {
            continue;
        }
        if present < wanted {
            lines.push(format!("deployment {namespace}/{name} has {present} of {wanted} pods"));
        }
    }
    lines
}

/// What each container that holds the pod up is at. Init containers run before the others, so they are named alone.
fn reasons(pod: &Pod) -> Vec<String> {
    let init = pod.init.iter().find(|c| !c.done);
    let late = pod.containers.iter().filter(|c| init.is_none() && !c.ready);
    init.into_iter().chain(late).map(|c| format!("{} {}", c.plan.name, reason(c))).collect()
}

fn reason(container: &Container) -> String {
    match (container.pid, &container.trouble, container.last_end) {
        (Some(_), _, None) => "has started and is not ready yet".into(),
        (Some(_), _, Some(end)) => format!("has started again after {} and is not ready yet", ended(end)),
        (None, Some(trouble), _) => format!("cannot start: {trouble}"),
        (None, None, Some(end)) => format!("ended with {}; see `lateen logs`", ended(end)),
        (None, None, None) => "has not started".into(),
    }
}

fn ended(end: End) -> String {
    match end {
        End::Code(code) => format!("exit code {code}"),
        End::Signal(signal) => format!("signal {signal}"),
    }
}
