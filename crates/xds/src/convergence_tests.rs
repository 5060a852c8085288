//! Whatever the order in which pushes, ACKs, NACKs, subscriptions and reconnects interleave, client
//! and server end in the same state.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use lateen_proto::any::pack;
use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::core::v3::Node;
use lateen_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use lateen_proto::envoy::config::listener::v3::Listener;
use lateen_proto::envoy::config::route::v3::RouteConfiguration;
use proptest::prelude::*;

use crate::client::{ClientState, Handler, Mode, Rejected, Request, Response};
use crate::resource::Resource;
use crate::server::{Because, DeltaStream, Names, SotwStream, Stream};
use crate::types::{CLUSTER, ENDPOINT, LISTENER, ROUTE};

const TYPES: [&str; 4] = [CLUSTER, ENDPOINT, LISTENER, ROUTE];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Content by type and name. Content 0 is what the client refuses.
type World = BTreeMap<(&'static str, &'static str), u8>;

#[derive(Clone, Debug)]
enum Step {
    Set { type_at: usize, name_at: usize, content: u8 },
    Delete { type_at: usize, name_at: usize },
    Push,
    ServerReads,
    ClientReads,
    Subscribe { type_at: usize, name_at: usize },
    Unsubscribe { type_at: usize, name_at: usize },
    Reconnect,
    Patience,
}

fn step() -> impl Strategy<Value = Step> {
    let pair = || (0..TYPES.len(), 0..NAMES.len());
    prop_oneof![
        4 => (pair(), 0..4u8).prop_map(|((type_at, name_at), content)| Step::Set { type_at, name_at, content }),
        2 => pair().prop_map(|(type_at, name_at)| Step::Delete { type_at, name_at }),
        4 => Just(Step::Push),
        8 => Just(Step::ServerReads),
        8 => Just(Step::ClientReads),
        3 => pair().prop_map(|(type_at, name_at)| Step::Subscribe { type_at, name_at }),
        3 => pair().prop_map(|(type_at, name_at)| Step::Unsubscribe { type_at, name_at }),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Patience),
    ]
}

fn resource(type_url: &str, name: &str, content: u8) -> Arc<Resource> {
    let (name, mark) = (name.to_owned(), format!("content {content}"));
    let body = match type_url {
        CLUSTER => pack(&Cluster { name: name.clone(), alt_stat_name: mark, ..Default::default() }),
        LISTENER => pack(&Listener { name: name.clone(), stat_prefix: mark, ..Default::default() }),
        ROUTE => pack(&RouteConfiguration { name: name.clone(), internal_only_headers: vec![mark], ..Default::default() }),
        _ => pack(&ClusterLoadAssignment {
            cluster_name: name.clone(),
            named_endpoints: std::iter::once((mark, Default::default())).collect(),
            ..Default::default()
        }),
    };
    Resource::shared(name, body)
}

/// The client's copy of the world; refuses content 0.
#[derive(Default)]
struct Applied(BTreeMap<(String, String), String>);

