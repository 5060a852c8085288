//! The mesh while it runs: all that is mutable, on one thread, behind [`Mesh`]; tasks borrow it for moments only.
use std::cell::{Ref, RefCell, RefMut};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Instant, SystemTime};

use lateen_core::Labels;
use lateen_identity::token::TokenIssuer;
use lateen_model::set::ResourceKey;
use lateen_model::{Kind, ResourceSet};
use nix::unistd::Pid;
use tokio::sync::{Notify, oneshot, watch};

use super::addresses::{PodAddresses, ServiceAddresses};
use super::services::{Network, PodView};
use crate::config::{Publish, UpConfig};
use crate::dns::SharedZone;
use crate::namespaces::pod::PodNamespaces;
use crate::netlink::link::Links;
use crate::pod::inject::Settings;
use crate::pod::logs::Log;
use crate::pod::plan::{ContainerPlan, PodPlan};
use crate::pod::restart::{End, Restarts};
use crate::relay::ingress::Targets;

/// Namespace and name.
pub type PodKey = (String, String);

/// A container of a pod.
#[derive(Debug)]
pub struct Container {
    pub plan: ContainerPlan,
    pub pid: Option<Pid>,
    pub ready: bool,
    pub started_at: Option<SystemTime>,
    pub restarts: u32,
    pub history: Restarts,
    pub last_end: Option<End>,
    /// Why it does not run, when it cannot.
    pub trouble: Option<String>,
    /// Init containers only: ended with success.
    pub done: bool,
    pub log: Rc<RefCell<Log>>,
    /// Probes of the present run; dropped with it.
    pub probes: Vec<Task>,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
pub struct Task(pub tokio::task::AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A pod that runs.
#[derive(Debug)]
pub struct Pod {
    pub uid: String,
    pub plan: PodPlan,
    /// What it was made for: a Deployment or the Pod itself.
    pub owner: ResourceKey,
    pub revision: u32,
    pub number: u32,
    pub addresses: Vec<IpAddr>,
    pub namespaces: Rc<PodNamespaces>,
    pub init: Vec<Container>,
    pub containers: Vec<Container>,
    pub created: SystemTime,
    pub terminating: bool,
}

impl Pod {
    /// Whether every container is ready and the pod is to stay.
    pub fn is_ready(&self) -> bool {
        !self.terminating && self.init.iter().all(|c| c.done) && self.containers.iter().all(|c| c.ready)
    }

    /// Whether all init containers have ended with success.
    pub fn is_initialized(&self) -> bool {
        self.init.iter().all(|c| c.done)
    }

    /// Init containers, then the others.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init.iter().chain(&self.containers)
    }

    /// The container at a slot, see [`Slot`].
    pub fn container_mut(&mut self, slot: Slot) -> Option<&mut Container> {
        if slot.init { self.init.get_mut(slot.index) } else { self.containers.get_mut(slot.index) }
    }

    /// What services see.
    pub fn view(&self, key: &PodKey) -> PodView {
        PodView {
            namespace: key.0.clone(),
            name: key.1.clone(),
            labels: self.plan.labels.clone(),
            addresses: self.addresses.clone(),
            ready: self.is_ready(),
            hostname: self.plan.hostname.clone(),
            subdomain: self.plan.subdomain.clone(),
            ports: self.plan.containers.iter().flat_map(|c| c.ports.iter().cloned()).collect(),
        }
    }
}

/// Which container of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub init: bool,
    pub index: usize,
}

/// Whose process it is.
#[derive(Debug)]
pub enum Child {
    Container {
        pod: PodKey,
        uid: String,
        slot: Slot,
    },
    /// A command of `exec` or of a probe: somebody waits for its end.
    Awaited(oneshot::Sender<End>),
}

/// Everything mutable.
#[derive(Debug)]
pub struct State {
    pub config: UpConfig,
    pub settings: Settings,
    pub resources: ResourceSet,
    pub created: BTreeMap<ResourceKey, SystemTime>,
    /// Why a Deployment or Pod is not run.
    pub refused: BTreeMap<ResourceKey, String>,
    pub pods: BTreeMap<PodKey, Pod>,
    pub children: BTreeMap<i32, Child>,
    pub pod_addresses: PodAddresses,
    pub service_addresses: ServiceAddresses,
    pub network: Option<Network>,
    pub published: Vec<(Publish, Targets)>,
    pub links: Links,
    pub tokens: TokenIssuer,
    pub root_cert: Option<String>,
    pub control_folder: lateen_core::generation::Writer,
    pub stopping: bool,
    pub since: Instant,
}

impl State {
    /// The labels of a namespace.
    pub fn namespace_labels(&self, namespace: &str) -> Labels {
        self.resources.namespace("", namespace).map(|n| n.meta.labels.clone()).unwrap_or_default()
    }

    /// How a pod is called in the singular and plural of messages: whether every pod that is wanted is there and ready.
    pub fn is_settled(&self) -> bool {
        let wanted: u32 = self.resources.deployments().map(|d| d.spec.replicas()).sum::<u32>() + self.resources.pods().count() as u32;
        let refused: u32 = self
            .refused
            .keys()
            .map(|k| {
                if k.kind == Kind::Deployment {
                    self.resources.deployment(&k.namespace, &k.name).map_or(0, |d| d.spec.replicas())
                } else {
                    1
                }
            })
            .sum();
        let present = self.pods.values().filter(|p| !p.terminating);
        let ready = present.clone().filter(|p| p.is_ready()).count();
        ready == present.count() && ready as u32 + refused >= wanted
    }
}

/// A handle on the running mesh; clones are the same mesh.
#[derive(Clone, Debug)]
pub struct Mesh {
    state: Rc<RefCell<State>>,
    pub zone: SharedZone,
    dirty: Rc<Notify>,
    version: Rc<watch::Sender<u64>>,
}

impl Mesh {
    /// Wraps the state.
    pub fn new(state: State, zone: SharedZone) -> Self {
        Self { state: Rc::new(RefCell::new(state)), zone, dirty: Rc::new(Notify::new()), version: Rc::new(watch::channel(0).0) }
    }

    /// The state, to look at. Never held across an await.
    pub fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    /// The state, to change. Never held across an await.
    pub fn state_mut(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// Something changed: the network and the control plane will be told, and pods started and ended.
    pub fn touch(&self) {
        self.dirty.notify_one();
    }

    /// Waits until [`Mesh::touch`] has been called.
    pub(super) async fn touched(&self) {
        self.dirty.notified().await;
    }

    /// Counts up after each change that has been carried through.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn advance(&self) {
        self.version.send_modify(|v| *v += 1);
    }

    /// Prints a line about what happens, unless the mesh is quiet.
    pub fn say(&self, line: impl std::fmt::Display) {
        if !self.state().config.quiet {
            use io::Write;
            // A closed terminal is no reason to end.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// A process of ours ended.
    pub fn child_ended(&self, pid: Pid, end: End) {
        let child = self.state_mut().children.remove(&pid.as_raw());
        match child {
            Some(Child::Awaited(waiter)) => {
                let _ = waiter.send(end);
            }
            Some(Child::Container { pod, uid, slot }) => self.container_ended(&pod, &uid, slot, end),
            // An orphan that was left to us: gone, and that was all it needed.
            None => {}
        }
    }
}
