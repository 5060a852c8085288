//! Starting: a pod's namespaces, addresses, rules and files, then its containers; starting them again; their probes.
use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Instant, SystemTime};

use lateen_model::set::ResourceKey;
use lateen_model::{Kind, ResourceSet};
use nix::fcntl::OFlag;
use nix::unistd::{Pid, pipe2};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::addresses::{CONTROL, GATEWAY, GATEWAY6};
use super::builtin::{LOGS, PODS};
use super::mesh::{Child, Container, Mesh, Pod, PodKey, Slot, State, Task};
use super::tokens::write_atomically;
use crate::dns;
use crate::namespaces::in_network;
use crate::namespaces::pod::{POD_INTERFACE, PodNamespaces, PodSetup};
use crate::pod::inject::{self, Injected, Owner};
use crate::pod::logs::Log;
use crate::pod::plan::{self, ContainerPlan, Facts, PodPlan, Refused, Role, Source, Value, Volume};
use crate::pod::probe::{self, Check, Probe, Verdict};
use crate::pod::process::{self, ProcessSpec, Streams};
use crate::pod::restart::{End, Next, Policy};

/// The bridge that all pods hang on.
pub const BRIDGE: &str = "mesh0";

/// The plan of what `owner` describes, with the mesh's own containers.
///
/// # Errors
/// Why it cannot be run.
pub fn plan_of(state: &State, owner: &ResourceKey) -> Result<PodPlan, Refused> {
    let gone = || Refused::Other(format!("there is no {} {}/{}", owner.kind, owner.namespace, owner.name));
    let (spec, meta_labels, meta_annotations, raw) = match owner.kind {
        Kind::Deployment => {
            let d = state.resources.deployment(&owner.namespace, &owner.name).ok_or_else(gone)?;
            let t = &d.spec.template;
            (&t.spec, &t.metadata.labels, &t.metadata.annotations, d.raw().pointer("/spec/template/spec").cloned().unwrap_or_default())
        }
        _ => {
            let p = state.resources.pod(&owner.namespace, &owner.name).ok_or_else(gone)?;
            (&p.spec, &p.meta.labels, &p.meta.annotations, p.raw().get("spec").cloned().unwrap_or_default())
        }
    };
    let source = Source { spec, raw: &raw, labels: meta_labels, annotations: meta_annotations };
    let mut plan = PodPlan::of(source, &state.config.images)?;
    let auto = plan.containers.iter().any(|c| c.image == "auto");
    let namespace_labels = state.namespace_labels(&owner.namespace);
    let injected = if state.config.control_plane {
        inject::decide(&owner.namespace, &namespace_labels, &plan.labels, &plan.annotations, auto, state.config.inject_default)
    } else {
        Injected::None
    };
    let of = Owner { namespace: &owner.namespace, workload: &owner.name, kind: owner.kind.as_str() };
    inject::inject(&mut plan, injected, of, &state.settings)?;
    if plan.containers.iter().any(|c| c.argv.is_empty()) {
        return Err(Refused::Other(
            "image `auto` stands for a gateway proxy: the pod needs the label sidecar.istio.io/inject: \"true\"".into(),
        ));
    }
    if let Some(capture) = &mut plan.capture {
        capture.plumbing = vec![CONTROL.into(), GATEWAY.into(), GATEWAY6.into()];
    }
    Ok(plan)
}

/// A name for a pod of a Deployment, in Kubernetes' manner: `reviews-v1-5b7d9c6f4-x2x8z`.
fn pod_name(owner: &ResourceKey, revision: u32, taken: impl Fn(&str) -> bool) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    if owner.kind != Kind::Deployment {
        return owner.name.clone();
    }
    let letters = |mut n: u64, count: usize| -> String {
        (0..count)
            .map(|_| {
                let letter = LETTERS[(n % LETTERS.len() as u64) as usize];
                n /= LETTERS.len() as u64;
                letter as char
            })
            .collect()
    };
    let hash = letters(u64::from(revision) * 2_654_435_761, 9);
    loop {
        let name = format!("{}-{hash}-{}", owner.name, letters(rand::random(), 5));
        if !taken(&name) {
            return name;
        }
    }
}

