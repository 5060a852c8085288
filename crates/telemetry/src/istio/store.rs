//! The series themselves: one set of cells per series and worker, found by one hash lookup.
use super::catch_all::CatchAll;
use super::intern::{DestinationId, Interner, Origin, PeerId, PrincipalId, claimable};
use super::labels::{Destination, Labels, Parts, Reporter, overflow_labels};
use super::peer::{MAX_HEADER, MAX_NAME, PeerMetadata};
use super::remembered::Remembered;
use super::series::{HttpOutcome, Kind, NumberHash, Series, StreamLabels};
use crate::ResponseFlags;
use crate::stats::cells::{Cells, bump_at, new_cells, record_at};
use crate::stats::{Counter, ENVOY_BYTES, ENVOY_MS, Histogram, HistogramValue, MetricDef, Sample, Source, Value, cell_of, cells_of};
use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const fn counter(name: &'static str) -> MetricDef {
    MetricDef { name, kind: crate::stats::Kind::Counter, hide_zero: false }
}

const HTTP: &[MetricDef] = &[
    counter("istio_requests_total"),
    MetricDef { name: "istio_request_duration_milliseconds", kind: crate::stats::Kind::Histogram(&ENVOY_MS), hide_zero: false },
    MetricDef { name: "istio_request_bytes", kind: crate::stats::Kind::Histogram(&ENVOY_BYTES), hide_zero: false },
    MetricDef { name: "istio_response_bytes", kind: crate::stats::Kind::Histogram(&ENVOY_BYTES), hide_zero: false },
];
const REQUESTS: Counter = Counter(0);
const DURATION: Histogram = Histogram(cell_of(HTTP, 1), &ENVOY_MS);
const REQUEST_BYTES: Histogram = Histogram(cell_of(HTTP, 2), &ENVOY_BYTES);
const RESPONSE_BYTES: Histogram = Histogram(cell_of(HTTP, 3), &ENVOY_BYTES);

const MESSAGES: &[MetricDef] = &[counter("istio_request_messages_total"), counter("istio_response_messages_total")];

const TCP: &[MetricDef] = &[
    counter("istio_tcp_connections_opened_total"),
    counter("istio_tcp_connections_closed_total"),
    counter("istio_tcp_sent_bytes_total"),
    counter("istio_tcp_received_bytes_total"),
];

fn defs(kind: Kind) -> &'static [MetricDef] {
    match kind {
        Kind::Http => HTTP,
        Kind::Messages => MESSAGES,
        Kind::Tcp => TCP,
    }
}

/// What Istio's metrics of one proxy need to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The own workload.
    pub local: PeerMetadata,
    /// The label `tag` of `istio_build`.
    pub version: String,
    /// At most so many series over all workers; what comes after counts into one series named `overflow`.
    /// A series costs about half a kilobyte per worker. A quarter is kept for those whose names no caller has made up.
    pub max_series: usize,
    /// At most so many peers, principals and destinations each; a quarter is kept for those that configuration knows.
    pub max_names: usize,
}

impl Config {
    /// The defaults for a workload: 8192 series, 4096 names of each sort.
    pub fn new(local: PeerMetadata) -> Self {
        Self { local, version: "unknown".to_owned(), max_series: 8192, max_names: 4096 }
    }
}

/// A worker that met a full store asks again so often: another worker may have made the series while there was room.
const ASKS: u32 = 64;

/// How many series a scrape looks at with the lock held.
const AT_ONCE: usize = 128;

/// One series' cells, by worker; a worker that never counted has none.
type PerWorker = Vec<Option<Cells>>;

#[derive(Default)]
struct AllSeries {
    by_key: HashMap<Series, PerWorker, NumberHash>,
    /// How many there are because of what callers said.
    claimed: usize,
}

/// Istio's metrics of one process: what the workers share. Add it to the [`Registry`](crate::Registry) as a source.
pub struct IstioMetrics {
    config: Config,
    workers: usize,
    peers: Interner<PeerMetadata>,
    principals: Interner<String>,
    destinations: Interner<Destination>,
    series: Mutex<AllSeries>,
    /// Whether a series was refused, and whether one of callers' making was: for good, since series do not go.
    full: AtomicBool,
    full_of_claims: AtomicBool,
    overflow: Mutex<HashMap<(u8, u8), (Series, PerWorker)>>,
    overflowed: AtomicU64,
}

