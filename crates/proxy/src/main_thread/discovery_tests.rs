//! Discovery streams of their own, and what comes over them.
use std::time::Duration;

use super::*;
use crate::main_thread::test_support;

/// A listener whose certificate is at the secret service of this cluster.
fn listener(cluster: &str) -> Update {
    listener_with(cluster, "default")
}

/// And has this name there.
fn listener_with(cluster: &str, secret: &str) -> Update {
    listener_of(cluster, &[secret.to_owned()])
}

/// And has certificates of these names there.
fn listener_of(cluster: &str, secrets: &[String]) -> Update {
    let secret = |name: &String| {
        format!(
            "{{name: '{name}', sds_config: {{initial_fetch_timeout: 0s, api_config_source: {{api_type: GRPC, \
           grpc_services: [{{envoy_grpc: {{cluster_name: {cluster}}}}}]}}}}}}"
        )
    };
    let secrets = secrets.iter().map(secret).collect::<Vec<_>>().join(", ");
    let text = format!(
        "{{static_resources: {{listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 9}}}}, filter_chains: [{{\
           transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
             common_tls_context: {{tls_certificate_sds_secret_configs: [{secrets}]}}}}}}, \
           filters: [{{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
             stat_prefix: t, cluster: c}}}}]}}]}}]}}}}"
    );
    let body = lateen_snapshot::bootstrap::parse(&text, "test.yaml").unwrap().resources.remove(0);
    Update { name: "l".to_owned(), version: "1".to_owned(), body }
}

fn identity() -> Arc<WorkloadSecrets> {
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    Arc::new(WorkloadSecrets::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes(), chain.as_bytes()).unwrap())
}

#[tokio::test]
async fn a_secret_service_that_nothing_is_wanted_of_is_left() {
    let main = test_support::main("{node: {id: n, cluster: c}}");
    let identity = Some(watch::channel(None).1);
    let mut services = SecretServices { main: main.clone(), identity, token: None, own: HashMap::new(), others: HashMap::new() };
    let mut before = Since::default();
    let mut with = |updates: Vec<Update>, removed: &[String]| {
        assert_eq!(main.apply(&SecretSource::Ads, types::LISTENER, updates, removed), []);
        let wanted = main.wanted().borrow().clone();
        services.follow(&before, &wanted.secrets);
        before = wanted.secrets.clone();
        let own = services.own.iter().map(|(service, tasks)| (service.cluster.clone(), tasks.len()));
        let others = services.others.iter().map(|(service, streams)| (service.cluster.clone(), streams.tasks.len()));
        let mut running: Vec<_> = own.chain(others).collect();
        running.sort();
        running
    };
    let names = ["a", "b", "c"].map(str::to_owned);
    let (own, one, two) = ((OWN_SECRETS.to_owned(), 2), ("one".to_owned(), 1), ("two".to_owned(), 1));
    assert_eq!(with(vec![listener("one")], &[]), std::slice::from_ref(&one));
    assert_eq!(with(vec![listener_of("one", &names)], &[]), [("one".to_owned(), 3)]);
    assert_eq!(with(vec![listener_of("one", &names[1..2])], &[]), std::slice::from_ref(&one));
    assert_eq!(with(vec![listener(OWN_SECRETS)], &[]), std::slice::from_ref(&own));
    assert_eq!(with(vec![listener("two")], &[]), [own.clone(), two]);
    assert_eq!(with(Vec::new(), &["l".to_owned()]), [own]);
}

#[tokio::test]
async fn a_service_that_ends_streams_of_many_secrets_gives_each_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (path, identity) = (|name: &str| folder.path().join(name).display().to_string(), identity());
    std::fs::write(path("crt"), identity.chain_pem()).unwrap();
    std::fs::write(path("key"), identity.key().to_pem()).unwrap();
    let (socket, (_publish, none)) = (path("socket"), watch::channel(None));
    let _server = lateen_identity::sds::SdsServer::start(std::path::Path::new(&socket), none).unwrap();
    let main = test_support::main("{node: {id: n, cluster: c}}");
    let endpoint = format!("{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: '{socket}'}}}}}}}}]}}");
    let text = format!(
        "{{static_resources: {{clusters: [{{name: sds, type: STATIC, load_assignment: {{cluster_name: sds, endpoints: [{endpoint}]}}}}]}}}}"
    );
    let body = lateen_snapshot::bootstrap::parse(&text, "test.yaml").unwrap().resources.remove(0);
    let cluster = Update { name: "sds".to_owned(), version: "1".to_owned(), body };
    assert_eq!(main.apply(&SecretSource::Ads, types::CLUSTER, vec![cluster], &[]), []);
    // One file by many names.
    let names: Vec<String> = (0..70).map(|n| format!("file-cert:{}~{}", path(&("./".repeat(n) + "crt")), path("key"))).collect();
    assert_eq!(main.apply(&SecretSource::Ads, types::LISTENER, vec![listener_of("sds", &names)], &[]), []);
    let task = tokio::spawn(secrets(main.clone(), None, None));
    let mut snapshots = main.snapshots();
    let there = snapshots.wait_for(|snapshot| !snapshot.listeners.is_empty());
    tokio::time::timeout(Duration::from_secs(20), there).await.unwrap().unwrap();
    task.abort();
}

