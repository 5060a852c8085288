//! Whether the sources of clusters and listeners have answered for the first time, or are waited for no longer.
use lateen_snapshot::bootstrap::Bootstrap;
use lateen_snapshot::compile::FetchTimeout;
use lateen_xds::types;
use tokio::sync::watch;

#[derive(Debug)]
pub(super) struct FirstAnswers(watch::Sender<Missing>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) clusters: bool,
    pub(super) listeners: bool,
}

impl FirstAnswers {
    pub(super) fn new(bootstrap: &Bootstrap) -> Self {
        Self(watch::Sender::new(Missing { clusters: bootstrap.clusters.is_some(), listeners: bootstrap.listeners.is_some() }))
    }

    pub(super) fn missing(&self) -> Missing {
        *self.0.borrow()
    }

    pub(super) fn are_there(&self) -> bool {
        self.missing() == Missing { clusters: false, listeners: false }
    }

    /// An answer of this type has come.
    pub(super) fn note(&self, type_url: &str) {
        match type_url {
            types::CLUSTER => drop(self.end(|missing| &mut missing.clusters)),
            types::LISTENER => drop(self.end(|missing| &mut missing.listeners)),
            _ => {}
        }
    }

    /// Whether that was missing.
    fn end(&self, which: fn(&mut Missing) -> &mut bool) -> bool {
        self.0.send_if_modified(|missing| std::mem::take(which(missing)))
    }

    /// Waits for clusters and then for listeners, as they are asked for, and ends to miss what does not come in time.
    pub(super) async fn wait(&self, clusters: FetchTimeout, listeners: FetchTimeout) {
        self.wait_for("clusters", clusters, |missing| &mut missing.clusters).await;
        self.wait_for("listeners", listeners, |missing| &mut missing.listeners).await;
    }

    async fn wait_for(&self, what: &str, within: FetchTimeout, which: fn(&mut Missing) -> &mut bool) {
        let mut seen = self.0.subscribe();
        let answer = async { drop(seen.wait_for(|missing| !*which(&mut missing.clone())).await) };
        let FetchTimeout::After(limit) = within else { return answer.await };
        if tokio::time::timeout(limit, answer).await.is_err() && self.end(which) {
            tracing::warn!("discovery has sent no {what} within {limit:?}: going on without");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lateen_snapshot::bootstrap::parse;
    use tokio::time::{Instant, timeout};

    use super::*;

    fn answers() -> FirstAnswers {
        let ads = "ads_config: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: x}}]}";
        FirstAnswers::new(
            &parse(&format!("dynamic_resources: {{{ads}, cds_config: {{ads: {{}}}}, lds_config: {{ads: {{}}}}}}"), "b").unwrap(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn listeners_are_waited_for_once_clusters_are_there_or_late() {
        let (answers, begin) = (answers(), Instant::now());
        let after = |seconds| FetchTimeout::After(Duration::from_secs(seconds));
        answers.wait(after(10), after(5)).await;
        assert_eq!((begin.elapsed(), answers.are_there()), (Duration::from_secs(15), true));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_the_wait_and_without_a_limit_there_is_no_other_end() {
        let (answers, begin) = (answers(), Instant::now());
        let waits = answers.wait(FetchTimeout::Never, FetchTimeout::After(Duration::from_secs(5)));
        let comes = async {
            tokio::time::sleep(Duration::from_secs(100_000)).await;
            assert_eq!(answers.missing(), Missing { clusters: true, listeners: true });
            answers.note(types::CLUSTER);
            tokio::time::sleep(Duration::from_secs(1)).await;
            answers.note(types::LISTENER);
        };
        timeout(Duration::from_secs(200_000), async { tokio::join!(waits, comes) }).await.unwrap();
        assert_eq!((begin.elapsed(), answers.are_there()), (Duration::from_secs(100_001), true));
    }
}