impl Mesh {
    /// Starts one pod of `owner`.
    ///
    /// # Errors
    /// When the kernel or the file system refuses; nothing is left of it then.
    pub(super) fn start_pod(&self, owner: &ResourceKey, revision: u32, plan: PodPlan) -> io::Result<PodKey> {
        let mut state = self.state_mut();
        let namespace = owner.namespace.clone();
        let name = pod_name(owner, revision, |n| state.pods.contains_key(&(namespace.clone(), n.to_owned())));
        let key: PodKey = (namespace, name);
        let (number, both) = state.pod_addresses.take().ok_or_else(|| io::Error::other("no pod addresses left"))?;
        let dual_stack = state.config.dual_stack;
        let addresses: Vec<IpAddr> = both.into_iter().filter(|a| dual_stack || a.is_ipv4()).collect();
        let made = make(&mut state, &key, number, &addresses, plan);
        match made {
            Ok((plan, namespaces, uid)) => {
                let folder = log_folder(&key);
                let container = |plan: &ContainerPlan| -> io::Result<Container> {
                    Ok(Container {
                        log: Rc::new(RefCell::new(Log::create(&folder, &plan.name)?)),
                        plan: plan.clone(),
                        pid: None,
                        ready: false,
                        started_at: None,
                        restarts: 0,
                        history: Default::default(),
                        last_end: None,
                        trouble: None,
                        done: false,
                        probes: Vec::new(),
                    })
                };
                let pod = Pod {
                    uid,
                    init: plan.init.iter().map(container).collect::<io::Result<_>>()?,
                    containers: plan.containers.iter().map(container).collect::<io::Result<_>>()?,
                    plan,
                    owner: owner.clone(),
                    revision,
                    number,
                    addresses: addresses.clone(),
                    namespaces: Rc::new(namespaces),
                    created: SystemTime::now(),
                    terminating: false,
                };
                state.pods.insert(key.clone(), pod);
            }
            Err(e) => {
                state.pod_addresses.release(number);
                let _ = state.links.remove(&veth(number));
                let _ = fs::remove_dir_all(pod_folder(&key));
                return Err(e);
            }
        }
        drop(state);
        self.start_due_containers(&key);
        Ok(key)
    }

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

    /// Runs the probes of a container that has just started.
    fn watch_container(&self, key: &PodKey, uid: &str, slot: Slot) {
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
}

fn slots(pod: &Pod) -> impl Iterator<Item = Slot> + '_ {
    (0..pod.containers.len()).map(|index| Slot { init: false, index })
}

/// An init container that succeeded never starts again.
fn init_policy(policy: Policy) -> Policy {
    if policy == Policy::Never { Policy::Never } else { Policy::OnFailure }
}

/// The pod's end of the bridge has this name; fifteen letters at most.
pub(super) fn veth(number: u32) -> String {
    format!("pod{number}")
}

pub(super) fn pod_folder(key: &PodKey) -> PathBuf {
    Path::new(PODS).join(format!("{}_{}", key.0, key.1))
}

fn log_folder(key: &PodKey) -> PathBuf {
    Path::new(LOGS).join(format!("{}_{}", key.0, key.1))
}

/// Namespaces, files, link, addresses, rules.
fn make(state: &mut State, key: &PodKey, number: u32, addresses: &[IpAddr], plan: PodPlan) -> io::Result<(PodPlan, PodNamespaces, String)> {
    let uid = format!("{:08x}-0000-4000-8000-{:012x}", rand::random::<u32>(), rand::random::<u64>() >> 16);
    let run = pod_folder(key);
    fs::create_dir_all(&run)?;
    let mounts = write_volumes(&state.resources, &key.0, &plan, &run)?;
    write_identity(state, key, &uid, &plan, &run)?;
    let hostname = plan.hostname.clone().unwrap_or_else(|| key.1.clone());
    let own: String = addresses.iter().map(|a| format!("{a} {hostname}\n")).collect();
    let setup = PodSetup {
        hosts: format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n{own}"),
        resolv_conf: dns::resolv_conf(GATEWAY.into(), &key.0, &state.settings.domain),
        // The kernel's limit.
        hostname: hostname.chars().take(63).collect(),
        run: run.clone(),
        mounts,
    };
    let namespaces = PodNamespaces::make(&setup)?;
    state.links.add_veth(&veth(number), BRIDGE, POD_INTERFACE, namespaces.net.as_fd())?;
    let gateways = addresses.iter().map(|a| (*a, if a.is_ipv4() { IpAddr::from(GATEWAY) } else { IpAddr::from(GATEWAY6) }));
    namespaces.address(&gateways.collect::<Vec<_>>())?;
    if let Some(capture) = &plan.capture {
        in_network(namespaces.net.as_fd(), || capture.ruleset().commit())?;
    }
    Ok((plan, namespaces, uid))
}

