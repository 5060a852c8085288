//! Our own data plane takes everything that is generated for it, and a call finds its way through the result.
mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lateen_identity::file_secret::FileSecret;
use lateen_identity::{CertificateAuthority, WorkloadSecrets};
use lateen_snapshot::compile::{Compiler, SecretSource, Update};
use lateen_translate::{Names, ProxyView, World, generate, type_url};

use common::{all, books, client, gateway, stock};

const EVERYTHING: &str = include_str!("data/everything.yaml");
/// Rules that name certificates in files below `/FILES`.
const FILES: &str = include_str!("data/files.yaml");

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

/// Whatever is asked of the agent is had of it, as by the proxy itself: the workload's identity, and what is in files.
fn serve_secrets(compiler: &mut Compiler, identity: &WorkloadSecrets, now: Instant) {
    let wanted = compiler.wanted();
    let agent = wanted.secrets.iter().find(|key| matches!(&key.source, SecretSource::Api(source) if source.cluster == "sds-grpc"));
    let Some(agent) = agent.map(|key| key.source.clone()) else { return };
    compiler.set_identity(&agent, identity, now).unwrap();
    let names: Vec<Arc<str>> = wanted.secrets.iter().filter(|key| key.source == agent).map(|key| key.name.clone()).collect();
    assert_eq!(compiler.read_files(&agent, &names, now), []);
}

#[test]
fn everything_settles() {
    if FileSecret::SystemRoots.read().content.is_err() {
        return eprintln!("skipped: this machine has no roots to trust, which some of the rules need");
    }
    let authority = CertificateAuthority::in_memory("cluster.local", SystemTime::now()).unwrap();
    let id = "spiffe://cluster.local/ns/books/sa/client".parse().unwrap();
    let identity = authority.issue_workload(&id, Duration::from_secs(60), SystemTime::now()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (chain, key, roots) = (identity.chain_pem(), identity.key().to_pem(), identity.roots_pem());
    let content = [("cert.pem", &chain), ("server.pem", &chain), ("key.pem", &key), ("server-key.pem", &key)];
    for (name, text) in content.into_iter().chain([("ca.pem", &roots), ("clients.pem", &roots)]) {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let files = FILES.replace("/FILES", &folder.path().display().to_string());
    let world = books(&format!("{EVERYTHING}\n---\n{files}"));
    for (view, in_files) in [(client(), 3), (stock("ratings", "10.0.0.4", &[("app", "ratings")]), 3), (gateway(), 5)] {
        let mut compiler = compiled(&world, &view);
        let now = Instant::now();
        serve_secrets(&mut compiler, &identity, now);
        // Names that DNS has no answer for and secrets that the control plane does not have are waited for so long.
        compiler.settle(now + Duration::from_secs(60));
        assert_eq!(compiler.waiting(), Vec::<String>::new(), "{}", view.id);
        let served = compiler.secrets().filter(|(key, _)| key.name.starts_with("file-")).count();
        assert_eq!(served, in_files, "{}", view.id);
    }
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