impl IstioMetrics {
    /// The shared part, and a shard for each worker.
    pub fn new(config: Config, workers: usize) -> (Arc<Self>, Vec<IstioShard>) {
        let shared = Arc::new(Self {
            peers: Interner::new(config.max_names),
            principals: Interner::new(config.max_names),
            destinations: Interner::new(config.max_names),
            config,
            workers,
            series: Mutex::default(),
            full: AtomicBool::new(false),
            full_of_claims: AtomicBool::new(false),
            overflow: Mutex::default(),
            overflowed: AtomicU64::new(0),
        });
        let shards = (0..workers).map(|index| IstioShard::new(shared.clone(), index)).collect();
        (shared, shards)
    }

    /// The own workload.
    pub fn local(&self) -> &PeerMetadata {
        &self.config.local
    }

    /// Interns a peer known from configuration (endpoint metadata).
    pub fn peer(&self, peer: PeerMetadata) -> PeerId {
        PeerId(self.peers.intern(peer.without_instance(), Origin::Known))
    }

    /// Interns a verified principal: once per connection.
    pub fn principal(&self, principal: &str) -> PrincipalId {
        PrincipalId(self.principals.intern(principal.to_owned(), Origin::Known))
    }

    /// Interns a cluster's service.
    pub fn destination(&self, destination: Destination) -> DestinationId {
        DestinationId(self.destinations.intern(destination, Origin::Known))
    }

    /// How many times something was counted into an overflow series because the limit was reached.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Relaxed)
    }

    /// The number of series.
    pub fn len(&self) -> usize {
        self.all_series().by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn all_series(&self) -> MutexGuard<'_, AllSeries> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a series is there because of what callers said.
    fn is_claimed(&self, series: &Series) -> bool {
        self.destinations.is_claimed(series.stream.destination.0) || self.peers.is_claimed(series.stream.peer.0)
    }

    /// Whether the series would be refused if it is new; takes no lock.
    fn refuses(&self, series: &Series) -> bool {
        self.full.load(Relaxed) || self.full_of_claims.load(Relaxed) && self.is_claimed(series)
    }

    /// The worker's cells of a series, made on first sight; `None` when the series is new and the store full.
    fn cells(&self, series: Series, worker: usize) -> Option<Cells> {
        let mut all = self.all_series();
        if !all.by_key.contains_key(&series) {
            let claimed = self.is_claimed(&series);
            let max = self.config.max_series;
            let full = all.by_key.len() >= max;
            if full || claimed && all.claimed >= claimable(max) {
                let mark = if full { &self.full } else { &self.full_of_claims };
                mark.store(true, Relaxed);
                return None;
            }
            all.claimed += usize::from(claimed);
        }
        let slots = all.by_key.entry(series).or_insert_with(|| vec![None; self.workers]);
        slots.get_mut(worker).map(|slot| slot.get_or_insert_with(|| new_cells(cells_of(defs(series.kind)))).clone())
    }

    fn overflow_cells(&self, series: Series, worker: usize) -> Cells {
        let mut all = self.overflow.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (series.kind as u8, series.stream.reporter as u8);
        let (_, slots) = all.entry(key).or_insert_with(|| (series, vec![None; self.workers]));
        let made = || new_cells(cells_of(defs(series.kind)));
        slots.get_mut(worker).map_or_else(made, |slot| slot.get_or_insert_with(made).clone())
    }

    fn labels(&self, series: &Series) -> Labels {
        let stream = &series.stream;
        let parts = Parts {
            local: &self.config.local,
            peer: &self.peers.get(stream.peer.0),
            peer_principal: &self.principals.get(stream.peer_principal.0),
            local_principal: &self.principals.get(stream.local_principal.0),
            destination: &self.destinations.get(stream.destination.0),
        };
        parts.labels(series)
    }
}

