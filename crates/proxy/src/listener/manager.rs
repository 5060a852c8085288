//! Listeners of the current snapshot: sockets stay open across updates, connections of what changed drain.
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lateen_snapshot::listener::{Direction, Terminal};
use lateen_snapshot::{Listener, Snapshot};

use super::socket::Setup;
use super::{ListenerState, accept, socket};
use crate::filter::http::jwks;
use crate::restart::Inherited;
use crate::worker::{DrainSignal, DrainTime, Sockets, Worker};

/// Which listener a socket's connections are for: changed in place by updates.
pub(super) type Current = Rc<RefCell<Rc<ListenerState>>>;

/// What tells sockets apart: the address, and the listener with the address's place in it where the kernel chooses the port.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    address: SocketAddr,
    /// It takes IPv4 too, which cannot be changed once it is bound.
    dual: bool,
    of: Option<(Arc<str>, usize)>,
}

impl Place {
    fn all(listener: &Listener) -> impl Iterator<Item = Self> {
        let own = |address: SocketAddr, index| (address.port() == 0).then(|| (Arc::clone(&listener.name), index));
        let dual = |address| listener.dual_stack.contains(address);
        listener.addresses.iter().enumerate().map(move |(index, a)| Self { address: *a, dual: dual(a), of: own(*a, index) })
    }
}

/// The sockets of one place: one, unless there were more workers in the process before.
struct Bound {
    current: Current,
    local: SocketAddr,
    setup: Setup,
    accepting: Vec<Accepting>,
}

impl Bound {
    /// Takes the next version in, where the sockets can stay as they are.
    fn follow(&self, state: &Rc<ListenerState>, place: &Place) -> bool {
        let before = self.current.replace(Rc::clone(state));
        if before.listener.tcp_backlog != state.listener.tcp_backlog {
            for accepting in &self.accepting {
                if let Err(e) = socket::set_backlog(&accepting.socket, &state.listener) {
                    tracing::warn!("listener {}: the backlog of {} cannot be changed: {e}", state.listener.name, self.local);
                }
            }
        }
        self.setup == Setup::of(&state.listener, place.address)
    }
}

struct Accepting {
    socket: Rc<tokio::net::TcpListener>,
    /// Dropped to end the accept loop, which first takes what the kernel has queued.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// Which listeners have a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Openness {
    #[default]
    All,
    /// None yet: the process before still serves.
    Held,
    /// Those that are not inbound; the others were closed for good.
    Outbound,
    Closed,
}

/// Begins what a listener's filters have to have ready before the first connection makes their state.
fn prepare(worker: &Rc<Worker>, listener: &Listener) {
    for chain in listener.all_chains() {
        if let Terminal::Http(config) = &chain.terminal {
            jwks::keep(worker, config);
        }
    }
}

/// One worker's listeners.
pub(crate) struct Manager {
    drain_time: DrainTime,
    by_name: RefCell<HashMap<Arc<str>, Rc<ListenerState>>>,
    sockets: RefCell<HashMap<Place, Bound>>,
    /// For hand-over by original destination; bound or not.
    by_address: RefCell<HashMap<SocketAddr, Rc<ListenerState>>>,
    /// What was replaced or removed, whole or in some of its chains, while it is asked to leave.
    leaving: RefCell<Vec<Rc<ListenerState>>>,
    openness: Cell<Openness>,
    /// Some address could not be had; see [`Manager::retry`].
    failed: Cell<bool>,
    inherited: RefCell<Option<Arc<Inherited>>>,
}

impl Manager {
    pub(crate) fn new(drain_time: DrainTime) -> Self {
        Self {
            drain_time,
            by_name: RefCell::default(),
            sockets: RefCell::default(),
            by_address: RefCell::default(),
            leaving: RefCell::default(),
            openness: Cell::default(),
            failed: Cell::default(),
            inherited: RefCell::default(),
        }
    }

    pub(crate) fn apply(&self, worker: &Rc<Worker>, snapshot: &Snapshot) {
        let mut by_name = HashMap::with_capacity(snapshot.listeners.len());
        let mut by_address = HashMap::with_capacity(snapshot.listeners.len());
        for listener in &snapshot.listeners {
            let state = self.state(worker, listener);
            for address in &listener.addresses {
                by_address.insert(*address, Rc::clone(&state));
            }
            by_name.insert(Arc::clone(&listener.name), state);
        }
        let before = std::mem::replace(&mut *self.by_name.borrow_mut(), by_name);
        *self.by_address.borrow_mut() = by_address;
        self.failed.set(false);
        let problems = self.bind(worker, snapshot);
        for (name, state) in before {
            if !self.by_name.borrow().get(&name).is_some_and(|now| Rc::ptr_eq(now, &state)) {
                self.leave(state);
            }
        }
        self.report(worker, problems);
    }

