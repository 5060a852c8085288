//! Files that the configuration names: certificates, and listeners or clusters by path.
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lateen_snapshot::bootstrap::{self, DynamicSource};
use lateen_snapshot::compile::{SecretSource, Update};
use lateen_xds::resource::name_inside;
use lateen_xds::types;

use super::Main;

/// How often files are looked at. Kubernetes replaces mounted secrets by swapping a link, which events miss easily.
const INTERVAL: Duration = Duration::from_secs(1);

/// What tells that a file changed: resolved through links, so that a swapped link shows.
type Stamp = Option<(PathBuf, SystemTime, u64)>;

fn stamp(path: &Path) -> Stamp {
    let real = std::fs::canonicalize(path).ok()?;
    let metadata = std::fs::metadata(&real).ok()?;
    Some((real, metadata.modified().ok()?, metadata.len()))
}

/// Reloads what changed.
pub(super) async fn run(main: Arc<Main>) {
    let mut known: HashMap<PathBuf, Stamp> = HashMap::new();
    let mut discovered: HashMap<(String, &'static str), (Stamp, Vec<String>)> = HashMap::new();
    loop {
        certificates(&main, &mut known);
        for (path, type_url, source) in paths(&main) {
            let key = (path.clone(), type_url);
            let now = stamp(Path::new(&path));
            let names = match discovered.get(&key) {
                Some((before, _)) if *before == now => continue,
                Some((_, names)) => names.clone(),
                None => Vec::new(),
            };
            let names = resources(&main, &path, type_url, &source, names);
            discovered.insert(key, (now, names));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn certificates(main: &Main, known: &mut HashMap<PathBuf, Stamp>) {
    let files = main.compiler().files();
    known.retain(|path, _| files.contains(path));
    let mut changed = Vec::new();
    for path in files {
        let now = stamp(&path);
        // A file seen for the first time was read a moment ago.
        match known.insert(path.clone(), now.clone()) {
            Some(before) if before != now && now.is_some() => changed.push(path),
            _ => {}
        }
    }
    if !changed.is_empty() {
        tracing::info!(files = ?changed, "certificate files changed");
        main.reload_files(|path| changed.iter().any(|c| c == path));
    }
}

fn paths(main: &Main) -> Vec<(String, &'static str, SecretSource)> {
    let mut paths = Vec::new();
    // Clusters first: listeners refer to them.
    for (source, type_url) in [(&main.bootstrap.clusters, types::CLUSTER), (&main.bootstrap.listeners, types::LISTENER)] {
        if let Some(DynamicSource::Path(path)) = source {
            paths.push((path.clone(), type_url, SecretSource::Ads));
        }
    }
    let wanted = main.compiler().wanted();
    for key in &wanted.secrets {
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
