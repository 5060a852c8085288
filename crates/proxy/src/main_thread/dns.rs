//! Name resolution of DNS clusters: looked up again and again, the last good answer kept.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
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

/// Keeps one lookup loop for each name, as clusters come and go.
pub(super) async fn run(main: Arc<Main>) {
    let mut wanted = main.wanted();
    let mut snapshots = main.snapshots();
    let mut running: HashMap<Question, AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let questions = questions(&main);
        running.retain(|question, task| {
            let keep = questions.contains(question);
            if !keep {
                task.abort();
            }
            keep
        });
        while tasks.try_join_next().is_some() {}
        for question in questions {
            let start = |question: &Question| tasks.spawn(ask(main.clone(), question.clone()));
            running.entry(question).or_insert_with_key(start);
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = snapshots.changed() => if changed.is_err() { return },
            _ = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

fn questions(main: &Main) -> Vec<Question> {
    let mut questions = Vec::new();
    main.compiler().each_cluster(|config| {
        let (Discovery::StrictDns(dns) | Discovery::LogicalDns(dns)) = &config.discovery else { return };
        questions.extend(dns.targets.iter().filter(|t| t.name.parse::<IpAddr>().is_err()).map(|target| Question {
            cluster: config.name.clone(),
            name: target.name.clone(),
            port: target.port,
            settings: dns.settings.clone(),
        }));
    });
    questions
}

async fn ask(main: Arc<Main>, question: Question) {
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
        tokio::time::sleep(pause).await;
    }
}
