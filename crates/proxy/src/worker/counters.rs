//! Counters whose prefix a filter's configuration chooses: made at their first use, then found without a lock.
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use lateen_telemetry::stats::MetricDef;
use lateen_telemetry::{BlockName, Local};

use super::Worker;

/// Blocks of one owner (a connection manager, a cluster) by their table and prefix.
#[derive(Default)]
pub(crate) struct Counters(RefCell<Vec<Known>>);

struct Known {
    defs: *const MetricDef,
    prefix: Arc<str>,
    stats: Rc<Local>,
}

impl Counters {
    /// The counters of `defs` by a prefix, under `name`. The text is compared only after the configuration changed.
    pub(crate) fn get(
        &self,
        worker: &Worker,
        defs: &'static [MetricDef],
        prefix: &Arc<str>,
        name: impl FnOnce() -> BlockName,
    ) -> Rc<Local> {
        let mut known = self.0.borrow_mut();
        if let Some(one) = known.iter().find(|k| k.defs == defs.as_ptr() && Arc::ptr_eq(&k.prefix, prefix)) {
            return Rc::clone(&one.stats);
        }
        if let Some(one) = known.iter_mut().find(|k| k.defs == defs.as_ptr() && k.prefix == *prefix) {
            one.prefix = Arc::clone(prefix);
            return Rc::clone(&one.stats);
        }
        let stats = Rc::new(worker.shard.local(&worker.registry.block(defs, name())));
        known.push(Known { defs: defs.as_ptr(), prefix: Arc::clone(prefix), stats: Rc::clone(&stats) });
        stats
    }
}
