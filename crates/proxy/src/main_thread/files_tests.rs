//! What changing files do to what refers to them.
use std::time::SystemTime;

use lateen_snapshot::{Snapshot, bootstrap};

use super::*;
use crate::main_thread::{Phase, test_support};

/// A certificate of this name, with its key.
fn pair(name: &str) -> [String; 2] {
    let key = rcgen::KeyPair::generate().unwrap();
    [rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem(), key.serialize_pem()]
}

/// A listener whose TLS context says this.
fn listener(name: &str, tls: &str) -> Update {
    let socket = format!(
        "{{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{{tls}}}}}}}"
    );
    let filter = "{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}";
    let chain = format!("{{transport_socket: {socket}, filters: [{filter}]}}");
    // Each has one of its own.
    let port: u16 = name.bytes().map(u16::from).sum();
    let address = format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    let text = format!("{{static_resources: {{listeners: [{{name: {name}, address: {address}, filter_chains: [{chain}]}}]}}}}");
    let body = bootstrap::parse(&text, "test.yaml").unwrap().resources.remove(0);
    Update { name: name.to_owned(), version: "1".to_owned(), body }
}

fn add(main: &Main, listener: Update) {
    assert_eq!(main.apply(&SecretSource::Ads, types::LISTENER, vec![listener], &[]), []);
}

/// A certificate of this name with its key, as a secret.
fn secret(name: &str) -> serde_json::Value {
    let [chain, key] = pair(name);
    serde_json::json!({"@type": types::SECRET, "name": name,
        "tls_certificate": {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}})
}

/// A listener that shows the secret of this name in this file, for which it has all the time in the world.
fn wants(secret: &str, file: &Path) -> Update {
    let source = format!("{{initial_fetch_timeout: 0s, path_config_source: {{path: '{}'}}}}", file.display());
    listener(&format!("l-{secret}"), &format!("tls_certificate_sds_secret_configs: [{{name: {secret}, sds_config: {source}}}]"))
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_wanted_after_its_file_was_read_is_read_too() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), serde_json::json!({"resources": [secret("s1"), secret("s2")]}).to_string()).unwrap();
    let wants = |name: &str| wants(name, file.path());
    let main = test_support::main("{node: {id: n, cluster: c}}");
    let mut snapshots = main.snapshots();
    let task = tokio::spawn(run(main.clone()));
    for (name, count) in [("s1", 1), ("s2", 2)] {
        add(&main, wants(name));
        let waits = snapshots.wait_for(|snapshot: &Arc<Snapshot>| snapshot.listeners.len() == count);
        tokio::time::timeout(INTERVAL * 5, waits).await.unwrap().unwrap();
    }
    // One that comes back is as new.
    main.apply(&SecretSource::Ads, types::LISTENER, vec![], &["l-s1".to_owned()]);
    add(&main, wants("s1"));
    let waits = snapshots.wait_for(|snapshot: &Arc<Snapshot>| snapshot.listeners.len() == 2);
    tokio::time::timeout(INTERVAL * 5, waits).await.unwrap().unwrap();
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_changes_before_its_file_is_looked_at_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |later: Duration| {
        for (name, text) in ["crt", "key"].into_iter().zip(pair("a")) {
            std::fs::write(path(name), text).unwrap();
            std::fs::File::options().write(true).open(path(name)).unwrap().set_modified(SystemTime::now() + later).unwrap();
        }
    };
    write(Duration::ZERO);
    let main = test_support::main("{node: {id: n, cluster: c}}");
    let [chain, key] = ["crt", "key"].map(|name| format!("{{filename: '{}'}}", path(name).display()));
    add(&main, listener("l", &format!("tls_certificates: [{{certificate_chain: {chain}, private_key: {key}}}]")));
    let slot = main.snapshot().listeners[0].chains[0].tls.clone().unwrap();
    let first = slot.config.get().unwrap();
    write(Duration::from_secs(9));
    let task = tokio::spawn(run(main.clone()));
    tokio::time::sleep(INTERVAL * 3).await;
    let second = slot.config.get().unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    tokio::time::sleep(INTERVAL * 3).await;
    assert!(Arc::ptr_eq(&second, &slot.config.get().unwrap()), "it is read once");
    task.abort();
}

/// A discovery response of these resources.
fn response(resources: &serde_json::Value) -> String {
    serde_json::json!({"resources": resources}).to_string()
}

/// As editors and Kubernetes do: the file is another.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    written(&new, Duration::from_secs(1));
    std::fs::rename(new, path).unwrap();
}

/// As if it had been written so long ago: the clock of files stands still for some milliseconds.
fn written(path: &Path, ago: Duration) {
    std::fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - ago).unwrap();
}

/// Routes whose one virtual host is called this.
fn routes(host: &str) -> serde_json::Value {
    serde_json::json!([{"@type": types::ROUTE, "name": "r", "virtual_hosts": [{"name": host, "domains": ["*"]}]}])
}

fn endpoints(port: u16) -> serde_json::Value {
    let address = serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    serde_json::json!([{"@type": types::ENDPOINT, "cluster_name": "c", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}])
}

