//! Files that the configuration names: certificates, and listeners or clusters by path.
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lateen_snapshot::bootstrap::{self, DynamicSource};
use lateen_snapshot::compile::{FileStamp, SecretSource, Update, Wanted};
use lateen_xds::resource::name_inside;
use lateen_xds::types;

use super::Main;

/// How often files are looked at. Kubernetes replaces mounted secrets by swapping a link, which events miss easily.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reloads what changed.
pub(super) async fn run(main: Arc<Main>) {
    let mut discovered: HashMap<(String, &'static str), (FileStamp, Vec<String>)> = HashMap::new();
    let mut before = Arc::<Wanted>::default();
    loop {
        certificates(&main);
        let wanted = main.compiler().wanted();
        let paths = paths(&main, &wanted);
        discovered.retain(|(path, type_url), _| paths.iter().any(|(p, t, _)| p == path && t == type_url));
        for (path, type_url, source) in paths {
            let now = FileStamp::of(Path::new(&path));
            let key = (path.clone(), type_url);
            // Of the secrets in a file only those are kept that were wanted when it was read.
            let anew = type_url == types::SECRET && wanted.secrets.beside(&before.secrets).any(|key| key.source == source);
            let names = match discovered.get(&key) {
                Some((then, _)) if *then == now && !anew => continue,
                Some((_, names)) => names.clone(),
                None => Vec::new(),
            };
            let names = resources(&main, &path, type_url, &source, names);
            discovered.insert(key, (now, names));
        }
        before = wanted;
        tokio::time::sleep(INTERVAL).await;
    }
}

fn certificates(main: &Main) {
    let read = main.compiler().files();
    let mut stamps = HashMap::new();
    let mut changed = BTreeSet::new();
    for (path, then) in &read {
        let now = stamps.entry(path).or_insert_with(|| FileStamp::of(path));
        if now.is_there() && now != then {
            changed.insert(path.as_path());
        }
    }
    if !changed.is_empty() {
        tracing::info!(files = ?changed, "certificate files changed");
        main.reload_files(|path| changed.contains(path));
    }
}

fn paths(main: &Main, wanted: &Wanted) -> Vec<(String, &'static str, SecretSource)> {
    let mut paths = Vec::new();
    // Clusters first: listeners refer to them.
    for (source, type_url) in [(&main.bootstrap.clusters, types::CLUSTER), (&main.bootstrap.listeners, types::LISTENER)] {
        if let Some(DynamicSource::Path(path)) = source {
            paths.push((path.clone(), type_url, SecretSource::Ads));
        }
    }
    for key in wanted.secrets.iter() {
        if let SecretSource::Path(path) = &key.source {
            let entry = (path.clone(), types::SECRET, key.source.clone());
            if !paths.contains(&entry) {
                paths.push(entry);
            }
        }
    }
    paths
}

/// Applies a file's resources; returns their names, so that the next version can leave some out.
fn resources(main: &Main, path: &str, type_url: &str, source: &SecretSource, before: Vec<String>) -> Vec<String> {
    let response = match bootstrap::discovery_response(Path::new(path)) {
        Ok(response) => response,
        Err(e) => {
            tracing::error!("{e}; what was read before stays in use");
            return before;
        }
    };
    let update =
        |body: lateen_proto::Any| Update { name: name_inside(&body).unwrap_or_default(), version: response.version_info.clone(), body };
    let updates: Vec<Update> = response.resources.iter().cloned().map(update).collect();
    let names: Vec<String> = updates.iter().map(|u| u.name.clone()).collect();
    let removed: Vec<String> = before.into_iter().filter(|n| !names.contains(n)).collect();
    main.apply(source, type_url, updates, &removed);
    names
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use lateen_snapshot::Snapshot;

    use super::*;
    use crate::main_thread::test_support;

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

    #[tokio::test(start_paused = true)]
    async fn a_secret_that_is_wanted_after_its_file_was_read_is_read_too() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let secret = |name: &str| {
            let [chain, key] = pair(name);
            serde_json::json!({"@type": types::SECRET, "name": name,
                "tls_certificate": {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}})
        };
        std::fs::write(file.path(), serde_json::json!({"resources": [secret("s1"), secret("s2")]}).to_string()).unwrap();
        let wants = |name: &str| {
            let source = format!("{{path_config_source: {{path: '{}'}}}}", file.path().display());
            listener(&format!("l-{name}"), &format!("tls_certificate_sds_secret_configs: [{{name: {name}, sds_config: {source}}}]"))
        };
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
}
