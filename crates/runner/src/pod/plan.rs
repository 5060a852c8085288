//! From a pod's spec to what has to run: commands, environment, probes, volumes. Pure; refuses in words what cannot be run.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use lateen_core::Labels;
use lateen_model::kinds::PodSpec;
use lateen_model::kinds::workload::{Container, EnvVar};
use lateen_model::schema::IntOrString;
use serde_json::Value as Json;

use super::probe::{Check, Probe};
use super::restart::Policy;

/// The program itself, as seen from any process that it starts.
pub const SELF: &str = "/proc/self/exe";
/// The image of the built-in sample service.
const APP_IMAGE: &str = "lateen/app";

/// What stands for an image on this machine: `--image NAME=COMMAND`.
pub type Images = BTreeMap<String, Vec<String>>;

/// Why a pod cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "container {container}: image `{image}` cannot be pulled, containers are processes of this machine: give it a `command:`, or say what it stands for with `--image {image}=COMMAND`"
    )]
    Image { container: String, image: String },
    #[error("container {container}: {probe}: {reason}")]
    Probe { container: String, probe: &'static str, reason: String },
    #[error("the pod has no containers")]
    Empty,
    #[error("hostNetwork pods are not run: every pod has a network of its own")]
    HostNetwork,
    #[error("{0}")]
    Other(String),
}

/// What a container is to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    App,
    /// The sidecar, or the whole of a gateway.
    Proxy,
    /// The control plane.
    Control,
}

/// A value of the environment, some known only when the pod runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Field(String),
    ConfigMap { name: String, key: String, optional: bool },
    Secret { name: String, key: String, optional: bool },
}

/// Where a volume's files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    ConfigMap { name: String, items: Vec<(String, String)> },
    Secret { name: String, items: Vec<(String, String)> },
    Empty,
    Host(String),
}

/// A volume in a place. All containers of a pod see one file system, so mounts are the pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub volume_name: String,
    pub volume: Volume,
    pub path: String,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPlan {
    pub name: String,
    pub image: String,
    pub role: Role,
    pub argv: Vec<String>,
    pub env: Vec<(String, Value)>,
    pub cwd: Option<String>,
    pub ports: Vec<(Option<String>, u16)>,
    pub readiness: Probe,
    pub liveness: Option<Probe>,
    pub startup: Option<Probe>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlan {
    pub labels: Labels,
    pub annotations: BTreeMap<String, String>,
    pub service_account: String,
    pub hostname: Option<String>,
    pub subdomain: Option<String>,
    pub init: Vec<ContainerPlan>,
    pub containers: Vec<ContainerPlan>,
    pub mounts: Vec<Mount>,
    pub restart: Policy,
    pub grace: Duration,
    /// What of the traffic goes through the sidecar; `None` without one.
    pub capture: Option<crate::nft::capture::Capture>,
}

/// What a pod is planned from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub spec: &'a PodSpec,
    /// The same spec as it was written, for what the typed form leaves out.
    pub raw: &'a Json,
    pub labels: &'a Labels,
    pub annotations: &'a BTreeMap<String, String>,
}

impl PodPlan {
    /// Plans the containers that the spec names; [`super::inject`] adds the mesh's.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn of(source: Source<'_>, images: &Images) -> Result<Self, Refused> {
        let spec = source.spec;
        if spec.host_network {
            return Err(Refused::HostNetwork);
        }
        if spec.containers.is_empty() {
            return Err(Refused::Empty);
        }
        let list = |containers: &[Container], field: &str| -> Result<Vec<ContainerPlan>, Refused> {
            let raw = |i: usize| source.raw.get(field).and_then(|c| c.get(i)).unwrap_or(&Json::Null);
            containers.iter().enumerate().map(|(i, c)| container(c, raw(i), images)).collect()
        };
        Ok(Self {
            labels: source.labels.clone(),
            annotations: source.annotations.clone(),
            service_account: spec.service_account().to_owned(),
            hostname: spec.hostname.clone(),
            subdomain: source.raw.get("subdomain").and_then(Json::as_str).map(str::to_owned).or_else(|| spec.subdomain.clone()),
            init: list(&spec.init_containers, "initContainers")?,
            containers: list(&spec.containers, "containers")?,
            mounts: mounts(source.raw)?,
            restart: Policy::parse(spec.restart_policy.as_deref()),
            grace: Duration::from_secs(spec.termination_grace_period_seconds.unwrap_or(30).into()),
            capture: None,
        })
    }

    /// The number of a named or numbered port of the pod, as a Service's targetPort means it.
    pub fn port(&self, target: &IntOrString) -> Option<u16> {
        match target {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => self.containers.iter().find_map(|c| c.port(name)),
        }
    }
}

impl ContainerPlan {
    /// The number of a port by its name.
    pub fn port(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|(n, _)| n.as_deref() == Some(name)).map(|(_, number)| *number)
    }
}