impl Source for IstioMetrics {
    fn collect(&self, emit: &mut dyn FnMut(Sample)) {
        let keys: Vec<Series> = self.all_series().by_key.keys().copied().collect();
        for some in keys.chunks(AT_ONCE) {
            let cells: Vec<PerWorker> = {
                let all = self.all_series();
                some.iter().map(|series| all.by_key.get(series).cloned().unwrap_or_default()).collect()
            };
            for (series, cells) in some.iter().zip(cells) {
                emit_series(series, &self.labels(series), &cells, emit);
            }
        }
        let overflow = self.overflow.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (series, cells) in overflow.values() {
            emit_series(series, &overflow_labels(series), cells, emit);
        }
        let build = vec![(Cow::Borrowed("component"), "proxy".to_owned()), (Cow::Borrowed("tag"), self.config.version.clone())];
        emit(sample("istio_build", build, Value::Gauge { value: 1, used: true }));
        emit(sample("lateen_istio_series_overflow_total", Vec::new(), Value::Counter(self.overflowed())));
    }
}

fn emit_series(series: &Series, labels: &Labels, shards: &[Option<Cells>], emit: &mut dyn FnMut(Sample)) {
    let sum = |cell: usize| shards.iter().flatten().filter_map(|cells| cells.get(cell)).map(|cell| cell.load(Relaxed)).sum();
    let defs = defs(series.kind);
    for (index, def) in defs.iter().enumerate() {
        let first = usize::from(cell_of(defs, index));
        let value = match def.kind {
            crate::stats::Kind::Histogram(buckets) => {
                let counts: Vec<u64> = (0..=buckets.bounds.len()).map(|bucket| sum(first + bucket)).collect();
                Value::Histogram(HistogramValue { buckets, counts, sum: sum(first + buckets.bounds.len() + 1) })
            }
            _ => Value::Counter(sum(first)),
        };
        emit(sample(def.name, labels.clone(), value));
    }
}

/// In `/stats` Envoy shows these under its custom namespace, with each label's key and value as parts of the name.
fn sample(family: &str, labels: Labels, value: Value) -> Sample {
    let mut name = format!("istiocustom.{family}");
    for (key, value) in &labels {
        name.push('.');
        name.push_str(key);
        name.push('.');
        name.push_str(value);
    }
    Sample { name, family: family.to_owned(), labels, value }
}

/// One worker's part. It is not `Sync`; move it into the worker's thread.
pub struct IstioShard {
    shared: Arc<IstioMetrics>,
    worker: usize,
    series: RefCell<HashMap<Series, Cells, NumberHash>>,
    peers: RefCell<Remembered<PeerId>>,
    last_peer: RefCell<(Vec<u8>, PeerId)>,
    hosts: RefCell<Remembered<Named>>,
    catch_alls: [Cell<Option<DestinationId>>; CatchAll::COUNT],
    /// What is counted where there is no room for a series of its own, by kind and reporter.
    overflow: [[OnceCell<Cells>; 2]; 3],
    /// How many series were refused without asking.
    refused: Cell<u32>,
}

/// What a host of callers stands for: a destination by itself, and one behind each catch-all.
type Named = [Option<DestinationId>; CatchAll::COUNT + 1];

impl IstioShard {
    fn new(shared: Arc<IstioMetrics>, worker: usize) -> Self {
        Self {
            shared,
            worker,
            series: RefCell::default(),
            peers: RefCell::default(),
            last_peer: RefCell::default(),
            hosts: RefCell::default(),
            catch_alls: Default::default(),
            overflow: Default::default(),
            refused: Cell::new(0),
        }
    }

    /// The shared part, for interning.
    pub fn shared(&self) -> &Arc<IstioMetrics> {
        &self.shared
    }

    /// Counts a finished HTTP or gRPC stream.
    pub fn http(&self, stream: StreamLabels, outcome: &HttpOutcome) {
        let series = Series::http(stream, outcome);
        self.with(series, |cells| {
            bump_at(cells, usize::from(REQUESTS.0), 1);
            record_at(cells, DURATION, outcome.duration_micros);
            record_at(cells, REQUEST_BYTES, outcome.request_bytes);
            record_at(cells, RESPONSE_BYTES, outcome.response_bytes);
        });
    }

    /// Counts gRPC messages, at intervals of a long stream or at its end.
    pub fn grpc_messages(&self, stream: StreamLabels, requests: u64, responses: u64) {
        self.with(Series::messages(stream), |cells| {
            bump_at(cells, 0, requests);
            bump_at(cells, 1, responses);
        });
    }

