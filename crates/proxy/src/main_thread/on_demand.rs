//! What is discovered because a request wants it: clusters (Envoy ODCDS), virtual hosts (VHDS), routes of scopes.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lateen_snapshot::compile::Wish;
use tokio::sync::{mpsc, oneshot};

use super::Main;
use crate::worker::Asked;

/// Requests that wait at once, over all workers.
const MOST_WAITING: usize = 10_000;
/// How often requests that gave up are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

type Waiting = HashMap<Wish, Vec<oneshot::Sender<u64>>>;

/// Answers the workers' wishes.
pub(super) async fn run(main: Arc<Main>, mut wishes: mpsc::Receiver<Asked>) {
    let (mut snapshots, mut wanted) = (main.snapshots(), main.wanted());
    let mut sweep = tokio::time::interval(SWEEP);
    let mut waiting = Waiting::new();
    loop {
        tokio::select! {
            wish = wishes.recv() => match wish {
                Some(wish) => take(&main, &mut waiting, wish),
                None => return,
            },
            changed = snapshots.changed() => if changed.is_err() { return },
            changed = wanted.changed() => if changed.is_err() { return },
            _ = sweep.tick() => forget(&main, &mut waiting),
        }
        answer(&main, &mut waiting);
    }
}

fn take(main: &Main, waiting: &mut Waiting, Asked { wish, answer }: Asked) {
    if waiting.values().map(Vec::len).sum::<usize>() >= MOST_WAITING {
        return;
    }
    if !wish.is_met(&main.snapshot()) && !main.change(|compiler, _| compiler.want(&wish)) {
        return;
    }
    waiting.entry(wish).or_default().push(answer);
}

/// What is there, or what the server says does not exist, is waited for no longer.
fn answer(main: &Main, waiting: &mut Waiting) {
    if waiting.is_empty() {
        return;
    }
    let (snapshot, wanted) = (main.snapshot(), main.wanted());
    let wanted = wanted.borrow();
    waiting.retain(|wish, answers| {
        let there = wish.is_met(&snapshot);
        if there {
            answers.drain(..).for_each(|answer| {
                // Who waited may have given up.
                let _ = answer.send(snapshot.version);
            });
        }
        !there && wish.is_wanted(&wanted)
    });
}

/// What nobody waits for any more, and never came, is not asked for any more.
fn forget(main: &Main, waiting: &mut Waiting) {
    waiting.retain(|wish, answers| {
        answers.retain(|answer| !answer.is_closed());
        if answers.is_empty() {
            main.change(|compiler, _| compiler.unwant(wish));
        }
        !answers.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use lateen_snapshot::compile::{SecretSource, Update};
    use lateen_xds::types;

    use super::*;
    use crate::main_thread::test_support;
    use crate::worker::Wishes;

    const YAML: &str = "{node: {id: n, cluster: c}, static_resources: {clusters: [{name: late, type: STATIC, \
                        load_assignment: {cluster_name: late}}]}}";

    fn main() -> Arc<Main> {
        test_support::main("{node: {id: n, cluster: c}}")
    }

    fn cluster(name: &str) -> Wish {
        Wish::Cluster(name.into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_wish_is_subscribed_to_until_it_is_answered_or_nobody_waits() {
        let main = main();
        let (wishes, asked) = Wishes::channel();
        let task = tokio::spawn(run(Arc::clone(&main), asked));
        let mut wanted = main.wanted();
        let first = wishes.ask(cluster("late")).unwrap();
        let second = wishes.ask(cluster("late")).unwrap();
        let denied = wishes.ask(cluster("none")).unwrap();
        wanted.wait_for(|w| w.clusters.iter().count() == 2).await.unwrap();
        let body = lateen_snapshot::bootstrap::parse(YAML, "test.yaml").unwrap().resources.remove(0);
        let update = Update { name: "late".to_owned(), version: "1".to_owned(), body };
        main.apply(&SecretSource::Ads, types::CLUSTER, vec![update], &["none".to_owned()]);
        let version = main.snapshot().version;
        assert_eq!((first.await, second.await), (Ok(version), Ok(version)));
        assert!(denied.await.is_err(), "the server says that there is none");
        assert_eq!(wishes.ask(cluster("late")).unwrap().await, Ok(version), "it is there already");
        // A cluster that is there stays subscribed to; one that never came does not when nobody waits.
        drop(wishes.ask(cluster("later")).unwrap());
        wanted.wait_for(|w| w.clusters.iter().map(|c| &**c).eq(["late", "later"])).await.unwrap();
        wanted.wait_for(|w| w.clusters.iter().map(|c| &**c).eq(["late"])).await.unwrap();
        task.abort();
    }
}