/// The token and the mesh's root, where Istio's volumes put them.
fn write_identity(state: &State, key: &PodKey, uid: &str, plan: &PodPlan, run: &Path) -> io::Result<()> {
    let tokens = run.join("secrets/tokens");
    let root = run.join("secrets/istio");
    fs::create_dir_all(&tokens)?;
    fs::create_dir_all(&root)?;
    let token = state.tokens.issue(&key.0, &plan.service_account, (&key.1, uid), SystemTime::now())?;
    write_atomically(&tokens.join("istio-token"), token.as_bytes())?;
    if let Some(pem) = &state.root_cert {
        write_atomically(&root.join("root-cert.pem"), pem.as_bytes())?;
    }
    Ok(())
}

impl State {
    /// Gives every pod a fresh token; called well before the old ones end.
    pub fn renew_tokens(&self) {
        for (key, pod) in &self.pods {
            if let Err(e) = write_identity(self, key, &pod.uid, &pod.plan, &pod_folder(key)) {
                tracing::warn!("cannot renew the token of {}/{}: {e}", key.0, key.1);
            }
        }
    }
}

/// Files of the pod's volumes, and what to mount where.
fn write_volumes(resources: &ResourceSet, namespace: &str, plan: &PodPlan, run: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut mounts = Vec::new();
    for mount in &plan.mounts {
        let folder = run.join("lateen-volumes").join(&mount.volume_name);
        let write = |files: Vec<(String, Vec<u8>)>, items: &[(String, String)]| -> io::Result<()> {
            fs::create_dir_all(&folder)?;
            for (key, content) in files {
                let name = if items.is_empty() { Some(&key) } else { items.iter().find(|(k, _)| *k == key).map(|(_, path)| path) };
                if let Some(name) = name.filter(|n| !n.contains("..") && !n.starts_with('/')) {
                    let file = folder.join(name);
                    fs::create_dir_all(file.parent().unwrap_or(&folder))?;
                    fs::write(file, content)?;
                }
            }
            Ok(())
        };
        let missing = |kind: &str, name: &str| io::Error::other(format!("volume {}: {kind} \"{name}\" not found", mount.volume_name));
        let source = match &mount.volume {
            Volume::ConfigMap { name, items } => {
                let map = resources.config_map(namespace, name).ok_or_else(|| missing("configmap", name))?;
                let text = map.spec.data.iter().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
                let binary = map.spec.binary_data.iter().map(|(k, v)| (k.clone(), v.0.clone()));
                write(text.chain(binary).collect(), items)?;
                folder
            }
            Volume::Secret { name, items } => {
                let secret = resources.secret(namespace, name).ok_or_else(|| missing("secret", name))?;
                let keys = secret.spec.data.keys().chain(secret.spec.string_data.keys());
                write(keys.filter_map(|k| Some((k.clone(), secret.spec.get(k)?.to_vec()))).collect(), items)?;
                folder
            }
            Volume::Empty => {
                fs::create_dir_all(&folder)?;
                folder
            }
            Volume::Host(path) => PathBuf::from(path),
        };
        mounts.push((source, PathBuf::from(&mount.path)));
    }
    Ok(mounts)
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

impl Mesh {
    /// Runs a command beside a container: same namespaces, same environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_in_container(
        &self,
        key: &PodKey,
        slot: Slot,
        command: Vec<String>,
        given: Option<([std::os::fd::OwnedFd; 3], Option<String>)>,
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
