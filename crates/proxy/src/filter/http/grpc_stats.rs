//! Counters of gRPC calls and messages by cluster, and by method where configured (Envoy `grpc_stats`).
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;

use lateen_snapshot::grpc_stats::GrpcStats;
use lateen_telemetry::envoy_names::{count_grpc_status, grpc as names};
use lateen_telemetry::{BlockName, Local};

use crate::http::{Exchange, headers};
use crate::worker::Worker;

/// Methods counted by name for one cluster; callers choose the names, so there is an end to them.
const MOST_METHODS: usize = 1000;

/// Counts messages in a body: each has five bytes before it, the last four its length (gRPC over HTTP2).
#[derive(Debug, Default)]
pub(crate) struct Messages {
    count: u64,
    head: [u8; 5],
    have: usize,
    skip: usize,
}

impl Messages {
    pub(crate) fn push(&mut self, mut data: &[u8]) {
        while let Some((first, rest)) = data.split_first() {
            if self.skip > 0 {
                let step = self.skip.min(data.len());
                self.skip -= step;
                data = data.get(step..).unwrap_or_default();
                continue;
            }
            if let Some(slot) = self.head.get_mut(self.have) {
                *slot = *first;
            }
            self.have += 1;
            data = rest;
            if self.have == self.head.len() {
                let [_, a, b, c, d] = self.head;
                self.skip = u32::from_be_bytes([a, b, c, d]) as usize;
                self.count += 1;
                self.have = 0;
            }
        }
    }
}

/// The messages of a call in both directions.
#[derive(Debug, Default)]
pub(crate) struct Call {
    pub(crate) request: Messages,
    pub(crate) response: Messages,
    /// Istio's metrics count them too.
    pub(crate) emitted: bool,
}

impl Call {
    /// Messages sent and received by the caller.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.request.count, self.response.count)
    }
}

/// One worker's counters of one cluster.
#[derive(Default)]
pub(crate) struct Counters {
    plain: OnceCell<Local>,
    /// By path.
    methods: RefCell<HashMap<Box<str>, Local>>,
}

impl Counters {
    fn plain(&self, worker: &Worker, cluster: &str) -> Local {
        self.plain.get_or_init(|| local(worker, cluster, None)).clone()
    }

    fn method(&self, worker: &Worker, cluster: &str, path: &str, names: (&str, &str)) -> Option<Local> {
        let mut methods = self.methods.borrow_mut();
        if let Some(known) = methods.get(path) {
            return Some(known.clone());
        }
        if methods.len() >= MOST_METHODS {
            return None;
        }
        let made = local(worker, cluster, Some(names));
        methods.insert(path.into(), made.clone());
        Some(made)
    }
}

fn local(worker: &Worker, cluster: &str, method: Option<(&str, &str)>) -> Local {
    let calls = BlockName::cluster(cluster).below("grpc");
    let name = match method {
        Some((service, method)) => calls.below(service).below(method),
        None => calls,
    };
    worker.shard.local(&worker.registry.block(names::DEFS, name))
}

/// Counts a call that is over.
pub(crate) fn charge(exchange: &Exchange<'_>, config: &GrpcStats) {
    let (Some(call), Some(cluster)) = (&exchange.info.grpc_call, &exchange.info.cluster) else { return };
    let (worker, stat_name) = (exchange.worker, &*cluster.cluster.config.stat_name);
    let original = headers::text(&exchange.request.headers, &headers::ORIGINAL_PATH);
    let path = original.unwrap_or(&exchange.request.path);
    let named = config.names(path).and_then(|(service, method)| {
        let service = if config.replace_dots { service.replace('.', "_") } else { service.to_owned() };
        cluster.grpc.method(worker, stat_name, path, (&service, method))
    });
    let stats = named.unwrap_or_else(|| cluster.grpc.plain(worker, stat_name));
    stats.add(names::REQUEST_MESSAGE_COUNT, call.request.count);
    stats.add(names::RESPONSE_MESSAGE_COUNT, call.response.count);
    if let Some(status) = exchange.info.grpc_status {
        count_grpc_status(&stats, status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let body = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[1, 0, 0, 1, 0], &[7; 256], &[0, 0]].concat();
        for size in [1, 2, 3, 5, 7, 300] {
            let mut messages = Messages::default();
            body.chunks(size).for_each(|piece| messages.push(piece));
            assert_eq!(messages.count, 3, "{size}");
        }
    }
}
