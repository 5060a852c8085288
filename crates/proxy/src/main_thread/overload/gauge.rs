//! Reads the pressure of one resource.
use std::io;
use std::time::{Duration, Instant};

use lateen_snapshot::bootstrap::overload::{CpuOf, Monitor, Resource};
use lateen_telemetry::envoy_names::resource_monitor as names;
use lateen_telemetry::{Block, BlockName, Registry};

use super::cgroup::{Groups, Memory};
use super::cpu::{self, Utilization};
use crate::main_thread::figures;

pub(super) struct Gauge<'a> {
    name: &'a str,
    source: Source,
    block: Block,
    pressure: f64,
    failing: bool,
}

/// What all gauges are told of an interval's end.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    /// How long work waited for the busiest worker.
    pub(super) wait: Duration,
}

enum Source {
    Heap { most: u64 },
    CgroupMemory { groups: Groups, most: Option<u64> },
    Host(Utilization),
    Container(Groups, Utilization),
    QueueDelay { most: Duration },
}

impl<'a> Gauge<'a> {
    pub(super) fn new(monitor: &'a Monitor, registry: &Registry) -> Self {
        Self {
            name: &monitor.name,
            source: Source::of(monitor.resource),
            block: registry.block(names::DEFS, BlockName::plain(&format!("overload.{}", monitor.name))),
            pressure: 0.0,
            failing: false,
        }
    }

    /// The pressure of this moment, or the last known where it cannot be told: the log says so once, the counter each time.
    pub(super) fn look(&mut self, moment: Moment) -> f64 {
        match self.source.pressure(moment) {
            Ok(pressure) => {
                self.pressure = pressure;
                self.failing = false;
            }
            Err(e) => {
                if !self.failing {
                    tracing::error!("overload manager: {} cannot be measured: {e}", self.name);
                }
                self.failing = true;
                self.block.add_shared(names::FAILED_UPDATES, 1);
            }
        }
        self.block.set(names::PRESSURE, (self.pressure * 100.0) as u64);
        self.pressure
    }
}

impl Source {
    fn of(resource: Resource) -> Self {
        match resource {
            Resource::Heap { most } => Self::Heap { most },
            Resource::CgroupMemory { most } => Self::CgroupMemory { groups: Groups::of_this_process(), most },
            Resource::Cpu(CpuOf::Host) => Self::Host(Utilization::default()),
            Resource::Cpu(CpuOf::Container) => Self::Container(Groups::of_this_process(), Utilization::default()),
            Resource::QueueDelay { most } => Self::QueueDelay { most },
        }
    }

    fn pressure(&mut self, moment: Moment) -> io::Result<f64> {
        match self {
            Self::Heap { most } => Ok(figures::Pages::now().resident_bytes() as f64 / *most as f64),
            Self::CgroupMemory { groups, most } => {
                let mut all = groups.memory()?;
                if let Some(own) = all.first_mut() {
                    own.limit = [own.limit, *most].into_iter().flatten().min();
                }
                Ok(all.iter().map(Memory::pressure).fold(0.0, f64::max))
            }
            Self::Host(utilization) => Ok(utilization.next(cpu::of_host()?)),
            Self::Container(groups, utilization) => Ok(utilization.next_timed(groups.cpu()?, moment.now)),
            Self::QueueDelay { most } => Ok(moment.wait.as_secs_f64() / most.as_secs_f64()),
        }
    }
}
