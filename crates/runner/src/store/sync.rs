//! Carrying a change through: pods follow the Deployments, the network follows the pods, the control plane's folder follows both.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lateen_core::utc::rfc3339;
use lateen_model::resource::ORIGIN_ANNOTATION;
use lateen_model::set::ResourceKey;
use lateen_model::{AnyResource, Kind};
use serde_json::{Value as Json, json};

use super::addresses::{fnv, pod_ranges, service_ranges};
use super::mesh::{Mesh, Pod, PodKey, State};
use super::rollout::{self, Present, Wanted};
use super::services::{self, PodView};
use super::start::{BRIDGE, plan_of};
use crate::nft::services::Routing;
use crate::pod::plan::NODE_NAME;

/// Where pods' connections to the outside are redirected.
pub const EGRESS_PORT: u16 = 15999;
/// Changes within this time are carried through together.
const GATHER: Duration = Duration::from_millis(10);

impl Mesh {
    /// Carries changes through for as long as the mesh runs.
    pub async fn follow_changes(&self) {
        loop {
            self.touched().await;
            tokio::time::sleep(GATHER).await;
            if self.state().stopping {
                return;
            }
            self.reconcile();
            self.tell_network();
            self.tell_control_plane();
            self.advance();
        }
    }

    /// Starts and ends pods.
    fn reconcile(&self) {
        let (wanted, plans) = self.wanted();
        let present: Vec<Present<ResourceKey>> = {
            let state = self.state();
            let mut pods: Vec<(&PodKey, &Pod)> = state.pods.iter().filter(|(_, p)| !p.terminating).collect();
            pods.sort_by_key(|(_, p)| p.created);
            let present = |(key, pod): (&PodKey, &Pod)| Present {
                key: ResourceKey::new(Kind::Pod, key.0.clone(), key.1.clone()),
                owner: pod.owner.clone(),
                revision: pod.revision,
                ready: pod.is_ready(),
            };
            pods.into_iter().map(present).collect()
        };
        let steps = rollout::steps(&wanted, &present);
        for key in steps.end {
            self.end_pod(&(key.namespace, key.name));
        }
        let mut starts = steps.start;
        // What the others lean on starts first.
        starts.sort_by_key(|(owner, _)| (owner.namespace != "istio-system", owner.name != "istiod"));
        for (owner, count) in starts {
            let (Some(plan), Some(want)) = (plans.get(&owner), wanted.get(&owner)) else { continue };
            // A Pod that stands alone keeps its name: the old one has to be gone first.
            if owner.kind == Kind::Pod && self.state().pods.contains_key(&(owner.namespace.clone(), owner.name.clone())) {
                continue;
            }
            for _ in 0..count {
                if let Err(e) = self.start_pod(&owner, want.revision, plan.clone()) {
                    self.refuse(&owner, format!("cannot start a pod: {e}"));
                    break;
                }
            }
        }
    }

    /// Every Deployment and Pod that can be run, with its plan; what cannot be run is noted and told once.
    fn wanted(&self) -> (BTreeMap<ResourceKey, Wanted>, BTreeMap<ResourceKey, crate::pod::plan::PodPlan>) {
        let owners: Vec<(ResourceKey, u32)> = {
            let state = self.state();
            let deployments = state.resources.deployments().map(|d| (AnyResource::Deployment(d.clone()).key(), d.spec.replicas()));
            let pods = state.resources.pods().map(|p| (AnyResource::Pod(p.clone()).key(), 1));
            deployments.chain(pods).collect()
        };
        let (mut wanted, mut plans) = (BTreeMap::new(), BTreeMap::new());
        let keys: BTreeSet<ResourceKey> = owners.iter().map(|(k, _)| k.clone()).collect();
        self.state_mut().refused.retain(|k, _| keys.contains(k));
        for (owner, replicas) in owners {
            let planned = plan_of(&self.state(), &owner);
            match planned {
                Ok(plan) => {
                    // Whatever makes the pod another one: its plan holds all of it.
                    let revision = fnv(format!("{plan:?}").as_bytes());
                    let failed_start = self.state().refused.contains_key(&owner);
                    if failed_start && self.state().pods.values().all(|p| p.owner != owner) {
                        // Tried again with each change; the note goes when it succeeds.
                        self.state_mut().refused.remove(&owner);
                    }
                    wanted.insert(owner.clone(), Wanted { replicas, revision });
                    plans.insert(owner, plan);
                }
                Err(refused) => self.refuse(&owner, refused.to_string()),
            }
        }
        (wanted, plans)
    }

