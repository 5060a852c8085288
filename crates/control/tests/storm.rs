//! Thousands of proxies that come back at once, as after a restart of the control plane: a program of its own, because tests beside
//! it would be short of time.
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lateen_control::{Config, ControlPlane, Debounce, Files, build, shutdown_signal};
use lateen_model::Limits;
use lateen_proto::envoy::config::core::v3::Node;
use lateen_xds::client::{Client, Connector, Handler, Mode, Options, Rejected};
use lateen_xds::types::CLUSTER;
use lateen_xds::{ConnectionEvent, Resource, backoff::Backoff};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// So many as one control plane is to bear.
const PROXIES: usize = 5_000;
/// A debug build on a busy machine; it takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// Somebody new is not behind all of the others' work.
const NEWCOMERS_PATIENCE: Duration = Duration::from_secs(20);

fn service(name: &str, address: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: books}}
spec: {{clusterIP: {address}, selector: {{app: {name}}}, ports: [{{port: 80, name: http, targetPort: 8080}}]}}
"
    )
}

fn cluster(name: &str) -> String {
    format!("outbound|80||{name}.books.svc.cluster.local")
}

/// What a crowd of proxies has seen, all together.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Counts>>);

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    connected: usize,
    /// Clusters of the service that there is from the beginning.
    first: usize,
    /// Clusters of the service that comes later.
    later: usize,
    removed: usize,
}

impl Seen {
    fn counts(&self) -> Counts {
        *self.0.lock().unwrap()
    }

    async fn until(&self, what: &str, patience: Duration, condition: impl Fn(Counts) -> bool) {
        let deadline = Instant::now() + patience;
        while !condition(self.counts()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.counts());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Handler for Seen {
    fn apply(&mut self, _: &str, updates: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected> {
        let (first, later) = (cluster("reviews"), cluster("ratings"));
        let mut seen = self.0.lock().unwrap();
        seen.removed += removed.len();
        for update in updates {
            seen.first += usize::from(update.name == first);
            seen.later += usize::from(update.name == later);
        }
        Vec::new()
    }

    fn connection(&mut self, event: ConnectionEvent) {
        self.0.lock().unwrap().connected += usize::from(matches!(event, ConnectionEvent::Connected));
    }
}

/// A proxy that wants all clusters.
fn join(name: &str, address: SocketAddr, seen: &Seen) -> JoinHandle<()> {
    let id = format!("sidecar~10.0.0.1~{name}.books~books.svc.cluster.local");
    let node = Node { id, user_agent_name: "lateen".into(), ..Default::default() };
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let options = Options { mode: Mode::Delta, backoff, ..Options::new(node, "istiod.istio-system.svc") };
    let client = Client::new(options, Connector::tcp(address.to_string()));
    client.subscriptions().wildcard(CLUSTER);
    let mut handler = seen.clone();
    tokio::spawn(async move { client.run(&mut handler).await })
}

/// Both ends of each connection are this process's.
fn as_many_as_descriptors_allow() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
    let limit: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    PROXIES.min((limit / 2).saturating_sub(100))
}

/// A running control plane.
struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(folder: &Path, at: Option<SocketAddr>) -> Self {
        let debounce = Debounce { quiet: Duration::from_millis(20), max: Duration::from_secs(1) };
        let on_loopback = Config::on_loopback();
        let xds_plain = at.or(on_loopback.xds_plain);
        let files = Files::new([folder.to_owned()], "default", Limits::default());
        let plane: ControlPlane = build(Config { debounce, xds_plain, ..on_loopback }, vec![Box::new(files)], None).await.unwrap();
        let address = plane.addresses().xds_plain.unwrap();
        let (stop, stopped) = shutdown_signal();
        Self { address, stop, task: tokio::spawn(plane.run(stopped)) }
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        tokio::time::timeout(PATIENCE, self.task).await.expect("the control plane ends").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_that_come_back_at_once_are_all_served_and_hear_of_changes() {
    let many = as_many_as_descriptors_allow();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mesh.yaml"), service("reviews", "10.96.0.1")).unwrap();
    let plane = Running::start(folder.path(), None).await;
    let address = plane.address;
    let crowd = Seen::default();
    let mut tasks: Vec<_> = (0..many).map(|i| join(&format!("p{i}"), address, &crowd)).collect();
    crowd.until("the first world", PATIENCE, |s| s.first >= many).await;
    plane.stop().await;

    let before = crowd.counts();
    let plane = Running::start(folder.path(), Some(address)).await;
    let newcomer = Seen::default();
    tasks.push(join("new", address, &newcomer));
    newcomer.until("a newcomer's world", NEWCOMERS_PATIENCE, |s| s.first == 1).await;
    crowd.until("everybody is back", PATIENCE, |s| s.connected >= before.connected + many).await;
    std::fs::write(folder.path().join("more.yaml"), service("ratings", "10.96.0.2")).unwrap();
    crowd.until("everybody hears of a change", PATIENCE, |s| s.later >= many).await;
    let after = crowd.counts();
    assert_eq!((after.first, after.removed), (before.first, 0), "what they had is neither sent again nor taken away");
    tasks.iter().for_each(JoinHandle::abort);
    plane.stop().await;
}