    /// Counts a TCP connection as opened; the handle counts its bytes and its end.
    pub fn tcp(&self, stream: StreamLabels, flags: ResponseFlags) -> TcpSeries {
        let cells = self.with(Series::tcp(stream, flags), Cells::clone);
        bump_at(&cells, 0, 1);
        TcpSeries(Rc::new(cells))
    }

    /// The peer that a metadata header names; unknown when it does not decode.
    pub fn peer_of_header(&self, value: &[u8]) -> PeerId {
        if value.len() > MAX_HEADER {
            return PeerId::default();
        }
        if self.last_peer.borrow().0 == value {
            return self.last_peer.borrow().1;
        }
        let cached = self.peers.borrow().get(value);
        let id = cached.unwrap_or_else(|| {
            let peer = PeerMetadata::decode(value).ok();
            let id = peer.map_or(0, |peer| self.shared.peers.intern(peer.without_instance(), Origin::Claimed));
            self.peers.borrow_mut().put(value, PeerId(id));
            PeerId(id)
        });
        let mut last = self.last_peer.borrow_mut();
        last.0.clear();
        last.0.extend_from_slice(value);
        last.1 = id;
        id
    }

    /// The destination for a cluster without service metadata: the host that was asked for; unknown when that is no name.
    pub fn destination_of_host(&self, host: &[u8]) -> DestinationId {
        self.claimed(CatchAll::COUNT, host, Destination::from_host)
    }

    /// The destination for what goes to no service: by its name alone where the host that was asked for is no name, or one too many.
    pub fn destination_of_catch_all(&self, catch_all: CatchAll, host: &[u8]) -> DestinationId {
        if !host.is_empty() {
            let id = self.claimed(catch_all as usize, host, |host| Destination::catch_all(catch_all, host));
            if id != DestinationId::default() {
                return id;
            }
        }
        let intern = || self.shared.destination(Destination::catch_all(catch_all, ""));
        let Some(known) = self.catch_alls.get(catch_all as usize) else { return intern() };
        let id = known.get().unwrap_or_else(intern);
        known.set(Some(id));
        id
    }

    /// A destination that callers name, at its place among those of the host.
    fn claimed(&self, place: usize, host: &[u8], make: impl FnOnce(&str) -> Destination) -> DestinationId {
        if host.len() > MAX_NAME {
            return DestinationId::default();
        }
        let mut named = self.hosts.borrow().get(host).unwrap_or_default();
        if let Some(Some(id)) = named.get(place) {
            return *id;
        }
        let Ok(text) = std::str::from_utf8(host) else { return DestinationId::default() };
        let id = DestinationId(self.shared.destinations.intern(make(text), Origin::Claimed));
        if let Some(slot) = named.get_mut(place) {
            *slot = Some(id);
        }
        self.hosts.borrow_mut().put(host, named);
        id
    }

    fn with<T>(&self, series: Series, then: impl FnOnce(&Cells) -> T) -> T {
        if let Some(cells) = self.series.borrow().get(&series) {
            return then(cells);
        }
        if self.asks(&series)
            && let Some(cells) = self.shared.cells(series, self.worker)
        {
            return then(self.series.borrow_mut().entry(series).or_insert(cells));
        }
        self.shared.overflowed.fetch_add(1, Relaxed);
        let make = || self.shared.overflow_cells(series, self.worker);
        match self.overflow.get(series.kind as usize).and_then(|kind| kind.get(series.stream.reporter as usize)) {
            Some(cells) => then(cells.get_or_init(make)),
            None => then(&make()),
        }
    }

    /// Whether there may be room for the series: what all workers share is locked only then.
    fn asks(&self, series: &Series) -> bool {
        if !self.shared.refuses(series) {
            return true;
        }
        self.refused.set(self.refused.get().wrapping_add(1));
        self.refused.get().is_multiple_of(ASKS)
    }
}

/// The counters of one open TCP connection. Dropping it does not count the end: call [`Self::closed`].
#[derive(Clone)]
pub struct TcpSeries(Rc<Cells>);

impl TcpSeries {
    pub fn closed(&self) {
        bump_at(&self.0, 1, 1);
    }

    /// Sent to the caller since the last call.
    pub fn sent(&self, bytes: u64) {
        bump_at(&self.0, 2, bytes);
    }

    /// Received from the caller since the last call.
    pub fn received(&self, bytes: u64) {
        bump_at(&self.0, 3, bytes);
    }
}