struct Nothing;

impl Handler for Nothing {
    fn apply(&mut self, _: &str, _: Vec<Resource>, _: Vec<String>) -> Vec<Rejected> {
        Vec::new()
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_connecting_is_counted_and_it_is_tried_again_until_the_process_is_given_up() {
    let main = test_support::main("{node: {id: n, cluster: c}}");
    let dials = Arc::<Mutex<usize>>::default();
    let dialing = dials.clone();
    let connector = supervised(&main.supervisor, move || {
        let dials = dialing.clone();
        async move {
            *dials.lock().unwrap() += 1;
            panic!("injected")
        }
    });
    let client = Client::new(Options::new(main.bootstrap.node.clone(), "a"), connector.shared(2));
    client.subscriptions().subscribe(types::SECRET, ["a".to_owned()]);
    let task = tokio::spawn(async move { client.run(&mut Nothing).await });
    let mut died = main.supervisor.died();
    let why = tokio::time::timeout(Duration::from_secs(60), died.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert!(why.is_some_and(|why| why.contains("connecting for discovery")));
    let counted = main.registry.block(server::DEFS, BlockName::plain("server")).counter(server::PANICS);
    assert_eq!((*dials.lock().unwrap(), counted), (6, 6));
    task.abort();
}

#[tokio::test]
async fn a_renewed_certificate_is_handed_out_also_after_a_panic() {
    let panics = test_support::PanicsOnce::when(|snapshot| !snapshot.listeners.is_empty());
    let main = test_support::main_with("{node: {id: n, cluster: c}}", panics);
    assert_eq!(main.apply(&SecretSource::Ads, types::LISTENER, vec![listener(OWN_SECRETS)], &[]), []);
    let (renew, renewed) = watch::channel(Some(identity()));
    let task = tokio::spawn(secrets(main.clone(), Some(renewed), None));
    let mut snapshots = main.snapshots();
    let there = snapshots.wait_for(|snapshot| !snapshot.listeners.is_empty());
    let snapshot = tokio::time::timeout(Duration::from_secs(10), there).await.unwrap().unwrap().clone();
    let slot = snapshot.listeners[0].chains[0].tls.clone().unwrap();
    let first = slot.config.get().unwrap();
    renew.send_replace(Some(identity()));
    let taken = async {
        while Arc::ptr_eq(&first, &slot.config.get().unwrap()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken).await.unwrap();
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn certificate_files_are_taken_when_they_come_and_when_they_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |identity: &WorkloadSecrets| {
        std::fs::write(path("crt"), identity.chain_pem()).unwrap();
        std::fs::write(path("key"), identity.key().to_pem()).unwrap();
    };
    let main = test_support::main("{node: {id: n, cluster: c}}");
    let name = format!("file-cert:{}~{}", path("crt").display(), path("key").display());
    assert_eq!(main.apply(&SecretSource::Ads, types::LISTENER, vec![listener_with(OWN_SECRETS, &name)], &[]), []);
    // The workload's own identity may come later, or never.
    let (_publish, none) = watch::channel(None);
    let mut tasks = JoinSet::new();
    tasks.spawn(secrets(main.clone(), Some(none), None));
    tasks.spawn(super::super::files::run(main.clone()));
    let told = async {
        while main.waiting() == ["listener l"] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    let why = format!("listener l ({}: cannot be read: No such file", path("crt").display());
    assert!(main.waiting()[0].starts_with(&why) && main.phase() == crate::main_thread::Phase::Initializing, "{:?}", main.waiting());

    let identities = [identity(), identity()];
    write(&identities[0]);
    let mut snapshots = main.snapshots();
    let there = snapshots.wait_for(|snapshot| !snapshot.listeners.is_empty());
    let snapshot = tokio::time::timeout(Duration::from_secs(10), there).await.unwrap().unwrap().clone();
    assert_eq!(main.phase(), crate::main_thread::Phase::Live);
    let slot = snapshot.listeners[0].chains[0].tls.clone().unwrap();
    let first = slot.config.get().unwrap();
    write(&identities[1]);
    let taken = async {
        while Arc::ptr_eq(&first, &slot.config.get().unwrap()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken).await.unwrap();
    tasks.shutdown().await;
}
