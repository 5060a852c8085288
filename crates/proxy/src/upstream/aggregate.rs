//! A host of a cluster, or of the cluster among several that are taken as one.
use std::rc::Rc;
use std::sync::Arc;

use lateen_balance::{Aggregate, Context, Host, Member};
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
    let host = cluster.choose(context, sought)?;
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
    let known = || members.iter().filter_map(|id| Some((*id, live.snapshot.cluster(*id)?)));
    let mut kept = cluster.aggregate.borrow_mut();
    if !kept.as_ref().is_some_and(|a| a.is_of(known().map(|(_, c)| &c.hosts))) {
        let members = known().map(|(_, c)| Member { hosts: Arc::clone(&c.hosts), settings: c.config.balance.clone() });
        *kept = Some(Box::new(Aggregate::new(members.collect(), &cluster.cluster.config.balance, worker.roll64())));
    }
    let (index, host) = kept.as_mut()?.choose(context)?;
    let (id, _) = known().nth(index)?;
    Some((live.cluster(worker, id)?, host))
}