/// So that a source can be told from a destination in one place.
impl Reporter {
    /// By the listener's direction: an inbound one reports as destination.
    pub fn of_inbound(inbound: bool) -> Self {
        if inbound { Self::Destination } else { Self::Source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_too_long_are_neither_taken_nor_remembered() {
        let (metrics, shards) = IstioMetrics::new(Config::new(PeerMetadata::default()), 1);
        let shard = &shards[0];
        for n in 0..1_024 {
            let long = format!("{n:a>60000}");
            assert_eq!(shard.destination_of_host(long.as_bytes()), DestinationId::default());
            assert_eq!(shard.peer_of_header(long.as_bytes()), PeerId::default());
        }
        assert_eq!([shard.hosts.borrow().bytes(), shard.peers.borrow().bytes(), shard.last_peer.borrow().0.len()], [0, 0, 0]);
        assert_ne!(shard.destination_of_host("a".repeat(253).as_bytes()), DestinationId::default());
        assert_eq!(shard.destination_of_host("a".repeat(254).as_bytes()), DestinationId::default());
        assert_eq!(metrics.len(), 0);
    }

    #[test]
    fn a_catch_all_keeps_its_name_when_there_is_no_room_for_hosts() {
        let config = Config { max_names: 8, ..Config::new(PeerMetadata::default()) };
        let (metrics, shards) = IstioMetrics::new(config, 1);
        let shard = &shards[0];
        let of = |catch_all, host: &str| {
            let id = shard.destination_of_catch_all(catch_all, host.as_bytes());
            let destination = metrics.destinations.get(id.0);
            (destination.host.clone(), destination.name.clone())
        };
        let (black, pass) = (CatchAll::BlackHole, CatchAll::Passthrough);
        for _ in 0..2 {
            assert_eq!(of(black, "a"), ("a".into(), black.name().into()));
            assert_eq!(of(pass, "a"), ("a".into(), pass.name().into()));
        }
        assert_ne!(shard.destination_of_host(b"a"), shard.destination_of_catch_all(black, b"a"));
        for host in ["", &"x".repeat(300)] {
            assert_eq!(of(pass, host), (String::new(), pass.name().into()));
        }
        for n in 0..20 {
            of(pass, &format!("host{n}"));
        }
        assert_eq!(of(pass, "another"), (String::new(), pass.name().into()));
    }

    fn request(destination: DestinationId, code: u16) -> (StreamLabels, HttpOutcome) {
        let (peer, nobody) = (PeerId::default(), PrincipalId::default());
        let labels = StreamLabels { reporter: Reporter::Source, destination, peer, peer_principal: nobody, local_principal: nobody };
        (labels, HttpOutcome { code, ..HttpOutcome::default() })
    }

    #[test]
    fn a_full_store_is_not_asked_by_every_request() {
        let config = Config { max_series: 8, ..Config::new(PeerMetadata::default()) };
        let (metrics, shards) = IstioMetrics::new(config, 2);
        let count = |shard: &IstioShard, (labels, outcome): (StreamLabels, HttpOutcome)| shard.http(labels, &outcome);
        let claimed = shards[0].destination_of_host(b"claimed");
        (200..207).for_each(|code| count(&shards[0], request(claimed, code)));
        assert_eq!((metrics.len(), metrics.overflowed()), (6, 1));
        // Others still find room.
        (200..203).for_each(|code| count(&shards[0], request(DestinationId::default(), code)));
        assert_eq!((metrics.len(), metrics.overflowed()), (8, 2));
        let (one, other) = (metrics.all_series(), metrics.overflow.lock().unwrap());
        let (done, told) = std::sync::mpsc::channel();
        let worker = std::thread::spawn(move || {
            (300..310).for_each(|code| count(&shards[0], request(claimed, code)));
            done.send(()).unwrap();
            shards
        });
        told.recv_timeout(std::time::Duration::from_secs(10)).expect("no lock is taken");
        drop((one, other));
        let shards = worker.join().unwrap();
        assert_eq!(metrics.overflowed(), 12);
        // What the first worker has made is found by the second.
        (0..ASKS).for_each(|_| count(&shards[1], request(claimed, 200)));
        let taken = shards[1].series.borrow().len();
        assert_eq!((taken, metrics.overflowed()), (1, 12 + u64::from(ASKS) - 1));
    }
}
