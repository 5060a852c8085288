//! Changes that the user makes: apply and delete, with kubectl's words and the model's diagnostics.
use std::time::SystemTime;

use lateen_model::set::ResourceKey;
use lateen_model::{AnyResource, Diagnostic, Kind, ResourceSet, Severity};

use super::mesh::{Mesh, State};
use super::read;
use crate::config::SourceText;

/// What came of a change: lines for output and for errors, and whether all of it was accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub out: Vec<String>,
    pub err: Vec<String>,
    pub failed: bool,
}

/// `virtualservice.networking.istio.io/reviews`, `service/reviews`.
pub fn reference(key: &ResourceKey) -> String {
    let kind = key.kind.as_str().to_ascii_lowercase();
    match key.kind.group() {
        "" => format!("{kind}/{}", key.name),
        group => format!("{kind}.{group}/{}", key.name),
    }
}

/// `pods "x"`, `virtualservices.networking.istio.io "x"`: how the API server names a thing in an error.
pub fn quoted(kind: Kind, name: &str) -> String {
    match kind.group() {
        "" => format!("{} \"{name}\"", kind.plural()),
        group => format!("{}.{group} \"{name}\"", kind.plural()),
    }
}

impl Outcome {
    fn diagnostics(&mut self, diagnostics: &[Diagnostic]) {
        for diagnostic in diagnostics {
            // What Kubernetes has and a mesh on one machine does not need is no news.
            if diagnostic.severity > Severity::Info {
                self.err.push(diagnostic.to_string());
            }
            self.failed |= diagnostic.is_error();
        }
    }
}

impl Mesh {
    /// Creates and changes what the texts hold; a bad resource is left out, the others are taken. What does not fit
    /// together with the rest of the mesh (a subset that nobody defines) is told too, and is no failure: its other half may come.
    pub fn apply(&self, sources: &[SourceText], namespace: &str) -> Outcome {
        let mut outcome = Outcome::default();
        // Of two with one name, which is meant? The first, and the other is told.
        let mut given = ResourceSet::new();
        for source in sources {
            let (resources, diagnostics) = read::documents(&source.file, &source.text, namespace);
            outcome.diagnostics(&diagnostics);
            if resources.is_empty() && diagnostics.is_empty() {
                outcome.err.push(format!("error: no objects passed to apply in {}", source.file));
                outcome.failed = true;
            }
            let mut state = self.state_mut();
            for resource in resources {
                match given.insert_new(resource.clone()) {
                    Ok(()) => put(&mut state, resource, &mut outcome),
                    Err(twice) => outcome.diagnostics(&[*twice]),
                }
            }
        }
        let ours =
            |d: &&Diagnostic| d.severity > Severity::Info && d.resource.as_ref().is_some_and(|id| given.iter().any(|r| r.id() == *id));
        outcome.err.extend(lateen_model::analyze(&self.state().resources).iter().filter(ours).map(ToString::to_string));
        self.touch();
        outcome
    }

    /// Removes what the texts hold.
    pub fn delete_sources(&self, sources: &[SourceText], namespace: &str) -> Outcome {
        let mut outcome = Outcome::default();
        let mut keys = Vec::new();
        for source in sources {
            let (resources, diagnostics) = read::documents(&source.file, &source.text, namespace);
            outcome.diagnostics(&diagnostics);
            keys.extend(resources.iter().map(AnyResource::key));
        }
        // In reverse: what came last leans on what came first.
        for key in keys.iter().rev() {
            self.remove(key, &mut outcome);
        }
        self.touch();
        outcome
    }

    /// Removes by name.
    pub fn delete(&self, kind: Kind, names: &[String], namespace: &str) -> Outcome {
        let mut outcome = Outcome::default();
        for name in names {
            let namespace = if kind.is_namespaced() { namespace } else { "" };
            self.remove(&ResourceKey::new(kind, namespace, name.as_str()), &mut outcome);
        }
        self.touch();
        outcome
    }

    fn remove(&self, key: &ResourceKey, outcome: &mut Outcome) {
        let running = (key.namespace.clone(), key.name.clone());
        let removed = {
            let mut state = self.state_mut();
            let removed = state.resources.remove(key).is_some();
            state.created.remove(key);
            if removed && key.kind == Kind::Service {
                state.service_addresses.release(&key.namespace, &key.name);
            }
            if removed && key.kind == Kind::Namespace {
                let inside: Vec<ResourceKey> = state.resources.iter().map(AnyResource::key).filter(|k| k.namespace == key.name).collect();
                for key in inside {
                    state.resources.remove(&key);
                }
            }
            removed
        };
        if removed {
            outcome.out.push(format!("{} deleted", deleted(key)));
        } else if key.kind == Kind::Pod && self.state().pods.contains_key(&running) {
            // One of a Deployment's: it ends, and another takes its place.
            self.end_pod(&running);
            outcome.out.push(format!("{} deleted", deleted(key)));
        } else {
            outcome.err.push(format!("Error from server (NotFound): {} not found", quoted(key.kind, &key.name)));
            outcome.failed = true;
        }
    }
}

/// `virtualservice.networking.istio.io "reviews"`.
fn deleted(key: &ResourceKey) -> String {
    match reference(key).rsplit_once('/') {
        Some((kind, name)) => format!("{kind} \"{name}\""),
        None => key.name.clone(),
    }
}

fn put(state: &mut State, resource: AnyResource, outcome: &mut Outcome) {
    let key = resource.key();
    if key.kind.is_namespaced() && state.resources.namespace("", &key.namespace).is_none() {
        // kubectl refuses; here a folder of YAML should run as it is.
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n", key.namespace);
        for namespace in read::documents("implied", &text, "default").0 {
            outcome.out.push(format!("namespace/{} created (implied by {})", key.namespace, reference(&key)));
            state.created.insert(namespace.key(), SystemTime::now());
            state.resources.insert(namespace);
        }
    }
    let verb = match state.resources.get(&key) {
        None => "created",
        Some(old) if old.raw() == resource.raw() => "unchanged",
        Some(_) => "configured",
    };
    outcome.out.push(format!("{} {verb}", reference(&key)));
    state.created.entry(key).or_insert_with(SystemTime::now);
    state.resources.insert(resource);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_named_as_kubectl_names_them() {
        let key = ResourceKey::new(Kind::VirtualService, "default", "reviews");
        assert_eq!(reference(&key), "virtualservice.networking.istio.io/reviews");
        assert_eq!(deleted(&key), "virtualservice.networking.istio.io \"reviews\"");
        assert_eq!(quoted(Kind::Pod, "x"), "pods \"x\"");
        assert_eq!(quoted(Kind::Deployment, "x"), "deployments.apps \"x\"");
    }
}
