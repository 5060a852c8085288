//! A host of a cluster, or of the cluster among several that are taken as one.
use std::rc::Rc;
use std::sync::Arc;

use lateen_balance::{Aggregate, Context, Host};
use lateen_snapshot::ClusterId;
use lateen_snapshot::cluster::Discovery;

use super::cluster::{ClusterState, Sought};
use crate::worker::{Live, Worker};

/// A host by the cluster's policy, and the cluster that it belongs to: limits, connections and statistics are that one's.
pub(crate) fn choose(
    worker: &Worker,
    live: &Live,
    cluster: Rc<ClusterState>,
    context: &Context<'_>,
    sought: &Sought<'_>,
) -> Option<(Rc<ClusterState>, Arc<Host>)> {
    if let Discovery::Aggregate(members) = &cluster.cluster.config.discovery {
        return of_member(worker, live, &cluster, members, context);
    }
    let host = cluster.choose(worker, context, sought)?;
    Some((cluster, host))
}

fn of_member(
    worker: &Worker,
    live: &Live,
    cluster: &ClusterState,
    members: &[ClusterId],
    context: &Context<'_>,
) -> Option<(Rc<ClusterState>, Arc<Host>)> {
    // What is not known at the moment has no hosts.
    let known = || members.iter().filter_map(|id| Some((*id, &live.snapshot.cluster(*id)?.hosts)));
    let mut kept = cluster.aggregate.borrow_mut();
    if !kept.as_ref().is_some_and(|a| a.is_of(known().map(|(_, hosts)| hosts))) {
        let threshold = cluster.cluster.config.balance.panic_threshold_percent;
        *kept = Some(Box::new(Aggregate::new(known().map(|(_, hosts)| Arc::clone(hosts)).collect(), threshold, worker.roll64())));
    }
    let (index, level) = kept.as_mut()?.choose(context.past)?;
    let (id, _) = known().nth(index)?;
    let member = live.cluster(worker, id)?;
    let host = member.choose(worker, &Context { past: 0, only: Some(level), ..*context }, &Sought::default())?;
    Some((member, host))
}
