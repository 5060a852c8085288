//! Files of a pod: its token, the mesh's root certificate, and its volumes.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lateen_identity::authenticate::AUDIENCE;
use lateen_identity::token::TOKEN_TTL;
use lateen_model::ResourceSet;

use super::mesh::{PodKey, State};
use super::start::pod_folder;
use crate::pod::plan::{PodPlan, Volume};

/// The token and the mesh's root, where Istio's volumes put them.
pub(super) fn write_identity(state: &State, key: &PodKey, plan: &PodPlan, run: &Path) -> io::Result<()> {
    let tokens = run.join("secrets/tokens");
    let root = run.join("secrets/istio");
    fs::create_dir_all(&tokens)?;
    fs::create_dir_all(&root)?;
    let token = state.tokens.issue(&key.0, &plan.service_account, AUDIENCE, TOKEN_TTL, SystemTime::now()).map_err(io::Error::other)?;
    write_atomically(&tokens.join("istio-token"), token.as_bytes())?;
    if let Some(pem) = &state.root_cert {
        write_atomically(&root.join("root-cert.pem"), pem.as_bytes())?;
    }
    Ok(())
}

impl State {
    /// Gives every pod a fresh token; called well before the old ones end.
    pub fn renew_tokens(&self) {
        for (key, pod) in &self.pods {
            if let Err(e) = write_identity(self, key, &pod.plan, &pod_folder(key)) {
                tracing::warn!("cannot renew the token of {}/{}: {e}", key.0, key.1);
            }
        }
    }
}

/// Files of the pod's volumes, and what to mount where.
pub(super) fn write_volumes(resources: &ResourceSet, namespace: &str, plan: &PodPlan, run: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut mounts = Vec::new();
    for mount in &plan.mounts {
        let folder = run.join("lateen-volumes").join(&mount.volume_name);
        let write = |files: Vec<(String, Vec<u8>)>, items: &[(String, String)]| -> io::Result<()> {
            fs::create_dir_all(&folder)?;
            for (key, content) in files {
                let name = if items.is_empty() { Some(&key) } else { items.iter().find(|(k, _)| *k == key).map(|(_, path)| path) };
                if let Some(name) = name.filter(|n| !n.contains("..") && !n.starts_with('/')) {
                    let file = folder.join(name);
                    fs::create_dir_all(file.parent().unwrap_or(&folder))?;
                    fs::write(file, content)?;
                }
            }
            Ok(())
        };
        let missing = |kind: &str, name: &str| io::Error::other(format!("volume {}: {kind} \"{name}\" not found", mount.volume_name));
        let source = match &mount.volume {
            Volume::ConfigMap { name, items } => {
                let map = resources.config_map(namespace, name).ok_or_else(|| missing("configmap", name))?;
                let text = map.spec.data.iter().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
                let binary = map.spec.binary_data.iter().map(|(k, v)| (k.clone(), v.0.clone()));
                write(text.chain(binary).collect(), items)?;
                folder
            }
            Volume::Secret { name, items } => {
                let secret = resources.secret(namespace, name).ok_or_else(|| missing("secret", name))?;
                let keys = secret.spec.data.keys().chain(secret.spec.string_data.keys());
                write(keys.filter_map(|k| Some((k.clone(), secret.spec.get(k)?.to_vec()))).collect(), items)?;
                folder
            }
            Volume::Empty => {
                fs::create_dir_all(&folder)?;
                folder
            }
            Volume::Host(path) => PathBuf::from(path),
        };
        mounts.push((source, PathBuf::from(&mount.path)));
    }
    Ok(mounts)
}

/// Writes a file that readers never see half of.
///
/// # Errors
/// The file system's.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.to_owned();
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    temporary.set_file_name(format!(".{name}.new"));
    fs::write(&temporary, content)?;
    fs::rename(temporary, path)
}
