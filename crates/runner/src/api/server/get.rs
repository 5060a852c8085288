//! `get`, `ps` and the short state: what is there, in kubectl's columns.
use std::collections::BTreeMap;
use std::time::SystemTime;

use lateen_model::set::ResourceKey;
use lateen_model::{AnyResource, Kind};
use serde_json::{Value as Json, json};

use super::super::{Output, table};
use super::unknown_kind;
use crate::pod::plan::Role;
use crate::store::change::{quoted, reference};
use crate::store::mesh::{Container, Pod, State};
use crate::store::sync::{document, phase, pod_document};

/// One thing that `get` shows.
pub(super) struct Row {
    namespace: String,
    name: String,
    reference: String,
    cells: Vec<String>,
    wide: Vec<String>,
    document: Json,
}

/// All rows of one kind.
pub(super) struct Section {
    header: Vec<&'static str>,
    wide: Vec<&'static str>,
    rows: Vec<Row>,
}

/// What was found and what was asked for by name and is not there.
pub(super) struct Found {
    sections: Vec<Section>,
    pub(super) missing: Vec<String>,
    many: bool,
    named: bool,
    nothing: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Kind(Kind),
    Endpoints,
}

fn sorts(text: &str) -> Result<Vec<Sort>, String> {
    let one = |word: &str| match word {
        "ep" | "endpoints" | "endpoint" => Ok(Sort::Endpoints),
        word => {
            // `virtualservices.networking.istio.io`: the group is implied.
            let plain = word.split('.').next().unwrap_or(word);
            plain.parse().map(Sort::Kind).map_err(|_| unknown_kind(word))
        }
    };
    match text {
        "all" => Ok([Kind::Pod, Kind::Service, Kind::Deployment].map(Sort::Kind).to_vec()),
        text => text.split(',').filter(|w| !w.is_empty()).map(one).collect(),
    }
}

pub(super) fn find(state: &State, kinds: &str, names: &[String], namespace: Option<&str>) -> Result<Found, String> {
    // `get KIND/NAME` as well as `get KIND NAME`.
    let (kinds, names) = match kinds.split_once('/') {
        Some((kind, name)) => (kind, vec![name.to_owned()]),
        None => (kinds, names.to_vec()),
    };
    let sorts = sorts(kinds)?;
    let mut found =
        Found { sections: Vec::new(), missing: Vec::new(), many: sorts.len() > 1, named: !names.is_empty(), nothing: String::new() };
    for sort in sorts {
        let mut section = section(state, sort);
        let namespaced = sort != Sort::Kind(Kind::Namespace);
        section.rows.retain(|r| !namespaced || namespace.is_none_or(|n| n == r.namespace));
        if !names.is_empty() {
            for name in &names {
                if !section.rows.iter().any(|r| r.name == *name) {
                    let what = match sort {
                        Sort::Kind(kind) => quoted(kind, name),
                        Sort::Endpoints => format!("endpoints \"{name}\""),
                    };
                    found.missing.push(format!("Error from server (NotFound): {what} not found"));
                }
            }
            section.rows.retain(|r| names.contains(&r.name));
        }
        found.nothing = match (namespaced, namespace) {
            (true, Some(namespace)) => format!("No resources found in {namespace} namespace.\n"),
            _ => "No resources found\n".into(),
        };
        found.sections.push(section);
    }
    Ok(found)
}

pub(super) fn print(found: &Found, output: Output, all_namespaces: bool) -> String {
    let rows = || found.sections.iter().flat_map(|s| &s.rows);
    match output {
        Output::Name => rows().map(|r| format!("{}\n", r.reference)).collect(),
        Output::Json | Output::Yaml => {
            let mut documents: Vec<Json> = rows().map(|r| r.document.clone()).collect();
            let value = match documents.len() {
                0 if found.named => return String::new(),
                1 if found.named => documents.remove(0),
                _ => json!({"apiVersion": "v1", "items": documents, "kind": "List", "metadata": {"resourceVersion": ""}}),
            };
            if output == Output::Yaml { table::yaml(&value) } else { serde_json::to_string_pretty(&value).unwrap_or_default() + "\n" }
        }
        Output::Table | Output::Wide => {
            let sections: Vec<String> = found
                .sections
                .iter()
                .filter(|s| !s.rows.is_empty())
                .map(|s| table::render(&header(s, output, all_namespaces), &cells(s, output, all_namespaces, found.many)))
                .collect();
            if sections.is_empty() && found.missing.is_empty() { found.nothing.clone() } else { sections.join("\n") }
        }
    }
}

