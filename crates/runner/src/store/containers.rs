//! The containers of a pod: started when they are due, started again when they end, and commands beside them.
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use lateen_model::ResourceSet;
use nix::fcntl::OFlag;
use nix::unistd::{Pid, pipe2};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::addresses::GATEWAY;
use super::mesh::{Child, Mesh, Pod, PodKey, Slot, State};
use crate::pod::plan::{self, ContainerPlan, Facts, Role, Value};
use crate::pod::process::{self, ProcessSpec, Streams};
use crate::pod::restart::{End, Next, Policy};

impl Mesh {
    /// Starts the next init container, or all others once those are done.
    pub(super) fn start_due_containers(&self, key: &PodKey) {
        let due: Vec<Slot> = {
            let state = self.state();
            let Some(pod) = state.pods.get(key) else { return };
            match pod.init.iter().position(|c| !c.done) {
                // The sidecar runs before and beside init containers, as Istio's native sidecar does, so that they have a network.
                Some(index) => {
                    let proxies =
                        slots(pod).filter(|s| pod.containers[s.index].plan.role == Role::Proxy && pod.containers[s.index].pid.is_none());
                    proxies.chain([Slot { init: true, index }]).collect()
                }
                None => slots(pod).filter(|s| pod.containers[s.index].pid.is_none()).collect(),
            }
        };
        for slot in due {
            self.start_container(key, slot);
        }
    }

    /// Starts one container; what keeps it from running becomes its trouble and is tried again later.
    fn start_container(&self, key: &PodKey, slot: Slot) {
        let started = {
            let mut state = self.state_mut();
            start_process(&mut state, key, slot)
        };
        match started {
            Ok(Some((uid, reader))) => {
                self.collect_log(key, slot, reader);
                self.watch_container(key, &uid, slot);
            }
            Ok(None) => {}
            Err(e) => {
                let uid = {
                    let mut state = self.state_mut();
                    let Some(pod) = state.pods.get_mut(key) else { return };
                    let uid = pod.uid.clone();
                    if let Some(container) = pod.container_mut(slot) {
                        container.trouble = Some(e.to_string());
                        container.log.borrow_mut().append(format!("{e}\n").as_bytes());
                    }
                    uid
                };
                // As if it had ended at once: the same waits apply.
                self.container_ended(key, &uid, slot, End::Code(127));
            }
        }
        self.touch();
    }

    fn collect_log(&self, key: &PodKey, slot: Slot, mut reader: pipe::Receiver) {
        let log = {
            let mut state = self.state_mut();
            let Some(container) = state.pods.get_mut(key).and_then(|p| p.container_mut(slot)) else { return };
            container.log.clone()
        };
        // Ends by itself when the last process that prints there has ended.
        tokio::task::spawn_local(async move {
            let mut buffer = vec![0; 8192];
            while let Ok(length @ 1..) = reader.read(&mut buffer).await {
                log.borrow_mut().append(&buffer[..length]);
            }
        });
    }

    /// A container's process is gone: it starts again by its policy.
    pub(super) fn container_ended(&self, key: &PodKey, uid: &str, slot: Slot, end: End) {
        let next = {
            let mut state = self.state_mut();
            let stopping = state.stopping;
            let Some(pod) = state.pods.get_mut(key).filter(|p| p.uid == uid) else { return };
            let (terminating, policy) = (pod.terminating, if slot.init { init_policy(pod.plan.restart) } else { pod.plan.restart });
            let Some(container) = pod.container_mut(slot) else { return };
            container.pid = None;
            container.ready = false;
            container.probes.clear();
            container.last_end = Some(end);
            if slot.init && end == End::Code(0) {
                container.done = true;
            }
            if stopping || terminating { Next::Stay } else { container.history.ended(Instant::now(), end, policy) }
        };
        self.touch();
        match next {
            Next::Stay if slot.init => self.start_due_containers(key),
            Next::Stay => {}
            Next::RestartIn(wait) => {
                let (mesh, key, uid) = (self.clone(), key.clone(), uid.to_owned());
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(wait).await;
                    let present = {
                        let mut state = mesh.state_mut();
                        let stopping = state.stopping;
                        match state.pods.get_mut(&key).filter(|p| p.uid == uid && !p.terminating && !stopping) {
                            Some(pod) => pod.container_mut(slot).filter(|c| c.pid.is_none()).map(|c| c.restarts += 1).is_some(),
                            None => false,
                        }
                    };
                    if present {
                        mesh.start_container(&key, slot);
                    }
                });
            }
        }
    }

    /// Runs a command beside a container: same namespaces, same environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_in_container(
        &self,
        key: &PodKey,
        slot: Slot,
        command: Vec<String>,
        given: Option<([OwnedFd; 3], Option<String>)>,
    ) -> io::Result<(Pid, tokio::sync::oneshot::Receiver<End>)> {
        let mut state = self.state_mut();
        let pod = state.pods.get(key).ok_or_else(|| io::Error::other("the pod is gone"))?;
        let containers = if slot.init { &pod.init } else { &pod.containers };
        let container = containers.get(slot.index).ok_or_else(|| io::Error::other("no such container"))?;
        let mut spec = process_spec(&state, key, pod, &container.plan)?;
        spec.argv = command;
        if spec.argv.first().is_some_and(|p| p == "lateen") {
            spec.argv[0] = plan::SELF.into();
        }
        let streams = match given {
            Some((streams, term)) => {
                if let Some(term) = term {
                    spec.env.push(("TERM".into(), term));
                }
                Streams::Given(streams)
            }
            None => {
                let null = || fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(Into::into);
                Streams::Given([null()?, null()?, null()?])
            }
        };
        let pid = process::start(&spec, &pod.namespaces, streams)?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        state.children.insert(pid.as_raw(), Child::Awaited(sender));
        Ok((pid, receiver))
    }
}

