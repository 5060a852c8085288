//! Reads the pressure of one resource.
use std::io;
use std::time::{Duration, Instant};

use lateen_snapshot::bootstrap::overload::{CpuOf, Monitor, Resource};
use lateen_telemetry::envoy_names::resource_monitor as names;
use lateen_telemetry::{Block, BlockName, Registry};

use super::cgroup::Groups;
use super::cpu::Utilization;
use crate::main_thread::figures;
use crate::worker::Overload;

pub(super) struct Gauge<'a> {
    monitor: &'a Monitor,
    groups: Groups,
    utilization: Utilization,
    block: Block,
    pressure: f64,
    failing: bool,
}

impl<'a> Gauge<'a> {
    pub(super) fn new(monitor: &'a Monitor, registry: &Registry) -> Self {
        Self {
            monitor,
            groups: Groups::of_this_process(),
            utilization: Utilization::default(),
            block: registry.block(names::DEFS, BlockName::plain(&format!("overload.{}", monitor.name))),
            pressure: 0.0,
            failing: false,
        }
    }

    /// The pressure of this moment, or the last known where it cannot be told: the log says so once, the counter each time.
    pub(super) fn look(&mut self, overload: &Overload, now: Instant) -> f64 {
        match self.read(overload, now) {
            Ok(pressure) => {
                self.pressure = pressure;
                self.failing = false;
            }
            Err(e) => {
                if !self.failing {
                    tracing::error!("overload manager: {} cannot be measured: {e}", self.monitor.name);
                }
                self.failing = true;
                self.block.add_shared(names::FAILED_UPDATES, 1);
            }
        }
        self.block.set(names::PRESSURE, (self.pressure * 100.0) as u64);
        self.pressure
    }

    fn read(&mut self, overload: &Overload, now: Instant) -> io::Result<f64> {
        match self.monitor.resource {
            Resource::Heap { most } => Ok(figures::Pages::now().resident_bytes() as f64 / most as f64),
            Resource::CgroupMemory { most } => {
                let memory = self.groups.memory()?;
                // Without any limit there is no pressure.
                let most = [most, memory.limit].into_iter().flatten().min();
                Ok(most.map_or(0.0, |most| memory.used as f64 / most as f64))
            }
            Resource::Cpu(CpuOf::Host) => Ok(self.utilization.next(super::cpu::of_host()?)),
            Resource::Cpu(CpuOf::Container) => {
                let cpu = self.groups.cpu()?;
                Ok(self.utilization.next_timed(cpu, now))
            }
            Resource::QueueDelay { most } => {
                let wait = overload.queues().map_or(Duration::ZERO, |queues| queues.take(now));
                Ok(wait.as_secs_f64() / most.as_secs_f64())
            }
        }
    }
}