/// For `-w`: everything at first, then the rows that changed.
pub(super) fn print_changes(found: &Found, output: Output, all_namespaces: bool, seen: &mut BTreeMap<String, String>) -> String {
    let first = seen.is_empty();
    let mut text = String::new();
    for section in &found.sections {
        let rows = cells(section, output, all_namespaces, found.many);
        // Ages change all the time and are no news.
        let age = section.header.iter().position(|h| *h == "AGE").map(|i| i + usize::from(all_namespaces));
        let mut changed = Vec::new();
        for (row, cells) in section.rows.iter().zip(rows) {
            let state: Vec<&String> = cells.iter().enumerate().filter(|(i, _)| Some(*i) != age).map(|(_, c)| c).collect();
            let state = format!("{state:?}");
            if seen.insert(format!("{}/{}", row.namespace, row.reference), state.clone()) != Some(state) {
                changed.push(cells);
            }
        }
        if changed.is_empty() {
            continue;
        }
        let printed = table::render(&header(section, output, all_namespaces), &changed);
        text.push_str(if first { &printed } else { printed.split_once('\n').map_or("", |(_, rest)| rest) });
    }
    text
}

fn header(section: &Section, output: Output, all_namespaces: bool) -> Vec<&'static str> {
    let mut header = Vec::new();
    if all_namespaces {
        header.push("NAMESPACE");
    }
    header.extend(&section.header);
    if output == Output::Wide {
        header.extend(&section.wide);
    }
    header
}

fn cells(section: &Section, output: Output, all_namespaces: bool, prefixed: bool) -> Vec<Vec<String>> {
    let line = |row: &Row| {
        let mut cells = Vec::new();
        if all_namespaces {
            cells.push(row.namespace.clone());
        }
        cells.push(if prefixed { row.reference.clone() } else { row.name.clone() });
        cells.extend(row.cells.iter().cloned());
        if output == Output::Wide {
            cells.extend(row.wide.iter().cloned());
        }
        cells
    };
    section.rows.iter().map(line).collect()
}

fn columns(sort: Sort) -> (Vec<&'static str>, Vec<&'static str>) {
    match sort {
        Sort::Endpoints => (vec!["NAME", "ENDPOINTS", "AGE"], vec![]),
        Sort::Kind(kind) => match kind {
            Kind::Pod => (vec!["NAME", "READY", "STATUS", "RESTARTS", "AGE"], vec!["IP", "NODE"]),
            Kind::Deployment => (vec!["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"], vec!["CONTAINERS", "IMAGES", "SELECTOR"]),
            Kind::Service => (vec!["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"], vec!["SELECTOR"]),
            Kind::Namespace => (vec!["NAME", "STATUS", "AGE"], vec![]),
            Kind::ConfigMap => (vec!["NAME", "DATA", "AGE"], vec![]),
            Kind::Secret => (vec!["NAME", "TYPE", "DATA", "AGE"], vec![]),
            Kind::VirtualService => (vec!["NAME", "GATEWAYS", "HOSTS", "AGE"], vec![]),
            Kind::DestinationRule => (vec!["NAME", "HOST", "AGE"], vec![]),
            Kind::ServiceEntry => (vec!["NAME", "HOSTS", "LOCATION", "RESOLUTION", "AGE"], vec![]),
            Kind::PeerAuthentication => (vec!["NAME", "MODE", "AGE"], vec![]),
            _ => (vec!["NAME", "AGE"], vec![]),
        },
    }
}

fn section(state: &State, sort: Sort) -> Section {
    let (header, wide) = columns(sort);
    let rows = match sort {
        Sort::Endpoints => endpoints(state),
        Sort::Kind(Kind::Pod) => pods(state),
        Sort::Kind(kind) => state.resources.of_kind(kind).map(|r| resource_row(state, r)).collect(),
    };
    Section { header, wide, rows }
}

fn age(time: SystemTime) -> String {
    table::age(SystemTime::now().duration_since(time).unwrap_or_default())
}