    /// The state of this listener: what there is where nothing changed, and what it has in common with the version before.
    fn state(&self, worker: &Rc<Worker>, listener: &Arc<Listener>) -> Rc<ListenerState> {
        let before = self.named(&listener.name);
        if let Some(same) = before.as_ref().filter(|before| Arc::ptr_eq(&before.listener, listener)) {
            return Rc::clone(same);
        }
        prepare(worker, listener);
        match before.filter(|before| Arc::ptr_eq(&before.listener.lineage, &listener.lineage)) {
            Some(before) => before.succeed(worker, Arc::clone(listener)),
            None => ListenerState::new(worker, Arc::clone(listener)),
        }
    }

    /// Asks the connections to leave that have no successor to be for.
    fn leave(&self, state: Rc<ListenerState>) {
        let ask = |signal: &DrainSignal| signal.ask(self.drain_time);
        state.leave(ask);
        self.leaving.borrow_mut().push(state);
    }

    fn report(&self, worker: &Worker, problems: Vec<String>) {
        let bound = self.sockets.borrow().values().map(|b| (Arc::clone(&b.current.borrow().listener.name), b.local)).collect();
        worker.report_listeners(bound, problems);
    }

    fn bind(&self, worker: &Rc<Worker>, snapshot: &Snapshot) -> Vec<String> {
        let mut problems = Vec::new();
        let mut wanted = HashSet::new();
        for listener in snapshot.listeners.iter().filter(|l| l.bind && self.may_open(l)) {
            let Some(state) = self.by_name.borrow().get(&listener.name).cloned() else { continue };
            for place in Place::all(listener) {
                let address = place.address;
                wanted.insert(place.clone());
                let mut local = address;
                if let Some(bound) = self.sockets.borrow().get(&place) {
                    if bound.follow(&state, &place) {
                        continue;
                    }
                    // The kernel chose the port once.
                    local = bound.local;
                }
                // Until there is another socket the one before serves, and what it has queued is taken in any case.
                match self.open(worker, &state, address, local) {
                    Ok(bound) => {
                        self.sockets.borrow_mut().insert(place, bound);
                    }
                    Err(e) => {
                        if !self.failed.get() {
                            tracing::error!("listener {} cannot listen on {address}: {e}", listener.name);
                        }
                        problems.push(format!("listener {} cannot listen on {address}: {e}", listener.name));
                    }
                }
            }
        }
        self.sockets.borrow_mut().retain(|place, _| wanted.contains(place));
        self.failed.set(!problems.is_empty());
        problems
    }

    /// Tries addresses again that could not be had: whoever has them may have ended.
    pub(crate) fn retry(&self, worker: &Rc<Worker>) {
        if self.failed.get() {
            let problems = self.bind(worker, &worker.live().snapshot);
            self.report(worker, problems);
        }
    }

    /// Opens the sockets of an address; `local` is the same with the port that the kernel has chosen, if it has.
    fn open(&self, worker: &Rc<Worker>, state: &Rc<ListenerState>, address: SocketAddr, mut local: SocketAddr) -> std::io::Result<Bound> {
        let setup = Setup::of(&state.listener, address);
        let mut sockets = match &*self.inherited.borrow() {
            Some(inherited) => inherited.take(address, worker.shard.index(), worker.registry.workers()),
            None => Vec::new(),
        };
        for socket in &sockets {
            socket::adopt(socket, &state.listener, &setup, address)?;
        }
        if sockets.is_empty() {
            sockets.push(socket::listen(&state.listener, &setup, local)?);
        }
        let current = Rc::new(RefCell::new(Rc::clone(state)));
        let mut accepting = Vec::with_capacity(sockets.len());
        for socket in sockets {
            let socket = Rc::new(tokio::net::TcpListener::from_std(socket)?);
            local = socket.local_addr()?;
            let (stop, stopped) = tokio::sync::oneshot::channel();
            crate::worker::spawn(worker, accept::run(Rc::clone(worker), Rc::clone(&current), Rc::clone(&socket), stopped));
            accepting.push(Accepting { socket, _stop: stop });
        }
        Ok(Bound { current, local, setup, accepting })
    }