fn container(spec: &Container, raw: &Json, images: &Images) -> Result<ContainerPlan, Refused> {
    let image = spec.image.clone().unwrap_or_default();
    let ports: Vec<_> = spec.ports.iter().map(|p| (p.name.clone(), p.container_port)).collect();
    let named = |name: &str| ports.iter().find(|(n, _)| n.as_deref() == Some(name)).map(|(_, number)| *number);
    let read = |probe: &Option<lateen_model::kinds::workload::Probe>, field| {
        let refused = |reason| Refused::Probe { container: spec.name.clone(), probe: field, reason };
        probe.as_ref().map(|p| Probe::read(p, named).map_err(refused)).transpose()
    };
    // Kubernetes would call it ready at once; here the first connection should not fail.
    let open = ports.first().map_or(Check::Nothing, |(_, port)| Check::Tcp { port: *port });
    Ok(ContainerPlan {
        name: spec.name.clone(),
        role: Role::App,
        argv: argv(spec, &image, images)?,
        env: environment(&spec.env, raw),
        cwd: spec.working_dir.clone(),
        readiness: read(&spec.readiness_probe, "readinessProbe")?.unwrap_or_else(|| Probe::of(open)),
        liveness: read(&spec.liveness_probe, "livenessProbe")?,
        startup: read(&spec.startup_probe, "startupProbe")?,
        ports,
        image,
    })
}

/// The command: the container's own, or what its image stands for; `args` follow in either case.
fn argv(spec: &Container, image: &str, images: &Images) -> Result<Vec<String>, Refused> {
    let untagged = without_tag(image);
    if image == "auto" {
        // Istio's word for "the injector puts the proxy here".
        return Ok(Vec::new());
    }
    let mut argv = if let [first, rest @ ..] = spec.command.as_slice() {
        let own = matches!(first.as_str(), "lateen" | "/lateen" | "/usr/local/bin/lateen");
        let first = if own { SELF.to_owned() } else { first.clone() };
        [&[first][..], rest].concat()
    } else if let Some(command) = images.get(image).or_else(|| images.get(untagged)) {
        command.iter().enumerate().map(|(i, word)| if i == 0 && word == "lateen" { SELF.to_owned() } else { word.clone() }).collect()
    } else if untagged == APP_IMAGE || untagged.ends_with(&format!("/{APP_IMAGE}")) {
        vec![SELF.to_owned(), "app".to_owned()]
    } else {
        return Err(Refused::Image { container: spec.name.clone(), image: image.to_owned() });
    };
    argv.extend(spec.args.iter().cloned());
    Ok(argv)
}

fn without_tag(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

fn environment(env: &[EnvVar], raw: &Json) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    // envFrom: whole ConfigMaps and Secrets; the key `*` stands for every key and the name part is the prefix.
    for source in raw.get("envFrom").and_then(Json::as_array).into_iter().flatten() {
        let prefix = source.get("prefix").and_then(Json::as_str).unwrap_or("").to_owned();
        let find = |field: &str| source.get(field).and_then(|s| s.get("name")).and_then(Json::as_str).map(str::to_owned);
        if let Some(name) = find("configMapRef") {
            all.push((prefix, Value::ConfigMap { name, key: "*".into(), optional: true }));
        } else if let Some(name) = find("secretRef") {
            all.push((prefix, Value::Secret { name, key: "*".into(), optional: true }));
        }
    }
    all.extend(env.iter().map(|var| {
        let value = match (&var.value, &var.value_from) {
            (None, Some(from)) => match (&from.field_ref, &from.config_map_key_ref, &from.secret_key_ref) {
                (Some(field), _, _) => Value::Field(field.field_path.clone()),
                (_, Some(k), _) => Value::ConfigMap { name: k.name.clone(), key: k.key.clone(), optional: k.optional },
                (_, _, Some(k)) => Value::Secret { name: k.name.clone(), key: k.key.clone(), optional: k.optional },
                _ => Value::Text(String::new()),
            },
            (value, _) => Value::Text(value.clone().unwrap_or_default()),
        };
        (var.name.clone(), value)
    }));
    all
}

fn mounts(raw: &Json) -> Result<Vec<Mount>, Refused> {
    let array = |json: &Json, field: &str| json.get(field).and_then(Json::as_array).cloned().unwrap_or_default();
    let text = |json: &Json, field: &str| json.get(field).and_then(Json::as_str).map(str::to_owned);
    let volumes = array(raw, "volumes");
    let mut found: Vec<Mount> = Vec::new();
    for container in array(raw, "initContainers").iter().chain(&array(raw, "containers")) {
        for mount in array(container, "volumeMounts") {
            let (Some(name), Some(path)) = (text(&mount, "name"), text(&mount, "mountPath")) else { continue };
            if found.iter().any(|m| m.path == path && m.volume_name == name) {
                continue;
            }
            let Some(spec) = volumes.iter().find(|v| text(v, "name").as_deref() == Some(&name)) else {
                return Err(Refused::Other(format!("volumeMount {path}: the pod has no volume named `{name}`")));
            };
            found.push(Mount { volume: volume(spec, &name)?, volume_name: name, path });
        }
    }
    Ok(found)
}