impl Handler for Applied {
    fn apply(&mut self, type_url: &str, updates: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected> {
        for name in removed {
            self.0.remove(&(type_url.to_owned(), name));
        }
        let mut rejected = Vec::new();
        for update in updates {
            if update.version == resource(type_url, &update.name, 0).version {
                rejected.push(Rejected { name: update.name, reason: "content 0".into() });
            } else {
                self.0.insert((type_url.to_owned(), update.name), update.version);
            }
        }
        rejected
    }
}

/// Both ends and the messages between them.
struct Pair<S: Stream> {
    world: World,
    /// The snapshot pushed last.
    pushed: World,
    server: S,
    fresh: fn() -> S,
    client: ClientState,
    applied: Applied,
    to_server: VecDeque<S::Request>,
    to_client: VecDeque<S::Response>,
}

impl<S: Stream> Pair<S>
where
    S::Request: TryFrom<Request>,
    S::Response: Into<Response>,
{
    fn new(mode: Mode, fresh: fn() -> S) -> Self {
        let mut client = ClientState::new(mode, Node::default());
        client.subscribe_wildcard(CLUSTER);
        client.subscribe_wildcard(LISTENER);
        Self {
            world: World::new(),
            pushed: World::new(),
            server: fresh(),
            fresh,
            client,
            applied: Applied::default(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
        }
    }

    fn generate(&self, type_url: &str, names: &Names) -> Vec<Arc<Resource>> {
        let of_type = self.pushed.iter().filter(|((t, name), _)| *t == type_url && names.wants(name));
        of_type.map(|((t, name), content)| resource(t, name, *content)).collect()
    }

    fn answer(&mut self, type_url: &str, because: &Because) {
        let generated = self.generate(type_url, &self.server.scope(type_url, because));
        if let Some(answer) = self.server.answer(type_url, because, generated) {
            self.to_client.push_back(answer.response);
        }
    }

    fn push(&mut self) {
        self.pushed = self.world.clone();
        for type_url in self.server.watched() {
            self.answer(&type_url, &Because::Push);
        }
        self.flush(false);
    }

    fn flush(&mut self, force: bool) {
        let answers = self.server.flush(force);
        self.to_client.extend(answers.into_iter().map(|a| a.response));
    }

    fn client_writes(&mut self) {
        while let Some(request) = self.client.poll_request() {
            self.to_server.extend(S::Request::try_from(request).ok());
        }
    }

    fn server_reads(&mut self) -> bool {
        let Some(request) = self.to_server.pop_front() else { return false };
        let outcome = self.server.on_request(request).expect("our client keeps to the protocol");
        if let Some(because) = outcome.respond {
            self.answer(&outcome.type_url, &because);
            if outcome.type_url == CLUSTER && self.server.endpoints_due() {
                self.answer(ENDPOINT, &Because::Push);
            }
        }
        self.flush(false);
        true
    }

    fn client_reads(&mut self) -> bool {
        let Some(response) = self.to_client.pop_front() else { return false };
        self.client.on_response(response, &mut self.applied, std::time::Instant::now());
        self.client_writes();
        true
    }

    fn forget(&mut self, type_url: &str, name: &str) {
        if !matches!(type_url, CLUSTER | LISTENER) {
            self.applied.0.remove(&(type_url.to_owned(), name.to_owned()));
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Set { type_at, name_at, content } => drop(self.world.insert((TYPES[type_at], NAMES[name_at]), content)),
            Step::Delete { type_at, name_at } => drop(self.world.remove(&(TYPES[type_at], NAMES[name_at]))),
            Step::Push => self.push(),
            Step::ServerReads => drop(self.server_reads()),
            Step::ClientReads => drop(self.client_reads()),
            Step::Subscribe { type_at, name_at } => {
                // The wildcard types stay pure, as in every proxy we know.
                if !matches!(TYPES[type_at], CLUSTER | LISTENER) {
                    self.client.subscribe(TYPES[type_at], [NAMES[name_at].to_owned()]);
                }
            }
            Step::Unsubscribe { type_at, name_at } => {
                self.client.unsubscribe(TYPES[type_at], &[NAMES[name_at].to_owned()]);
                self.forget(TYPES[type_at], NAMES[name_at]);
            }
            Step::Reconnect => {
                self.server = (self.fresh)();
                self.to_server.clear();
                self.to_client.clear();
                self.client.on_connect();
            }
            Step::Patience => self.flush(true),
        }
        self.client_writes();
    }

    /// Lets everything under way arrive.
    fn settle(&mut self) {
        self.client_writes();
        while self.server_reads() || self.client_reads() {}
        self.flush(true);
        while self.server_reads() || self.client_reads() {}
    }
}

/// What a client with these subscriptions must hold of a world in which nothing is refused.
fn expected(world: &World, wanted: &BTreeSet<(&str, &str)>) -> BTreeMap<(String, String), String> {
    world
        .iter()
        .filter(|((t, n), _)| matches!(*t, CLUSTER | LISTENER) || wanted.contains(&(*t, *n)))
        .map(|((t, n), content)| (((*t).to_owned(), (*n).to_owned()), resource(t, n, *content).version.clone()))
        .collect()
}

fn check<S: Stream>(mode: Mode, fresh: fn() -> S, steps: Vec<Step>) -> Result<(), TestCaseError>
where
    S::Request: TryFrom<Request>,
    S::Response: Into<Response>,
{
    let mut pair = Pair::new(mode, fresh);
    let mut wanted = BTreeSet::new();
    pair.client_writes();
    for step in steps {
        match step {
            Step::Subscribe { type_at, name_at } => drop(wanted.insert((TYPES[type_at], NAMES[name_at]))),
            Step::Unsubscribe { type_at, name_at } => drop(wanted.remove(&(TYPES[type_at], NAMES[name_at]))),
            _ => {}
        }
        pair.run(step);
    }
    // What is refused is mended at last, and then everything must agree.
    pair.world.values_mut().filter(|content| **content == 0).for_each(|content| *content = 9);
    pair.settle();
    pair.push();
    pair.settle();
    let mut held = pair.applied.0.clone();
    if mode == Mode::Sotw {
        // A state of the world cannot say that a route or an endpoint set is gone; the client keeps it.
        held.retain(|(t, n), _| matches!(t.as_str(), CLUSTER | LISTENER) || pair.world.keys().any(|(wt, wn)| t == wt && n == wn));
    }
    prop_assert_eq!(held, expected(&pair.world, &wanted));
    // A refusal that is the last word holds removals back: the client may still serve what it had before.
    let refuses = |type_url: &String| pair.server.status(type_url).is_some_and(|s| s.nacked.is_some());
    prop_assert!(!pair.server.has_deferred() || pair.server.watched().iter().any(refuses));
    for type_url in pair.server.watched() {
        // A refusal stays the last word only where nothing had to be sent since: the client gave up what it refused.
        let Some(status) = pair.server.status(&type_url) else { continue };
        let last = status.sent.map(|sent| sent.nonce);
        prop_assert!(status.nacked.is_none_or(|nacked| Some(nacked.nonce) == last));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn delta_converges(steps in proptest::collection::vec(step(), 0..120)) {
        check(Mode::Delta, || DeltaStream::new("test".into()), steps)?;
    }

    #[test]
    fn state_of_the_world_converges(steps in proptest::collection::vec(step(), 0..120)) {
        check(Mode::Sotw, || SotwStream::new("test".into()), steps)?;
    }
}