fn pods(state: &State) -> Vec<Row> {
    let row = |(key, pod): (&(String, String), &Pod)| {
        let ready = pod.containers.iter().filter(|c| c.ready).count();
        let restarts: u32 = pod.all_containers().map(|c| c.restarts).sum();
        let resource = ResourceKey::new(Kind::Pod, key.0.clone(), key.1.clone());
        Row {
            namespace: key.0.clone(),
            name: key.1.clone(),
            reference: format!("pod/{}", key.1),
            cells: vec![format!("{ready}/{}", pod.containers.len()), status_of(pod), restarts.to_string(), age(pod.created)],
            wide: vec![pod.addresses.first().map(ToString::to_string).unwrap_or_default(), crate::pod::plan::NODE_NAME.into()],
            document: pod_document(&resource, pod),
        }
    };
    state.pods.iter().map(row).collect()
}

/// kubectl's STATUS: the worst that can be said.
pub(super) fn status_of(pod: &Pod) -> String {
    let trouble = |c: &Container| match (c.pid, c.last_end) {
        (None, Some(_)) if c.trouble.is_some() && !c.history.is_crash_loop() => Some("RunContainerError".to_owned()),
        (None, Some(_)) if c.history.is_crash_loop() => Some("CrashLoopBackOff".to_owned()),
        (None, Some(end)) if end.code() != 0 => Some("Error".to_owned()),
        _ => None,
    };
    if pod.terminating {
        return "Terminating".into();
    }
    if !pod.is_initialized() {
        let done = pod.init.iter().filter(|c| c.done).count();
        return match pod.init.iter().find_map(trouble) {
            Some(trouble) => format!("Init:{trouble}"),
            None => format!("Init:{done}/{}", pod.init.len()),
        };
    }
    if let Some(trouble) = pod.containers.iter().find_map(trouble) {
        return trouble;
    }
    match phase(pod) {
        "Succeeded" => "Completed".into(),
        phase => phase.into(),
    }
}

fn endpoints(state: &State) -> Vec<Row> {
    let Some(network) = &state.network else { return Vec::new() };
    let mut by_service: BTreeMap<(&String, &String), Vec<String>> = BTreeMap::new();
    for ((namespace, service, _), endpoints) in &network.endpoints {
        by_service.entry((namespace, service)).or_default().extend(endpoints.iter().map(ToString::to_string));
    }
    let row = |((namespace, name), all): ((&String, &String), Vec<String>)| {
        let shown = match all.len() {
            0 => "<none>".into(),
            1..=3 => all.join(","),
            n => format!("{} + {} more...", all[..3].join(","), n - 3),
        };
        let created = state.created.get(&ResourceKey::new(Kind::Service, namespace.as_str(), name.as_str()));
        let document =
            json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name, "namespace": namespace}, "endpoints": all});
        Row {
            namespace: namespace.clone(),
            name: name.clone(),
            reference: format!("endpoints/{name}"),
            cells: vec![shown, created.map(|t| age(*t)).unwrap_or_default()],
            wide: Vec::new(),
            document,
        }
    };
    by_service.into_iter().map(row).collect()
}

fn listed(items: &[String]) -> String {
    if items.is_empty() { String::new() } else { format!("[{}]", items.iter().map(|i| format!("\"{i}\"")).collect::<Vec<_>>().join(",")) }
}

fn pairs(labels: &lateen_core::Labels) -> String {
    if labels.is_empty() { "<none>".into() } else { labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",") }
}

