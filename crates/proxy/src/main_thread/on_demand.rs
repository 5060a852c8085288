//! What is discovered because a request wants it: clusters (Envoy ODCDS), virtual hosts (VHDS), routes of scopes.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lateen_snapshot::Snapshot;
use lateen_snapshot::compile::{Wanted, Wish};
use tokio::sync::{mpsc, oneshot};

use super::Main;
use crate::worker::Asked;

/// Requests that wait at once, over all workers.
const MOST_WAITING: usize = 10_000;
/// How often requests that gave up are forgotten.
const SWEEP: Duration = Duration::from_secs(1);
/// Wishes that are looked at in one turn: what they change is published once.
const AT_ONCE: usize = 256;

/// Answers the workers' wishes.
pub(super) async fn run(main: Arc<Main>, mut wishes: mpsc::Receiver<Asked>) {
    let (mut snapshots, mut wanted) = (main.snapshots(), main.wanted());
    let mut sweep = tokio::time::interval(SWEEP);
    let (mut waiting, mut asked) = (Waiting::new(&main), Vec::new());
    loop {
        tokio::select! {
            count = wishes.recv_many(&mut asked, AT_ONCE) => {
                if count == 0 {
                    return;
                }
                waiting.take(&main, asked.drain(..));
            }
            changed = snapshots.changed() => match changed {
                Ok(()) => waiting.answer(&main.snapshot(), &wanted.borrow_and_update().clone()),
                Err(_) => return,
            },
            changed = wanted.changed() => match changed {
                Ok(()) => waiting.follow(&main.snapshot(), &wanted.borrow_and_update().clone()),
                Err(_) => return,
            },
            _ = sweep.tick() => waiting.forget(&main),
        }
    }
}

/// Who waits, by what for. What one more costs does not depend on how many there are: their names come from callers.
struct Waiting {
    answers: HashMap<Wish, Vec<oneshot::Sender<u64>>>,
    /// How many wait.
    count: usize,
    /// What was wanted when all were looked through, or has come of their wishes since.
    wanted: Arc<Wanted>,
}

impl Waiting {
    fn new(main: &Main) -> Self {
        Self { answers: HashMap::new(), count: 0, wanted: main.wanted().borrow().clone() }
    }

    fn take(&mut self, main: &Main, asked: impl Iterator<Item = Asked>) {
        let snapshot = main.snapshot();
        let mut new = Vec::new();
        for Asked { wish, answer } in asked {
            if wish.is_met(&snapshot) {
                // Who waited may have given up.
                let _ = answer.send(snapshot.version);
            } else if self.count + new.len() < MOST_WAITING {
                new.push((wish, answer));
            }
        }
        if new.is_empty() {
            return;
        }
        let (before, after) = main.change(|compiler, _| {
            let before = compiler.wanted();
            new.retain(|(wish, _)| compiler.want(wish));
            (before, compiler.wanted())
        });
        if Arc::ptr_eq(&before, &self.wanted) {
            self.wanted = Arc::clone(&after);
        }
        for (wish, answer) in new.into_iter().filter(|(wish, _)| wish.is_wanted(&after)) {
            self.answers.entry(wish).or_default().push(answer);
            self.count += 1;
        }
    }

    /// [`Self::answer`], unless nothing is wanted but what was, and what was wished for.
    fn follow(&mut self, snapshot: &Snapshot, wanted: &Arc<Wanted>) {
        if !Arc::ptr_eq(&self.wanted, wanted) {
            self.answer(snapshot, wanted);
        }
    }

    /// What is there, or what the server says does not exist, is waited for no longer.
    fn answer(&mut self, snapshot: &Snapshot, wanted: &Arc<Wanted>) {
        self.wanted = Arc::clone(wanted);
        let Self { answers, count, .. } = self;
        answers.retain(|wish, answers| {
            let there = wish.is_met(snapshot);
            let stays = !there && wish.is_wanted(wanted);
            if !stays {
                *count -= answers.len();
            }
            if there {
                answers.drain(..).for_each(|answer| {
                    let _ = answer.send(snapshot.version);
                });
            }
            stays
        });
    }

    /// What nobody waits for any more, and never came, is not asked for any more.
    fn forget(&mut self, main: &Main) {
        let Self { answers, count, .. } = self;
        let mut given_up = Vec::new();
        answers.retain(|wish, answers| {
            *count -= answers.len();
            answers.retain(|answer| !answer.is_closed());
            *count += answers.len();
            if answers.is_empty() {
                given_up.push(wish.clone());
            }
            !answers.is_empty()
        });
        if !given_up.is_empty() {
            main.change(|compiler, _| compiler.unwant(&given_up));
        }
    }
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

    #[tokio::test]
    async fn who_waits_is_counted_until_it_is_over() {
        let main = main();
        let mut waiting = Waiting::new(&main);
        let ask = |name: &str| {
            let (answer, receiver) = oneshot::channel();
            (Asked { wish: cluster(name), answer }, receiver)
        };
        let (asked, mut receivers): (Vec<_>, Vec<_>) = ["late", "late", "none", "given up"].map(ask).into_iter().unzip();
        waiting.take(&main, asked.into_iter());
        assert_eq!((waiting.count, waiting.answers.len()), (4, 3));
        assert!(Arc::ptr_eq(&waiting.wanted, &main.wanted().borrow()), "there is nothing to look through");
        drop(receivers.pop());
        waiting.forget(&main);
        assert_eq!(waiting.count, 3);
        assert!(main.wanted().borrow().clusters.iter().map(|name| &**name).eq(["late", "none"]));
        let body = lateen_snapshot::bootstrap::parse(YAML, "test.yaml").unwrap().resources.remove(0);
        let update = Update { name: "late".to_owned(), version: "1".to_owned(), body };
        main.apply(&SecretSource::Ads, types::CLUSTER, vec![update], &["none".to_owned()]);
        waiting.follow(&main.snapshot(), &main.wanted().borrow());
        assert_eq!((waiting.count, waiting.answers.len()), (0, 0));
        assert_eq!(receivers.iter_mut().map(|r| r.try_recv().is_ok()).collect::<Vec<_>>(), [true, true, false]);
        let (asked, mut receiver) = ask("late");
        waiting.take(&main, std::iter::once(asked));
        assert_eq!((receiver.try_recv().is_ok(), waiting.count), (true, 0));
    }
}