fn volume(spec: &Json, name: &str) -> Result<Volume, Refused> {
    let items = |v: &Json| -> Vec<(String, String)> {
        let list = v.get("items").and_then(Json::as_array).into_iter().flatten();
        list.filter_map(|i| Some((i.get("key")?.as_str()?.to_owned(), i.get("path")?.as_str()?.to_owned()))).collect()
    };
    let named = |v: &Json, field: &str| v.get(field).and_then(Json::as_str).unwrap_or_default().to_owned();
    if let Some(v) = spec.get("configMap") {
        Ok(Volume::ConfigMap { name: named(v, "name"), items: items(v) })
    } else if let Some(v) = spec.get("secret") {
        Ok(Volume::Secret { name: named(v, "secretName"), items: items(v) })
    } else if spec.get("emptyDir").is_some() {
        Ok(Volume::Empty)
    } else if let Some(v) = spec.get("hostPath") {
        Ok(Volume::Host(named(v, "path")))
    } else {
        Err(Refused::Other(format!("volume `{name}`: only configMap, secret, emptyDir and hostPath volumes can be mounted")))
    }
}

/// What a downward-API field of a pod is.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub uid: &'a str,
    pub addresses: &'a [IpAddr],
    pub node_address: IpAddr,
    pub plan: &'a PodPlan,
}

impl Facts<'_> {
    /// The value of a `fieldPath`; unknown ones are empty.
    pub fn field(&self, path: &str) -> String {
        let key = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
        if let Some(label) = key("metadata.labels") {
            return self.plan.labels.get(label).cloned().unwrap_or_default();
        }
        if let Some(annotation) = key("metadata.annotations") {
            return self.plan.annotations.get(annotation).cloned().unwrap_or_default();
        }
        match path {
            "metadata.name" => self.name.to_owned(),
            "metadata.namespace" => self.namespace.to_owned(),
            "metadata.uid" => self.uid.to_owned(),
            "spec.nodeName" => NODE_NAME.to_owned(),
            "spec.serviceAccountName" => self.plan.service_account.clone(),
            "status.podIP" => self.addresses.first().map(ToString::to_string).unwrap_or_default(),
            "status.podIPs" => self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            "status.hostIP" => self.node_address.to_string(),
            _ => String::new(),
        }
    }
}

/// The node that every pod says it runs on.
pub const NODE_NAME: &str = "lateen";

/// Replaces `$(NAME)` by what `env` holds; `$$(NAME)` stays as `$(NAME)`, unknown names stay as they are.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("$(").and_then(|r| r.split_once(')')) {
            match env.iter().rev().find(|(k, _)| k == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&rest[..name.len() + 3]),
            }
            rest = after;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(command: &[&str], image: &str) -> Container {
        Container {
            name: "c".into(),
            image: Some(image.into()),
            command: command.iter().map(|s| (*s).into()).collect(),
            ..Container::default()
        }
    }

    #[test]
    fn a_command_beats_the_image_and_a_foreign_image_is_refused() {
        let images = Images::from([("quay.io/x/customer".to_owned(), vec!["lateen".to_owned(), "app".to_owned()])]);
        let run = |command: &[&str], image: &str| argv(&spec(command, image), image, &images);
        assert_eq!(run(&["sleep", "9"], "any").unwrap(), ["sleep", "9"]);
        assert_eq!(run(&[], "lateen/app:v1").unwrap(), [SELF, "app"]);
        assert_eq!(run(&[], "docker.io/lateen/app@sha256:00").unwrap(), [SELF, "app"]);
        assert_eq!(run(&[], "quay.io/x/customer:v1").unwrap(), [SELF, "app"]);
        assert_eq!(run(&["lateen", "app"], "x").unwrap(), [SELF, "app"]);
        let refused = run(&[], "localhost:5000/nginx").unwrap_err().to_string();
        assert!(refused.contains("image `localhost:5000/nginx` cannot be pulled") && refused.contains("--image"), "{refused}");
    }

    #[test]
    fn variables_expand_as_in_kubernetes() {
        let env = vec![("A".to_owned(), "1".to_owned()), ("A".to_owned(), "2".to_owned())];
        assert_eq!(expand("x$(A)y$$(A)$(B)$(", &env), "x2y$(A)$(B)$(");
        assert_eq!(expand("cost $5", &env), "cost $5");
    }

    #[test]
    fn volumes_are_found_or_refused_by_name() {
        let raw = serde_json::json!({
            "containers": [{"volumeMounts": [{"name": "c", "mountPath": "/run/c"}, {"name": "c", "mountPath": "/run/c"}]}],
            "volumes": [{"name": "c", "configMap": {"name": "conf"}}],
        });
        assert_eq!(mounts(&raw).unwrap().len(), 1);
        let raw = serde_json::json!({"containers": [{"volumeMounts": [{"name": "d", "mountPath": "/d"}]}]});
        assert_eq!(mounts(&raw).unwrap_err().to_string(), "volumeMount /d: the pod has no volume named `d`");
        let raw = serde_json::json!({"containers": [{"volumeMounts": [{"name": "d", "mountPath": "/d"}]}], "volumes": [{"name": "d", "nfs": {}}]});
        assert!(mounts(&raw).unwrap_err().to_string().contains("only configMap"));
    }
}
