//! Name resolution of DNS clusters: looked up again and again, the last good answer kept.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lateen_snapshot::cluster::{Discovery, DnsFamily};
use tokio::net::lookup_host;
use tokio::task::{AbortHandle, JoinSet};

use super::Main;

/// A lookup that takes longer counts as failed.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure the next attempt comes sooner, but not in a rush.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// A name that a cluster wants resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    cluster: Arc<str>,
    name: Arc<str>,
    port: u16,
    refresh: Duration,
    family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Family {
    Any,
    V4,
    V6,
    V4First,
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
        for question in questions {
            running.entry(question).or_insert_with_key(|question| tasks.spawn(ask(main.clone(), question.clone())));
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
        for target in dns.targets.iter().filter(|t| t.name.parse::<IpAddr>().is_err()) {
            let family = match dns.family {
                DnsFamily::Auto | DnsFamily::All => Family::Any,
                DnsFamily::V4Only => Family::V4,
                DnsFamily::V6Only => Family::V6,
                DnsFamily::V4Preferred => Family::V4First,
            };
            questions.push(Question {
                cluster: config.name.clone(),
                name: target.name.clone(),
                port: target.port,
                refresh: dns.refresh,
                family,
            });
        }
    });
    questions
}

async fn ask(main: Arc<Main>, question: Question) {
    let Question { cluster, name, port, refresh, family } = question;
    loop {
        let pause = match lookup(&name, port, family).await {
            Ok(addresses) => {
                main.change(|compiler, now| compiler.set_resolved(&cluster, &name, port, addresses, now));
                refresh
            }
            Err(reason) => {
                tracing::debug!(%cluster, %name, "cannot be resolved, the last addresses stay in use: {reason}");
                refresh.min(AFTER_FAILURE)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn lookup(name: &str, port: u16, family: Family) -> Result<Vec<IpAddr>, String> {
    let answer = tokio::time::timeout(LOOKUP_TIMEOUT, lookup_host((name, port))).await;
    let answer = answer.map_err(|_| format!("no answer within {LOOKUP_TIMEOUT:?}"))?.map_err(|e| e.to_string())?;
    let mut addresses: Vec<IpAddr> = answer.map(|a| a.ip()).collect();
    match family {
        Family::Any => {}
        Family::V4 => addresses.retain(IpAddr::is_ipv4),
        Family::V6 => addresses.retain(IpAddr::is_ipv6),
        Family::V4First if addresses.iter().any(IpAddr::is_ipv4) => addresses.retain(IpAddr::is_ipv4),
        Family::V4First => {}
    }
    // In a fixed order, so that an answer that is merely shuffled changes nothing.
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}
