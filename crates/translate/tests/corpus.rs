//! Real configuration: every rule of the corpus is translated, for a sidecar and a gateway, without a panic.
mod common;

use std::path::{Path, PathBuf};

use lateen_model::{Limits, ResourceSet, parse};
use lateen_translate::{Live, World, type_url};

use common::{all, client, gateway};

fn corpus() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("skipped: no corpus at {}", path.display());
    None
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            found.push(path);
        }
    }
}

#[test]
fn every_file_translates() {
    let Some(corpus) = corpus() else { return };
    let mut found = Vec::new();
    files(&corpus, &mut found);
    assert!(found.len() > 50, "the corpus has {} files", found.len());
    let mut rules = 0;
    for file in found {
        let bytes = std::fs::read(&file).unwrap();
        let set: ResourceSet = parse(&file.display().to_string(), &bytes, &Limits::default()).resources.into_iter().collect();
        rules += set.virtual_services().count() + set.destination_rules().count();
        let world = World::build(&set, &Live::default());
        let mut view = client();
        for namespace in ["default", "tutorial", "books"] {
            view.namespace = namespace.to_owned();
            view.dns_domain = format!("{namespace}.svc.cluster.local");
            for url in type_url::ALL {
                for generated in all(&world, &view, url).into_iter().chain(all(&world, &gateway(), url)) {
                    assert!(!generated.message.encode().value.is_empty(), "{} of {}", generated.name, file.display());
                }
            }
        }
    }
    assert!(rules > 60, "the corpus has {rules} rules");
}

/// The tutorial's own services together with each of its rules: the rule must show in what the caller gets.
#[test]
fn the_tutorials_splits_take_effect() {
    let Some(corpus) = corpus() else { return };
    let tutorial = corpus.join("istio-tutorial");
    let read = |name: &str| std::fs::read(tutorial.join(name)).unwrap();
    let mut set = ResourceSet::new();
    for name in [
        "workloads/recommendation-Service.yml",
        "destination-rule-recommendation-v1-v2.yml",
        "virtual-service-recommendation-v1_and_v2_75_25.yml",
    ] {
        for resource in lateen_model::parse_in(name, &read(name), "tutorial", &Limits::default()).resources {
            set.insert(resource);
        }
    }
    let world = World::build(&set, &Live::default());
    let mut view = client();
    view.namespace = "tutorial".to_owned();
    view.dns_domain = "tutorial.svc.cluster.local".to_owned();
    let config = common::routes(&world, &view, "8080");
    let vhost = common::virtual_host(&config, "recommendation.tutorial.svc.cluster.local:8080");
    use lateen_proto::envoy::config::route::v3::route_action::ClusterSpecifier;
    let Some(ClusterSpecifier::WeightedClusters(split)) = common::forward(&vhost.routes[0]).cluster_specifier else { panic!("{vhost:?}") };
    let shares: Vec<(String, Option<u32>)> = split.clusters.into_iter().map(|cluster| (cluster.name, cluster.weight)).collect();
    let name = |subset: &str| format!("outbound|8080|{subset}|recommendation.tutorial.svc.cluster.local");
    assert_eq!(shares, [(name("version-v1"), Some(75)), (name("version-v2"), Some(25))]);
}