/// A listener `l` with the routes `r`, and a cluster `c`, of these files.
fn static_resources(routes: &Path, endpoints: &Path) -> String {
    let source = |path: &Path| format!("{{resource_api_version: V3, path_config_source: {{path: '{}'}}}}", path.display());
    let router = "{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
    let manager = format!(
        "{{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h, \
           http_filters: [{router}], rds: {{route_config_name: r, config_source: {}}}}}",
        source(routes)
    );
    format!(
        "{{static_resources: {{listeners: [{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 9}}}}, \
           filter_chains: [{{filters: [{{name: h, typed_config: {manager}}}]}}]}}], \
           clusters: [{{name: c, type: EDS, eds_cluster_config: {{eds_config: {}}}}}]}}}}",
        source(endpoints)
    )
}

/// The virtual host that serves, and the port of the host.
fn serving(snapshot: &Snapshot) -> (Option<String>, Option<String>) {
    let table = snapshot.routes.first().and_then(Option::as_ref);
    let hosts = snapshot.cluster_named("c").map(|(_, cluster)| cluster.hosts.clone());
    let address = hosts.and_then(|hosts| hosts.hosts().next().map(|host| host.address.to_string()));
    (table.map(|table| table.virtual_hosts[0].name.to_string()), address)
}

#[tokio::test(start_paused = true)]
async fn routes_and_endpoints_of_files_are_waited_for_and_follow_them() {
    let folder = tempfile::tempdir().unwrap();
    let [routes_file, endpoints_file] = ["routes.json", "endpoints.json"].map(|name| folder.path().join(name));
    replace(&routes_file, &response(&routes("first")));
    replace(&endpoints_file, &response(&endpoints(1)));
    let main = test_support::main(&static_resources(&routes_file, &endpoints_file));
    assert!(main.snapshot().listeners.is_empty(), "it waits for its routes");
    let mut snapshots = main.snapshots();
    let task = tokio::spawn(run(main.clone()));
    let mut becomes = async |listeners, host: &str, address: &str| {
        let expected = (Some(host.to_owned()), Some(address.to_owned()));
        let is = |snapshot: &Arc<Snapshot>| snapshot.listeners.len() == listeners && serving(snapshot) == expected;
        tokio::time::timeout(INTERVAL * 5, snapshots.wait_for(is)).await.unwrap().unwrap();
    };
    becomes(1, "first", "127.0.0.1:1").await;
    replace(&routes_file, &response(&routes("second")));
    becomes(1, "second", "127.0.0.1:1").await;
    replace(&endpoints_file, &response(&endpoints(2)));
    becomes(1, "second", "127.0.0.1:2").await;
    // What cannot be read, is refused, or is not there any more leaves the last in use.
    replace(&routes_file, "{resources: [");
    replace(&endpoints_file, &response(&serde_json::json!([{"@type": types::ENDPOINT, "cluster_name": "other"}])));
    tokio::time::sleep(INTERVAL * 3).await;
    assert_eq!(serving(&main.snapshot()), (Some("second".to_owned()), Some("127.0.0.1:2".to_owned())));
    std::fs::remove_file(&endpoints_file).unwrap();
    replace(&routes_file, &response(&routes("third")));
    becomes(1, "third", "127.0.0.1:2").await;
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_what_a_file_does_not_have_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let [routes_file, endpoints_file] = ["routes.json", "endpoints.json"].map(|name| folder.path().join(name));
    replace(&routes_file, "nonsense");
    replace(&endpoints_file, &response(&serde_json::json!([])));
    let main = test_support::main(&static_resources(&routes_file, &endpoints_file));
    let mut snapshots = main.snapshots();
    let task = tokio::spawn(run(main.clone()));
    let has_begun = |snapshot: &Arc<Snapshot>| snapshot.listeners.len() == 1 && snapshot.cluster_named("c").is_some();
    tokio::time::timeout(INTERVAL * 5, snapshots.wait_for(has_begun)).await.unwrap().unwrap();
    assert_eq!(serving(&main.snapshot()), (None, None));
    replace(&routes_file, &response(&routes("late")));
    let is_there = |snapshot: &Arc<Snapshot>| serving(snapshot).0.as_deref() == Some("late");
    tokio::time::timeout(INTERVAL * 5, snapshots.wait_for(is_there)).await.unwrap().unwrap();
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn files_of_clusters_and_listeners_that_cannot_be_read_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let [clusters, listeners] = ["clusters.yaml", "listeners.yaml"].map(|name| folder.path().join(name));
    for file in [&clusters, &listeners] {
        replace(file, "{resources: [");
    }
    let source = |path: &Path| format!("{{path_config_source: {{path: '{}'}}}}", path.display());
    let dynamic = format!("{{cds_config: {}, lds_config: {}}}", source(&clusters), source(&listeners));
    let main = test_support::main(&format!("{{node: {{id: n, cluster: c}}, dynamic_resources: {dynamic}}}"));
    assert_eq!(main.phase(), Phase::PreInitializing);
    let task = tokio::spawn(run(main.clone()));
    tokio::time::timeout(INTERVAL * 5, main.await_first_answers()).await.unwrap();
    assert_eq!(main.phase(), Phase::Live);
    replace(&clusters, &response(&serde_json::json!([{"@type": types::CLUSTER, "name": "c"}])));
    let mut snapshots = main.snapshots();
    let is_there = |snapshot: &Arc<Snapshot>| snapshot.cluster_named("c").is_some();
    tokio::time::timeout(INTERVAL * 5, snapshots.wait_for(is_there)).await.unwrap().unwrap();
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_its_file_does_not_give_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let [broken, empty] = ["broken.json", "empty.json"].map(|name| folder.path().join(name));
    replace(&broken, "{resources: [");
    replace(&empty, &response(&serde_json::json!([])));
    let main = test_support::main("{node: {id: n, cluster: c}}");
    add(&main, wants("s1", &broken));
    add(&main, wants("s2", &empty));
    let mut snapshots = main.snapshots();
    let task = tokio::spawn(run(main.clone()));
    let both = |snapshot: &Arc<Snapshot>| snapshot.listeners.len() == 2;
    let snapshot = tokio::time::timeout(INTERVAL * 5, snapshots.wait_for(both)).await.unwrap().unwrap().clone();
    let slots: Vec<_> = snapshot.listeners.iter().map(|listener| listener.chains[0].tls.clone().unwrap()).collect();
    assert!(slots.iter().all(|slot| slot.config.get().is_none()), "they have nothing to show");
    // Whatever comes late is used at once.
    replace(&broken, &response(&serde_json::json!([secret("s1")])));
    replace(&empty, &response(&serde_json::json!([secret("s2")])));
    tokio::time::sleep(INTERVAL * 3).await;
    assert!(slots.iter().all(|slot| slot.config.get().is_some()));
    let missing = listener("l", "tls_certificate_sds_secret_configs: [{name: s, sds_config: {path: /no/such.yaml}}]");
    let refused = main.apply(&SecretSource::Ads, types::LISTENER, vec![missing], &[]).remove(0).reason;
    assert!(refused.ends_with("sds_config.path: `/no/such.yaml` does not exist"), "{refused}");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn half_of_a_file_that_is_written_in_place_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clusters.yaml");
    let clusters = |names: &[&str]| {
        let one = |name: &&str| format!("- {{'@type': {}, name: {name}}}\n", types::CLUSTER);
        format!("resources:\n{}", names.iter().map(one).collect::<String>())
    };
    std::fs::write(&file, clusters(&["a", "b"])).unwrap();
    let dynamic = format!("{{cds_config: {{path_config_source: {{path: '{}'}}}}}}", file.display());
    let main = test_support::main(&format!("{{node: {{id: n, cluster: c}}, dynamic_resources: {dynamic}}}"));
    let task = tokio::spawn(run(main.clone()));
    let there = || ["a", "b", "c"].map(|name| main.snapshot().cluster_named(name).is_some());
    // Between the looks.
    tokio::time::sleep(INTERVAL / 2).await;
    assert_eq!(there(), [true, true, false]);
    std::fs::write(&file, clusters(&["a"])).unwrap();
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(there(), [true, true, false], "it may be half written");
    std::fs::write(&file, clusters(&["a", "b", "c"])).unwrap();
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(there(), [true, true, false]);
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(there(), [true, true, true], "nobody wrote on");
    replace(&file, &clusters(&["c"]));
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(there(), [false, false, true], "what is moved there is whole");
    // Taken away and written anew it is another file too.
    std::fs::rename(&file, folder.path().join("before")).unwrap();
    std::fs::write(&file, clusters(&["a"])).unwrap();
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(there(), [false, false, true], "somebody may write on");
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(there(), [true, false, false]);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn each_version_that_cannot_be_read_is_told_of_and_no_other_look() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let writer = Arc::new(log.reopen().unwrap());
    let _logged = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(writer).finish());
    let folder = tempfile::tempdir().unwrap();
    let clusters = folder.path().join("clusters.yaml");
    std::fs::write(&clusters, "{resources: [").unwrap();
    // One that is there, and whose beginning cannot be read.
    let source = |path: &str| format!("{{path_config_source: {{path: '{path}'}}}}");
    let dynamic = format!("{{cds_config: {}, lds_config: {}}}", source(clusters.to_str().unwrap()), source("/proc/self/mem"));
    let main = test_support::main(&format!("{{node: {{id: n, cluster: c}}, dynamic_resources: {dynamic}}}"));
    let task = tokio::spawn(run(main.clone()));
    let told = || {
        let log = std::fs::read_to_string(log.path()).unwrap();
        let of = |file: &str| log.lines().filter(|line| line.contains(file) && line.contains("what was read before stays in use")).count();
        [of("clusters.yaml"), of("/proc/self/mem")]
    };
    for versions in 1..4 {
        tokio::time::sleep(INTERVAL * 5).await;
        assert_eq!(told(), [versions, 1]);
        // As wrong as before.
        std::fs::write(&clusters, "{resources: [").unwrap();
        written(&clusters, INTERVAL * u32::try_from(versions).unwrap());
    }
    task.abort();
}
