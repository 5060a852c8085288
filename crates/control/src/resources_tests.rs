//! Sharing of generated resources.
use super::*;
use lateen_model::{Limits, ResourceSet, parse};
use lateen_proto::envoy::config::core::v3::Node;
use lateen_translate::world::{Live, World};
use lateen_xds::types::{CLUSTER, LISTENER};

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: d}
spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{port: 80, name: http, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a1, namespace: d, labels: {app: a}}
spec: {containers: [{name: app, image: app}]}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}
";

fn snapshot() -> Snapshot {
    let resources: ResourceSet = parse("mesh.yaml", MESH.as_bytes(), &Limits::default()).resources.into_iter().collect();
    let world = World::build(&resources, &Live::default());
    Snapshot::new(1, resources, world, Vec::new())
}

fn view(pod: &str, ip: &str) -> ProxyView {
    ProxyView::from_node(&Node { id: format!("sidecar~{ip}~{pod}.d~d.svc.cluster.local"), ..Default::default() }).unwrap()
}

fn wildcard() -> Names {
    Names { wildcard: true, ..Names::default() }
}

#[test]
fn replicas_share_bytes_but_not_their_inbound_side() {
    let snapshot = snapshot();
    let (one, two) = (view("a1", "10.0.0.1"), view("b1", "10.0.0.9"));
    let name = Names::only(["outbound|80||a.d.svc.cluster.local".to_owned()]);
    let (first, second) = (generate(&snapshot, &one, ENDPOINT, &name), generate(&snapshot, &two, ENDPOINT, &name));
    assert_eq!(first.len(), 1);
    assert!(Arc::ptr_eq(&first[0], &second[0]));

    let (first, second) = (generate(&snapshot, &one, CLUSTER, &wildcard()), generate(&snapshot, &two, CLUSTER, &wildcard()));
    let outbound = |list: &[Arc<Resource>]| list.iter().find(|r| r.name.starts_with("outbound|80")).unwrap().clone();
    assert!(Arc::ptr_eq(&outbound(&first), &outbound(&second)), "equal bytes are kept once");
    let inbound = |list: &[Arc<Resource>]| list.iter().any(|r| r.name.starts_with("inbound|8080"));
    assert!(inbound(&first) && !inbound(&second));
}

#[test]
fn anonymous_generation_is_the_same_as_the_replicas_own() {
    let snapshot = snapshot();
    let one = view("a1", "10.0.0.1");
    for (type_url, name) in [(ENDPOINT, "outbound|80||a.d.svc.cluster.local"), (ROUTE, "80")] {
        let shared = generate(&snapshot, &one, type_url, &Names::only([name.to_owned()]));
        let own = made(&snapshot, &one, type_url, Wanted::Only(&[name.to_owned()]));
        assert_eq!((shared.len(), own.len()), (1, 1), "{type_url}");
        assert_eq!(shared[0], own[0].1.resource);
    }
}

#[test]
fn equal_worlds_give_equal_versions() {
    let (first, second) = (snapshot(), snapshot());
    for type_url in [CLUSTER, LISTENER] {
        let versions = |s: &Snapshot| {
            generate(s, &view("a1", "10.0.0.1"), type_url, &wildcard())
                .iter()
                .map(|r| (r.name.clone(), r.version.clone()))
                .collect::<Vec<_>>()
        };
        assert!(!versions(&first).is_empty());
        assert_eq!(versions(&first), versions(&second));
    }
}

#[test]
fn a_name_that_stands_for_nothing_gives_nothing_each_time() {
    let snapshot = snapshot();
    for _ in 0..2 {
        assert!(generate(&snapshot, &view("a1", "10.0.0.1"), ENDPOINT, &Names::only(["no cluster".to_owned()])).is_empty());
    }
}