fn slots(pod: &Pod) -> impl Iterator<Item = Slot> + '_ {
    (0..pod.containers.len()).map(|index| Slot { init: false, index })
}

/// An init container that succeeded never starts again.
fn init_policy(policy: Policy) -> Policy {
    if policy == Policy::Never { Policy::Never } else { Policy::OnFailure }
}

/// Starts the process; `None` when the pod or container is gone, is ending, or runs already.
fn start_process(state: &mut State, key: &PodKey, slot: Slot) -> io::Result<Option<(String, pipe::Receiver)>> {
    let stopping = state.stopping;
    let Some(pod) = state.pods.get(key).filter(|p| !p.terminating && !stopping) else { return Ok(None) };
    let containers = if slot.init { &pod.init } else { &pod.containers };
    let Some(container) = containers.get(slot.index).filter(|c| c.pid.is_none()) else { return Ok(None) };
    let spec = process_spec(state, key, pod, &container.plan)?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let reader = pipe::Receiver::from_owned_fd(reader)?;
    let first = container.started_at.is_none();
    if !first {
        container.log.borrow_mut().next_run();
    }
    let pid = process::start(&spec, &pod.namespaces, Streams::Log(writer))?;
    let uid = pod.uid.clone();
    state.children.insert(pid.as_raw(), Child::Container { pod: key.clone(), uid: uid.clone(), slot });
    if let Some(container) = state.pods.get_mut(key).and_then(|p| p.container_mut(slot)) {
        container.pid = Some(pid);
        container.trouble = None;
        container.started_at = Some(SystemTime::now());
        container.history.started(Instant::now());
    }
    Ok(Some((uid, reader)))
}

/// The command and environment of a container of a running pod.
pub(crate) fn process_spec(state: &State, key: &PodKey, pod: &Pod, container: &ContainerPlan) -> io::Result<ProcessSpec> {
    let facts =
        Facts { name: &key.1, namespace: &key.0, uid: &pod.uid, addresses: &pod.addresses, node_address: GATEWAY.into(), plan: &pod.plan };
    let mut env: Vec<(String, String)> = Vec::new();
    for name in ["PATH", "HOME", "LANG", "TERM"] {
        if let Ok(value) = std::env::var(name) {
            env.push((name.to_owned(), value));
        }
    }
    env.push(("HOSTNAME".into(), pod.plan.hostname.clone().unwrap_or_else(|| key.1.clone())));
    for (name, value) in &container.env {
        for (name, value) in resolve(&state.resources, &facts, name, value)? {
            let value = plan::expand(&value, &env);
            env.push((name, value));
        }
    }
    let argv = container.argv.iter().map(|word| plan::expand(word, &env)).collect();
    Ok(ProcessSpec { argv, env, cwd: container.cwd.clone().map(PathBuf::from), network_admin: container.role == Role::Proxy })
}

fn resolve(resources: &ResourceSet, facts: &Facts<'_>, name: &str, value: &Value) -> io::Result<Vec<(String, String)>> {
    let one = |text: String| Ok(vec![(name.to_owned(), text)]);
    let missing = |what: String, optional: bool| if optional { Ok(Vec::new()) } else { Err(io::Error::other(what)) };
    match value {
        Value::Text(text) => one(text.clone()),
        Value::Field(path) => one(facts.field(path)),
        Value::ConfigMap { name: of, key, optional } => {
            let Some(map) = resources.config_map(facts.namespace, of) else {
                return missing(format!("configmap \"{of}\" not found"), *optional);
            };
            if key == "*" {
                return Ok(map.spec.data.iter().map(|(k, v)| (format!("{name}{k}"), v.clone())).collect());
            }
            match map.spec.data.get(key) {
                Some(text) => one(text.clone()),
                None => missing(format!("couldn't find key {key} in ConfigMap {}/{of}", facts.namespace), *optional),
            }
        }
        Value::Secret { name: of, key, optional } => {
            let Some(secret) = resources.secret(facts.namespace, of) else {
                return missing(format!("secret \"{of}\" not found"), *optional);
            };
            let text = |k: &str| secret.spec.get(k).map(|v| String::from_utf8_lossy(v).into_owned());
            if key == "*" {
                let keys = secret.spec.data.keys().chain(secret.spec.string_data.keys());
                return Ok(keys.filter_map(|k| Some((format!("{name}{k}"), text(k)?))).collect());
            }
            match text(key) {
                Some(found) => one(found),
                None => missing(format!("couldn't find key {key} in Secret {}/{of}", facts.namespace), *optional),
            }
        }
    }
}
