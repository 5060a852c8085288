//! Our own data plane takes everything that is generated for it, and a call finds its way through the result.
mod common;

use std::collections::BTreeSet;
use std::time::Instant;

use lateen_snapshot::compile::{Compiler, Update};
use lateen_translate::{Names, ProxyView, World, generate, type_url};

use common::{all, books, client, gateway, stock};

const EVERYTHING: &str = include_str!("data/everything.yaml");

/// A data plane that was given everything; nothing may be refused.
fn compiled(world: &World, view: &ProxyView) -> Compiler {
    let mut compiler = Compiler::new();
    let now = Instant::now();
    for url in type_url::ALL {
        let updates: Vec<Update> = all(world, view, url)
            .into_iter()
            .map(|generated| Update { name: generated.name.clone(), version: "1".to_owned(), body: generated.message.encode() })
            .collect();
        let rejected = compiler.apply(url, updates, &[], now);
        assert!(rejected.is_empty(), "{url} of {}: {rejected:#?}", view.id);
    }
    compiler
}

#[test]
fn nothing_is_refused() {
    let world = books(EVERYTHING);
    let mut full = stock("ratings", "10.0.0.4", &[("app", "ratings")]);
    full.capabilities = client().capabilities;
    for view in [client(), stock("client", "10.0.0.1", &[("app", "client")]), full, gateway()] {
        compiled(&world, &view);
    }
}

#[test]
fn what_listeners_refer_to_is_generated_when_asked_for() {
    let world = books(EVERYTHING);
    for view in [client(), gateway()] {
        let wanted = compiled(&world, &view).wanted();
        let served = |url: &str, wanted: BTreeSet<String>| {
            let names: Vec<String> = wanted.into_iter().collect();
            let found: BTreeSet<String> =
                generate(&world, &view, url, Names::Only(&names)).into_iter().map(|generated| generated.name).collect();
            assert_eq!(found, names.into_iter().collect(), "{url}");
        };
        served(type_url::ROUTES, wanted.routes.iter().map(ToString::to_string).collect());
        served(type_url::ENDPOINTS, wanted.endpoints.iter().map(ToString::to_string).collect());
    }
}

#[test]
fn all_routes_are_those_that_listeners_refer_to() {
    let world = books(EVERYTHING);
    for view in [client(), gateway()] {
        let mut compiler = Compiler::new();
        let listeners = all(&world, &view, type_url::LISTENER).into_iter();
        let updates = listeners.map(|g| Update { name: g.name.clone(), version: "1".to_owned(), body: g.message.encode() }).collect();
        compiler.apply(type_url::LISTENER, updates, &[], Instant::now());
        let referred: BTreeSet<String> = compiler.wanted().routes.iter().map(ToString::to_string).collect();
        let generated: BTreeSet<String> = all(&world, &view, type_url::ROUTES).into_iter().map(|generated| generated.name).collect();
        assert_eq!(generated, referred);
    }
}

#[test]
fn nothing_refers_to_a_cluster_that_is_not_there() {
    use std::time::Duration;
    let world = books(EVERYTHING);
    for view in [client(), stock("ratings", "10.0.0.4", &[("app", "ratings")]), gateway()] {
        let mut compiler = compiled(&world, &view);
        // DNS never comes here; after its patience the data plane goes on without. Certificates are waited for without end.
        for _ in 0..2 {
            compiler.settle(Instant::now() + Duration::from_secs(60));
        }
        let generated: BTreeSet<String> = all(&world, &view, type_url::CLUSTER).into_iter().map(|generated| generated.name).collect();
        let snapshot = compiler.snapshot();
        let missing = snapshot.cluster_ids.keys().map(|name| name.as_ref()).filter(|name: &&str| !generated.contains(*name));
        let missing: Vec<&str> = missing.collect();
        assert!(missing.iter().all(|name| *name == "sds-grpc"), "{}: {missing:?}", view.id);
    }
}
