//! Measures pressure and switches the actions of the overload manager.
mod cgroup;
mod cpu;
mod gauge;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_snapshot::bootstrap::overload::{Action, Overload as Config, Trigger};
use lateen_telemetry::envoy_names::{load_shed_point, overload_action};
use lateen_telemetry::{Block, BlockName};

use super::{Main, memory};
use crate::worker::{Overload, Queues};
use gauge::{Gauge, Moment};

/// Between two looks for memory to give back (Envoy's `ShrinkHeapConfig.timer_interval`).
const SHRINK: Duration = Duration::from_secs(10);

/// What workers are told by; they tell how long work waits for them where that is measured.
pub(super) fn switches(config: &Config, workers: usize, now: Instant) -> Arc<Overload> {
    let limits = config.limits.clone();
    if config.watches_queues() { Overload::watching(limits, Queues::new(workers, config.refresh, now)) } else { Overload::new(limits) }
}

/// Between two lines of the log about one action: pressure may go up and down with every measurement.
const TOLD: Duration = Duration::from_secs(10);

/// Runs only where there is something to measure.
pub(super) async fn run(main: Arc<Main>) {
    let config = &main.bootstrap.overload;
    if config.monitors.is_empty() {
        return;
    }
    let mut gauges: Vec<Gauge> = config.monitors.iter().map(|monitor| Gauge::new(monitor, &main.registry)).collect();
    let mut switches: Vec<Switch> = config.actions.iter().map(|(action, triggers)| Switch::new(&main, *action, triggers)).collect();
    loop {
        let now = Instant::now();
        let wait = main.overload.queues().map_or(Duration::ZERO, |queues| queues.take(now));
        let pressures: Vec<f64> = gauges.iter_mut().map(|gauge| gauge.look(Moment { now, wait })).collect();
        for switch in &mut switches {
            switch.turn(&pressures, now);
        }
        tokio::time::sleep(config.refresh).await;
    }
}

/// One action and what triggers it.
struct Switch<'a> {
    main: &'a Main,
    action: Action,
    triggers: &'a [Trigger],
    block: Block,
    /// What the log says of it, and since when.
    told: (bool, Option<Instant>),
    shrunk: Option<Instant>,
}

impl<'a> Switch<'a> {
    fn new(main: &'a Main, action: Action, triggers: &'a [Trigger]) -> Self {
        let defs = if action.is_load_shed_point() { load_shed_point::DEFS } else { overload_action::DEFS };
        let block = main.registry.block(defs, BlockName::plain(&format!("overload.{}", action.name())));
        Self { main, action, triggers, block, told: (false, None), shrunk: None }
    }

    fn turn(&mut self, pressures: &[f64], now: Instant) {
        // The strongest counts.
        let share = self.triggers.iter().map(|t| t.ramp.share(pressures[t.monitor])).fold(0.0, f64::max);
        self.show(share);
        self.main.overload.set(self.action, share);
        self.tell(share > 0.0, pressures, now);
        if self.action == Action::ShrinkHeap {
            self.shrink(share, now);
        }
    }

    /// The log catches up with how it is, if need be later.
    fn tell(&mut self, active: bool, pressures: &[f64], now: Instant) {
        let (told, at) = self.told;
        if active != told && is_over(at, TOLD, now) {
            let turn = if active { "begins" } else { "ends" };
            tracing::warn!("{}: {turn}, with pressures of {pressures:.2?}", self.action.name());
            self.told = (active, Some(now));
        }
    }

    fn show(&self, share: f64) {
        let percent = (share * 100.0) as u64;
        if self.action.is_load_shed_point() {
            self.block.set(load_shed_point::SCALE_PERCENT, percent);
            self.block.add_shared(load_shed_point::SHED_LOAD_COUNT, self.main.overload.take_hits(self.action));
        } else {
            self.block.set(overload_action::SCALE_PERCENT, percent);
            self.block.set(overload_action::ACTIVE, u64::from(share >= 1.0));
        }
    }

    fn shrink(&mut self, share: f64, now: Instant) {
        if share >= 1.0 && is_over(self.shrunk, SHRINK, now) {
            memory::trim();
            self.shrunk = Some(now);
        }
    }
}

fn is_over(since: Option<Instant>, pause: Duration, now: Instant) -> bool {
    since.is_none_or(|at| now.saturating_duration_since(at) >= pause)
}
