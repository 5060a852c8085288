//! Starting a pod: its plan, namespaces, addresses, rules and files; its containers follow.
use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use lateen_model::Kind;
use lateen_model::set::ResourceKey;

use super::addresses::{CONTROL, GATEWAY, GATEWAY6};
use super::builtin::{LOGS, PODS};
use super::mesh::{Container, Mesh, Pod, PodKey, State};
use super::volumes::{write_identity, write_volumes};
use crate::dns;
use crate::namespaces::in_network;
use crate::namespaces::pod::{POD_INTERFACE, PodNamespaces, PodSetup};
use crate::pod::inject::{self, Injected, Owner};
use crate::pod::logs::Log;
use crate::pod::plan::{ContainerPlan, PodPlan, Refused, Source};

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
    write_identity(state, key, &plan, &run)?;
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
