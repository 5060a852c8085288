//! An update of one endpoint costs the work of its cluster, however many clusters there are.
// Counting what is allocated needs an allocator of our own.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use lateen_proto::any::{pack, url};
use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use lateen_proto::json::Codec;
use lateen_snapshot::compile::{Compiler, Update};
use serde_json::json;

thread_local! {
    static ALLOCATED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

// SAFETY: everything is passed on to the system's allocator; the counter is a plain cell of this thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // After the thread's own end there is nothing to count for.
        let _ = ALLOCATED.try_with(|a| a.set((a.get().0 + 1, a.get().1 + layout.size())));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn endpoints(cluster: usize, last: u8) -> Update {
    let list: Vec<_> = (1..=last)
        .map(|n| json!({"endpoint": {"address": {"socket_address": {"address": format!("10.{}.{}.{n}", cluster / 250, cluster % 250), "port_value": 80}}}}))
        .collect();
    let message = json!({"cluster_name": format!("c{cluster}"), "endpoints": [{"lb_endpoints": list}]});
    let message: ClusterLoadAssignment = Codec::new().read(&(&message).into()).unwrap();
    Update { name: message.cluster_name.clone(), version: last.to_string(), body: pack(&message) }
}

fn cluster(number: usize) -> Update {
    let message = json!({"name": format!("c{number}"), "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}});
    let message: Cluster = Codec::new().read(&(&message).into()).unwrap();
    Update { name: message.name.clone(), version: "1".to_owned(), body: pack(&message) }
}

/// Allocations and their bytes for a new endpoint of one among so many clusters, up to the snapshot for the workers.
fn cost(clusters: usize) -> (usize, usize) {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    compiler.apply(&url::<Cluster>(), (0..clusters).map(cluster).collect(), &[], now);
    compiler.apply(&url::<ClusterLoadAssignment>(), (0..clusters).map(|n| endpoints(n, 10)).collect(), &[], now);
    let (before, wanted) = (compiler.snapshot(), compiler.wanted());
    assert_eq!(before.clusters.iter().flatten().map(|c| c.hosts.len()).sum::<usize>(), 10 * clusters);
    let (type_url, update) = (url::<ClusterLoadAssignment>(), vec![endpoints(7, 11)]);
    let start = ALLOCATED.get();
    let rejected = compiler.apply(&type_url, update, &[], now);
    let (after, still_wanted) = (compiler.snapshot(), compiler.wanted());
    let end = ALLOCATED.get();
    assert_eq!((rejected.len(), after.cluster_named("c7").map(|(_, c)| c.hosts.len())), (0, Some(11)));
    assert!(Arc::ptr_eq(&wanted, &still_wanted), "nothing else must be subscribed to");
    for (old, new) in before.clusters.iter().flatten().zip(after.clusters.iter().flatten()) {
        assert_eq!(Arc::ptr_eq(old, new), &*old.config.name != "c7", "{}", old.config.name);
    }
    (end.0 - start.0, end.1 - start.1)
}

#[test]
fn one_endpoint_among_many_clusters_costs_as_much_as_among_few() {
    let ((few, few_bytes), (many, many_bytes)) = (cost(10), cost(1000));
    assert_eq!(few, many, "allocations");
    // A snapshot has one pointer a cluster.
    assert!(many_bytes <= few_bytes + 990 * size_of::<usize>(), "{few_bytes} bytes among 10, {many_bytes} among 1000");
}
