//! Resource monitors: what pressure is read from.
use std::collections::HashSet;
use std::time::Duration;

use lateen_proto::envoy::config::overload::v3 as proto;
use lateen_proto::envoy::extensions::resource_monitors::cgroup_memory::v3::CgroupMemoryConfig;
use lateen_proto::envoy::extensions::resource_monitors::cpu_utilization::v3::CpuUtilizationConfig;
use lateen_proto::envoy::extensions::resource_monitors::cpu_utilization::v3::cpu_utilization_config::UtilizationComputeStrategy;
use lateen_proto::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use lateen_proto::envoy::extensions::resource_monitors::fixed_heap::v3::FixedHeapConfig;
use lateen_proto::lateen::resource_monitors::v1::QueueDelayConfig;
use lateen_proto::{Any, any};

use super::Result;
use crate::compile::Invalid;
use crate::compile::parts::{Within, duration_or, refuse};

/// A resource whose use is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Monitor {
    /// By which triggers and statistics name it.
    pub name: String,
    pub resource: Resource,
}

/// A pressure of 1 is a resource that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Resident bytes of the process, out of this many.
    Heap { most: u64 },
    /// Bytes of the control group that the process is in, out of these or those that the group may have, whichever is less.
    CgroupMemory { most: Option<u64> },
    /// Processor time, smoothed over some twenty measurements.
    Cpu(CpuOf),
    /// How long work that is ready waits for the busiest worker: the shortest wait of an interval, since a burst that is
    /// worked off does no harm, and a queue that stands does.
    QueueDelay { most: Duration },
}

/// Whose processor time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuOf {
    /// All of the machine.
    Host,
    /// The control group's, out of what it may have.
    Container,
}

const SUPPORTED: &str = "FixedHeapConfig, CgroupMemoryConfig, CpuUtilizationConfig, DownstreamConnectionsConfig and \
    lateen.resource_monitors.v1.QueueDelayConfig";

/// Waits that the workers' clocks do not tell from none.
const LEAST_DELAY: Duration = Duration::from_millis(5);

/// What is measured, and how many connections there may be, if a monitor says so.
pub(super) fn compile(values: Vec<proto::ResourceMonitor>) -> Result<(Vec<Monitor>, Option<u64>)> {
    let (mut monitors, mut most, mut names) = (Vec::new(), None, HashSet::new());
    for (index, value) in values.into_iter().enumerate() {
        let monitor = named(value).and_then(|(name, config)| {
            if !names.insert(name.clone()) {
                return Err(Invalid::field("name", format!("{name} is there twice; triggers could not tell which is meant")));
            }
            if any::is::<DownstreamConnectionsConfig>(&config) {
                return connections(&config, &mut most).within("typed_config").map(|()| None);
            }
            resource(&name, &config).within("typed_config").map(|resource| Some(Monitor { name, resource }))
        });
        monitors.extend(monitor.within_item("resource_monitors", index)?);
    }
    Ok((monitors, most))
}

fn named(value: proto::ResourceMonitor) -> Result<(String, Any)> {
    let proto::ResourceMonitor { name, config_type } = value;
    if name.is_empty() {
        return Err(Invalid::field("name", "is empty; triggers and statistics need one"));
    }
    let Some(proto::resource_monitor::ConfigType::TypedConfig(config)) = config_type else {
        return Err(Invalid::field("typed_config", format!("is missing; {name} cannot be configured without")));
    };
    Ok((name, config))
}

fn resource(name: &str, config: &Any) -> Result<Resource> {
    if any::is::<FixedHeapConfig>(config) {
        heap(open(config)?)
    } else if any::is::<CgroupMemoryConfig>(config) {
        let CgroupMemoryConfig { max_memory_bytes } = open(config)?;
        Ok(Resource::CgroupMemory { most: Some(max_memory_bytes).filter(|n| *n > 0) })
    } else if any::is::<CpuUtilizationConfig>(config) {
        cpu(open(config)?)
    } else if any::is::<QueueDelayConfig>(config) {
        queue_delay(open(config)?)
    } else {
        let kind = any::name_of(&config.type_url);
        Err(Invalid::new(format!("{kind} of {name} is not supported; there are {SUPPORTED}")))
    }
}

fn open<M: prost::Message + prost::Name + Default>(config: &Any) -> Result<M> {
    any::open(config).map_err(|e| Invalid::new(e.to_string()))
}

fn connections(config: &Any, most: &mut Option<u64>) -> Result<()> {
    let DownstreamConnectionsConfig { max_active_downstream_connections: given } = open(config)?;
    let given = u64::try_from(given).ok().filter(|n| *n > 0);
    let given =
        given.ok_or_else(|| Invalid::field("max_active_downstream_connections", "is not above zero; give a number of connections"))?;
    match most.replace(given) {
        None => Ok(()),
        Some(_) => Err(Invalid::new("limits connections once more; only one limit could count")),
    }
}

fn heap(value: FixedHeapConfig) -> Result<Resource> {
    let FixedHeapConfig { max_heap_size_bytes, max_heap_size_bytes_runtime } = value;
    refuse!(max_heap_size_bytes_runtime);
    match max_heap_size_bytes {
        0 => Err(Invalid::field("max_heap_size_bytes", "is zero; give a number of bytes")),
        most => Ok(Resource::Heap { most }),
    }
}

fn cpu(value: CpuUtilizationConfig) -> Result<Resource> {
    let CpuUtilizationConfig { mode } = value;
    match UtilizationComputeStrategy::try_from(mode) {
        Ok(UtilizationComputeStrategy::Host) => Ok(Resource::Cpu(CpuOf::Host)),
        Ok(UtilizationComputeStrategy::Container) => Ok(Resource::Cpu(CpuOf::Container)),
        Err(_) => Err(Invalid::field("mode", format!("{mode} is none of HOST and CONTAINER"))),
    }
}

fn queue_delay(value: QueueDelayConfig) -> Result<Resource> {
    let QueueDelayConfig { max_delay } = value;
    let most = duration_or(max_delay.as_ref(), Duration::ZERO, "max_delay")?;
    if most < LEAST_DELAY {
        return Err(Invalid::field("max_delay", "is less than 5 ms, which is not told from an idle worker; give more"));
    }
    Ok(Resource::QueueDelay { most })
}