    fn refuse(&self, owner: &ResourceKey, reason: String) {
        let known = self.state_mut().refused.insert(owner.clone(), reason.clone());
        if known.as_deref() != Some(&reason) {
            self.say(format_args!("{} {}/{}: {reason}", owner.kind, owner.namespace, owner.name));
        }
    }

    fn tell_network(&self) {
        let mut state = self.state_mut();
        let state = &mut *state;
        let views: Vec<PodView> = state.pods.iter().map(|(key, pod)| pod.view(key)).collect();
        let network =
            services::network(&state.resources, &views, &mut state.service_addresses, &state.settings.domain, state.config.dual_stack);
        let changed = state.network.as_ref().is_none_or(|old| old.ports != network.ports);
        if changed {
            let routing = Routing {
                interface: BRIDGE.into(),
                pods: pod_ranges(),
                services: service_ranges(),
                egress_port: EGRESS_PORT,
                ports: network.ports.clone(),
            };
            if let Err(e) = routing.ruleset().commit() {
                tracing::error!("cluster addresses are not up to date: {e}");
            }
        }
        *self.zone.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(network.zone.clone());
        for (publish, targets) in &state.published {
            let key = (publish.namespace.clone(), publish.service.clone(), publish.port);
            targets.set(network.endpoints.get(&key).cloned().unwrap_or_default());
        }
        state.network = Some(network);
    }

    /// Writes what changed into the control plane's folder, all of it in one step.
    fn tell_control_plane(&self) {
        let mut state = self.state_mut();
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        for resource in state.resources.iter().filter(|r| r.kind() != Kind::Pod) {
            let key = resource.key();
            let document = with_origin(document(&state, resource), resource);
            files.insert(file_name(&key), document.to_string());
        }
        for (key, pod) in &state.pods {
            let key = ResourceKey::new(Kind::Pod, key.0.clone(), key.1.clone());
            let document = pod_document(&key, pod);
            let document = match state.resources.get(&pod.owner) {
                Some(owner) => with_origin(document, owner),
                None => document,
            };
            files.insert(file_name(&key), document.to_string());
        }
        // One apply is one change: a rule must not be seen without what it refers to.
        if let Err(e) = state.control_folder.publish(files) {
            tracing::error!("cannot tell the control plane what changed: {e}");
        }
    }
}

/// Says where the user wrote it: what the control plane tells about it names that place and not our copy.
fn with_origin(mut document: Json, written: &AnyResource) -> Json {
    if let Some(metadata) = document.get_mut("metadata").and_then(Json::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if annotations.is_null() {
            *annotations = json!({});
        }
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(ORIGIN_ANNOTATION.into(), written.origin().annotation().into());
        }
    }
    document
}

fn file_name(key: &ResourceKey) -> String {
    format!("{}_{}_{}.json", key.kind.as_str().to_ascii_lowercase(), key.namespace, key.name)
}

/// A resource with what the API server would add.
pub fn document(state: &State, resource: &AnyResource) -> Json {
    let key = resource.key();
    let mut doc = resource.raw();
    let created = state.created.get(&key).copied().unwrap_or_else(SystemTime::now);
    if let Some(metadata) = doc.get_mut("metadata").and_then(Json::as_object_mut) {
        metadata.insert("creationTimestamp".into(), rfc3339(created).into());
        metadata.entry("uid").or_insert_with(|| format!("{:08x}-0000-4000-8000-000000000000", fnv(file_name(&key).as_bytes())).into());
        if key.kind == Kind::Namespace
            && let Some(labels) = metadata.entry("labels").or_insert_with(|| json!({})).as_object_mut()
        {
            labels.entry("kubernetes.io/metadata.name").or_insert_with(|| key.name.clone().into());
        }
    }
    match resource {
        AnyResource::Service(service) if !service.spec.is_headless() => {
            let cluster = state.network.as_ref().and_then(|n| n.cluster_addresses.get(&(key.namespace.clone(), key.name.clone())));
            if let (Some(addresses), Some(spec)) = (cluster, doc.get_mut("spec").and_then(Json::as_object_mut)) {
                spec.insert("clusterIP".into(), json!(addresses.first()));
                spec.insert("clusterIPs".into(), json!(addresses));
            }
        }
        AnyResource::Deployment(deployment) => {
            let pods: Vec<&Pod> = state.pods.values().filter(|p| p.owner == key && !p.terminating).collect();
            let ready = pods.iter().filter(|p| p.is_ready()).count();
            if let Some(doc) = doc.as_object_mut() {
                doc.insert(
                    "status".into(),
                    json!({"replicas": pods.len(), "readyReplicas": ready, "availableReplicas": ready, "updatedReplicas": pods.len(),
                           "unavailableReplicas": (deployment.spec.replicas() as usize).saturating_sub(ready)}),
                );
            }
        }
        _ => {}
    }
    doc
}

