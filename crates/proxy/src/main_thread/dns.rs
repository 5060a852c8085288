//! Name resolution of DNS clusters: looked up again and again, the last good answer kept.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use lateen_snapshot::cluster::Discovery;
use lateen_snapshot::dns::DnsSettings;
use tokio::task::{AbortHandle, JoinSet};

use super::Main;

/// A name that a cluster wants resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    cluster: Arc<str>,
    name: Arc<str>,
    port: u16,
    settings: Arc<DnsSettings>,
}

/// A loop that looks a name up.
struct Running {
    task: AbortHandle,
    /// It has told at least one answer.
    has_told: Arc<AtomicBool>,
}

/// Keeps one lookup loop for each name, as clusters come and go.
pub(super) async fn run(main: Arc<Main>) {
    let mut wanted = main.wanted();
    let mut snapshots = main.snapshots();
    let mut running: HashMap<Question, Running> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let questions = questions(&main);
        running.retain(|question, loop_| {
            // A cluster that went and came back unseen has forgotten what it was told.
            let keep = questions.get(question).is_some_and(|answered| *answered || !loop_.has_told.load(Relaxed));
            if !keep {
                loop_.task.abort();
            }
            keep
        });
        while tasks.try_join_next().is_some() {}
        for question in questions.into_keys() {
            let start = |question: &Question| {
                let has_told = Arc::new(AtomicBool::new(false));
                let (main, question, telling) = (main.clone(), question.clone(), has_told.clone());
                let supervisor = main.supervisor.clone();
                let looks_up = move || ask(main.clone(), question.clone(), telling.clone());
                Running { task: tasks.spawn(supervisor.run("resolution of a name", looks_up)), has_told }
            };
            running.entry(question).or_insert_with_key(start);
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = snapshots.changed() => if changed.is_err() { return },
            _ = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// What clusters want to know, and whether they know it.
fn questions(main: &Main) -> HashMap<Question, bool> {
    let mut questions = HashMap::new();
    let compiler = main.compiler();
    compiler.each_cluster(|config| {
        let (Discovery::StrictDns(dns) | Discovery::LogicalDns(dns)) = &config.discovery else { return };
        for target in dns.targets.iter().filter(|t| t.name.parse::<IpAddr>().is_err()) {
            let answered = compiler.has_answer(&config.name, &target.name, target.port);
            let question =
                Question { cluster: config.name.clone(), name: target.name.clone(), port: target.port, settings: dns.settings.clone() };
            questions.insert(question, answered);
        }
    });
    questions
}

async fn ask(main: Arc<Main>, question: Question, has_told: Arc<AtomicBool>) {
    let Question { cluster, name, port, settings } = question;
    let mut failures: u32 = 0;
    loop {
        let pause = match main.resolver.lookup(&name, settings.family, settings.resolver.as_ref()).await {
            Ok(answer) => {
                failures = 0;
                let ttl = answer.ttl.filter(|_| !answer.addresses.is_empty());
                main.change(|compiler, now| compiler.set_resolved(&cluster, &name, port, answer.addresses, now));
                settings.after_answer(ttl, rand::random())
            }
            Err(reason) => {
                failures = failures.saturating_add(1);
                tracing::debug!(%cluster, %name, "cannot be resolved, the last addresses stay in use: {reason}");
                main.change(|compiler, now| compiler.set_unresolved(&cluster, &name, port, now));
                settings.after_failure(failures, rand::random())
            }
        };
        has_told.store(true, Relaxed);
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use lateen_snapshot::Snapshot;
    use lateen_snapshot::compile::{SecretSource, Update};
    use lateen_telemetry::BlockName;
    use lateen_telemetry::envoy_names::server;
    use lateen_xds::types;

    use super::*;
    use crate::main_thread::test_support;

    const CLUSTER: &str = "{node: {id: n, cluster: c}, static_resources: {clusters: [{name: d, type: STRICT_DNS, dns_refresh_rate: 3600s, \
                           load_assignment: {cluster_name: d, endpoints: [{lb_endpoints: [{endpoint: {address: \
                           {socket_address: {address: localhost, port_value: 7}}}}]}]}}]}}";

    fn add(main: &Main) {
        let body = lateen_snapshot::bootstrap::parse(CLUSTER, "test.yaml").unwrap().resources.remove(0);
        let update = Update { name: "d".to_owned(), version: "1".to_owned(), body };
        assert_eq!(main.apply(&SecretSource::Ads, types::CLUSTER, vec![update], &[]), []);
    }

    fn has_hosts(snapshot: &Snapshot) -> bool {
        snapshot.cluster_named("d").is_some_and(|(_, c)| !c.hosts.is_empty())
    }

    async fn resolved(main: &Main) {
        let mut snapshots = main.snapshots();
        let wait = snapshots.wait_for(|snapshot| has_hosts(snapshot));
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_cluster_that_comes_back_before_it_was_missed_has_its_names_looked_up() {
        let main = test_support::main("{node: {id: n, cluster: c}}");
        let task = tokio::spawn(run(main.clone()));
        add(&main);
        resolved(&main).await;
        assert_eq!(main.apply(&SecretSource::Ads, types::CLUSTER, Vec::new(), &["d".to_owned()]), []);
        add(&main);
        resolved(&main).await;
        task.abort();
    }

    #[tokio::test]
    async fn a_lookup_that_panics_is_made_again() {
        let main = test_support::main_with("{node: {id: n, cluster: c}}", test_support::PanicsOnce::when(has_hosts));
        let task = tokio::spawn(run(main.clone()));
        add(&main);
        resolved(&main).await;
        assert_eq!(main.registry.block(server::DEFS, BlockName::plain("server")).counter(server::PANICS), 1);
        task.abort();
    }
}