fn resource_row(state: &State, resource: &AnyResource) -> Row {
    let key = resource.key();
    let document = document(state, resource);
    let created = state.created.get(&key).copied().unwrap_or_else(SystemTime::now);
    let text = |pointer: &str| document.pointer(pointer).and_then(Json::as_str).unwrap_or_default().to_owned();
    let texts = |pointer: &str| -> Vec<String> {
        let list = document.pointer(pointer).and_then(Json::as_array).into_iter().flatten();
        list.filter_map(Json::as_str).map(str::to_owned).collect()
    };
    let count = |pointer: &str| document.pointer(pointer).and_then(Json::as_object).map_or(0, serde_json::Map::len);
    let mut wide = Vec::new();
    let mut cells = match resource {
        AnyResource::Deployment(d) => {
            let ready = document.pointer("/status/readyReplicas").and_then(Json::as_u64).unwrap_or(0);
            let updated = document.pointer("/status/updatedReplicas").and_then(Json::as_u64).unwrap_or(0);
            let containers = &d.spec.template.spec.containers;
            wide.push(containers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(","));
            wide.push(containers.iter().filter_map(|c| c.image.as_deref()).collect::<Vec<_>>().join(","));
            wide.push(pairs(&d.spec.selector.match_labels));
            vec![format!("{ready}/{}", d.spec.replicas()), updated.to_string(), ready.to_string()]
        }
        AnyResource::Service(s) => {
            wide.push(pairs(&s.spec.selector));
            let kind = match text("/spec/type") {
                t if t.is_empty() => "ClusterIP".to_owned(),
                t => t,
            };
            let address = match text("/spec/clusterIP") {
                a if a.is_empty() && s.spec.is_headless() => "None".to_owned(),
                a if a.is_empty() => "<none>".to_owned(),
                a => a,
            };
            let external = state.published.iter().any(|(p, _)| p.namespace == key.namespace && p.service == key.name);
            let external = match &s.spec.external_name {
                Some(name) => name.clone(),
                None if external => "127.0.0.1".into(),
                None => "<none>".into(),
            };
            let ports: Vec<String> = s.spec.ports.iter().map(|p| format!("{}/{}", p.port, protocol(p.protocol))).collect();
            vec![kind, address, external, if ports.is_empty() { "<none>".into() } else { ports.join(",") }]
        }
        AnyResource::Namespace(_) => vec!["Active".into()],
        AnyResource::ConfigMap(_) => vec![(count("/data") + count("/binaryData")).to_string()],
        AnyResource::Secret(s) => {
            vec![s.spec.r#type.clone().unwrap_or_else(|| "Opaque".into()), (count("/data") + count("/stringData")).to_string()]
        }
        AnyResource::VirtualService(_) => vec![listed(&texts("/spec/gateways")), listed(&texts("/spec/hosts"))],
        AnyResource::DestinationRule(_) => vec![text("/spec/host")],
        AnyResource::ServiceEntry(_) => vec![listed(&texts("/spec/hosts")), text("/spec/location"), text("/spec/resolution")],
        AnyResource::PeerAuthentication(_) => vec![text("/spec/mtls/mode")],
        _ => Vec::new(),
    };
    cells.push(age(created));
    Row { namespace: key.namespace.clone(), name: key.name.clone(), reference: reference(&key), cells, wide, document }
}

fn protocol(protocol: lateen_model::kinds::service::TransportProtocol) -> &'static str {
    use lateen_model::kinds::service::TransportProtocol as P;
    match protocol {
        P::Tcp => "TCP",
        P::Udp => "UDP",
        P::Sctp => "SCTP",
    }
}

/// Every process of the mesh.
pub(super) fn processes(state: &State) -> String {
    let mut rows = Vec::new();
    for ((namespace, name), pod) in &state.pods {
        for container in pod.all_containers() {
            let usage = container.pid.and_then(|pid| usage(pid.as_raw()));
            rows.push(vec![
                namespace.clone(),
                name.clone(),
                container.plan.name.clone(),
                container.pid.map_or_else(|| "-".into(), |p| p.to_string()),
                pod.addresses.first().map(ToString::to_string).unwrap_or_default(),
                if container.ready { "yes" } else { "no" }.into(),
                container.restarts.to_string(),
                usage.map_or_else(|| "-".into(), |(rss, _)| format!("{:.1}M", rss as f64 / 1048576.0)),
                usage.map_or_else(|| "-".into(), |(_, cpu)| format!("{cpu:.2}s")),
            ]);
        }
    }
    table::render(&["NAMESPACE", "POD", "CONTAINER", "PID", "IP", "READY", "RESTARTS", "RSS", "CPU"], &rows)
}

/// Resident bytes, and seconds of processor time so far.
fn usage(pid: i32) -> Option<(u64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the closing bracket of the name: field 3 on.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()?? as u64;
    let tick = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()?? as f64;
    Some((number(21)? * page, (number(11)? + number(12)?) as f64 / tick))
}

/// The state in short, for programs.
pub(super) fn status(state: &State) -> Json {
    let ports: Vec<Json> = state
        .published
        .iter()
        .map(|(p, _)| json!({"hostPort": p.host_port, "namespace": p.namespace, "service": p.service, "port": p.port}))
        .collect();
    let pods = state.pods.values().filter(|p| !p.terminating);
    let containers = state.pods.values().flat_map(Pod::all_containers);
    json!({
        "name": state.config.name,
        "settled": state.is_settled(),
        "pods": pods.clone().count(),
        "readyPods": pods.filter(|p| p.is_ready()).count(),
        "sidecars": containers.filter(|c| c.plan.role == Role::Proxy).count(),
        "published": ports,
        "upSeconds": state.since.elapsed().as_secs_f64(),
    })
}