/// A running pod as the API server would show it.
pub fn pod_document(key: &ResourceKey, pod: &Pod) -> Json {
    let containers: Vec<Json> = pod
        .containers
        .iter()
        .map(|c| {
            let ports: Vec<Json> = c
                .plan
                .ports
                .iter()
                .map(|(name, port)| match name {
                    Some(name) => json!({"name": name, "containerPort": port, "protocol": "TCP"}),
                    None => json!({"containerPort": port, "protocol": "TCP"}),
                })
                .collect();
            json!({"name": c.plan.name, "image": c.plan.image, "command": c.plan.argv, "ports": ports})
        })
        .collect();
    let truth = |b: bool| if b { "True" } else { "False" };
    let mut metadata = json!({
        "name": key.name, "namespace": key.namespace, "uid": pod.uid,
        "labels": pod.plan.labels, "annotations": pod.plan.annotations, "creationTimestamp": rfc3339(pod.created),
    });
    if let Some(metadata) = metadata.as_object_mut() {
        if pod.owner.kind == Kind::Deployment {
            metadata.insert(
                "ownerReferences".into(),
                json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": pod.owner.name, "controller": true}]),
            );
        }
        if pod.terminating {
            metadata.insert("deletionTimestamp".into(), rfc3339(pod.created).into());
        }
    }
    let mut spec = json!({"nodeName": NODE_NAME, "serviceAccountName": pod.plan.service_account, "containers": containers});
    if let Some(spec) = spec.as_object_mut() {
        for (field, value) in [("hostname", &pod.plan.hostname), ("subdomain", &pod.plan.subdomain)] {
            if let Some(value) = value {
                spec.insert(field.into(), value.clone().into());
            }
        }
    }
    let statuses: Vec<Json> = pod
        .containers
        .iter()
        .map(|c| json!({"name": c.plan.name, "ready": c.ready, "restartCount": c.restarts, "started": c.pid.is_some(), "image": c.plan.image}))
        .collect();
    let ready = pod.is_ready();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec,
        "status": {
            "phase": phase(pod),
            "podIP": pod.addresses.first(), "hostIP": super::addresses::GATEWAY,
            "podIPs": pod.addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
            "startTime": rfc3339(pod.created),
            "conditions": [
                {"type": "Initialized", "status": truth(pod.is_initialized())},
                {"type": "Ready", "status": truth(ready)},
                {"type": "ContainersReady", "status": truth(ready)},
                {"type": "PodScheduled", "status": "True"},
            ],
            "containerStatuses": statuses,
        },
    })
}

/// The pod's phase.
pub fn phase(pod: &Pod) -> &'static str {
    let ended = |c: &super::mesh::Container| c.pid.is_none() && c.last_end.is_some();
    if !pod.is_initialized() {
        "Pending"
    } else if pod.plan.restart != crate::pod::restart::Policy::Always && pod.containers.iter().all(ended) {
        let failed = pod.containers.iter().any(|c| c.last_end.is_some_and(|e| e.code() != 0));
        if failed { "Failed" } else { "Succeeded" }
    } else {
        "Running"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_control_plane_reads_says_where_the_user_wrote_it() {
        for annotations in ["", "  annotations: {a: b}\n", "  annotations:\n"] {
            let yaml = format!(
                "# a remark\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\n{annotations}spec: {{ports: [{{port: 80}}]}}\n"
            );
            let (resources, _) = super::super::read::documents("shop/web.yaml", &yaml, "default");
            let text = with_origin(resources[0].raw(), &resources[0]).to_string();
            let (copies, diagnostics) = super::super::read::documents("/run/copy.json", &text, "default");
            assert!(!diagnostics.iter().any(lateen_model::Diagnostic::is_error), "{diagnostics:?}");
            assert_eq!(copies[0].origin().annotation(), "shop/web.yaml:2");
            assert_eq!(copies[0].meta().annotations.contains_key("a"), annotations.contains("a: b"));
        }
    }
}