    fn may_open(&self, listener: &Listener) -> bool {
        match self.openness.get() {
            Openness::All => true,
            Openness::Outbound => listener.direction != Direction::Inbound,
            Openness::Held | Openness::Closed => false,
        }
    }

    /// Opens nothing until [`Self::open_held`].
    pub(crate) fn hold(&self, inherited: Arc<Inherited>) {
        self.openness.set(Openness::Held);
        *self.inherited.borrow_mut() = Some(inherited);
    }

    /// Opens everything, with the sockets of the process before where it had them.
    pub(crate) fn open_held(&self, worker: &Rc<Worker>, snapshot: &Snapshot) {
        if self.openness.get() == Openness::Held {
            self.openness.set(Openness::All);
            let problems = self.bind(worker, snapshot);
            self.report(worker, problems);
        }
    }

    /// Duplicates of the listening sockets whose ports are configured. One that cannot be duplicated is left out; the other process binds its own.
    pub(crate) fn sockets(&self) -> Sockets {
        let sockets = self.sockets.borrow();
        let named = sockets.iter().filter(|(place, _)| place.of.is_none());
        let all = named.flat_map(|(place, bound)| bound.accepting.iter().map(|a| (place.address, &a.socket)));
        all.filter_map(|(address, socket)| Some((address, socket.as_fd().try_clone_to_owned().ok()?))).collect()
    }

    /// The listener of this name.
    pub(super) fn named(&self, name: &str) -> Option<Rc<ListenerState>> {
        self.by_name.borrow().get(name).cloned()
    }

    /// The listener for an original destination: its own address, else the wildcard of its port.
    pub(super) fn find(&self, destination: SocketAddr) -> Option<Rc<ListenerState>> {
        let by_address = self.by_address.borrow();
        let wildcard: IpAddr = match destination {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let wildcard = SocketAddr::new(wildcard, destination.port());
        let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), destination.port());
        let takes_both = || by_address.get(&both).filter(|state| state.listener.dual_stack.contains(&both));
        by_address.get(&destination).or_else(|| by_address.get(&wildcard)).or_else(takes_both).cloned()
    }

    /// Asks connections to end, spread over this time; new ones are still taken.
    pub(crate) fn ask(&self, over: Duration, inbound_only: bool) {
        for state in self.by_name.borrow().values().filter(|s| !inbound_only || s.listener.direction == Direction::Inbound) {
            state.drain(|signal| signal.ask(DrainTime { over, gradually: true }));
        }
    }

    pub(crate) fn tick(&self) {
        self.by_name.borrow().values().for_each(|state| state.drain(DrainSignal::tick));
        for state in &*self.leaving.borrow() {
            state.leave(DrainSignal::tick);
            state.leave(DrainSignal::close);
        }
        // A connection holds the version that accepted it, and of any the chain that it came to.
        self.leaving.borrow_mut().retain(|state| !state.was_told() && (Rc::strong_count(state) > 1 || state.has_connections()));
    }

    /// Follows the chains of a version that no other came after, where a connection comes to one of them late.
    pub(super) fn follow(&self, state: &Rc<ListenerState>) {
        let mut leaving = self.leaving.borrow_mut();
        if !leaving.iter().any(|other| Rc::ptr_eq(other, state)) {
            leaving.push(Rc::clone(state));
        }
    }

    /// Closes sockets, and opens none again, whatever configuration comes.
    pub(crate) fn close(&self, inbound_only: bool) {
        let concerns = |state: &ListenerState| !inbound_only || state.listener.direction == Direction::Inbound;
        self.sockets.borrow_mut().retain(|_, bound| !concerns(&bound.current.borrow()));
        if !inbound_only {
            self.openness.set(Openness::Closed);
        } else if self.openness.get() == Openness::All {
            self.openness.set(Openness::Outbound);
        }
    }

    /// Closes sockets and tells their connections to end.
    pub(crate) fn stop_accepting(&self, inbound_only: bool) {
        self.close(inbound_only);
        let concerns = |state: &ListenerState| !inbound_only || state.listener.direction == Direction::Inbound;
        for state in self.by_name.borrow().values().filter(|s| concerns(s)) {
            state.drain(DrainSignal::start);
        }
    }
}
