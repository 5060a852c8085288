//! Triggers: from a pressure to how strongly an action acts.
use lateen_proto::envoy::config::overload::v3::{self as proto, trigger::TriggerOneof};

use super::{Monitor, Result};
use crate::compile::Invalid;
use crate::compile::parts::Within;

/// When an action acts, by the pressure of one monitor.
#[derive(Clone, Debug, PartialEq)]
pub struct Trigger {
    /// Its place among the monitors.
    pub monitor: usize,
    pub ramp: Ramp,
}

/// Up from nothing at one pressure to always at another; a threshold where the two are the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    from: f64,
    to: f64,
}

impl Ramp {
    /// The share of connections or requests that an action concerns: 0 to 1.
    pub fn share(self, pressure: f64) -> f64 {
        if pressure >= self.to {
            1.0
        } else if pressure > self.from {
            (pressure - self.from) / (self.to - self.from)
        } else {
            0.0
        }
    }
}

pub(super) fn compile(values: Vec<proto::Trigger>, monitors: &[Monitor]) -> Result<Vec<Trigger>> {
    let mut triggers: Vec<Trigger> = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let trigger = trigger(value, monitors).within_item("triggers", index)?;
        if triggers.iter().any(|known| known.monitor == trigger.monitor) {
            let why = format!("{} triggers twice; one of them would never count", monitors[trigger.monitor].name);
            return Err(Invalid::field("name", why)).within_item("triggers", index);
        }
        triggers.push(trigger);
    }
    if triggers.is_empty() {
        return Err(Invalid::field("triggers", "is empty; the action would never happen"));
    }
    Ok(triggers)
}

fn trigger(value: proto::Trigger, monitors: &[Monitor]) -> Result<Trigger> {
    let proto::Trigger { name, trigger_oneof } = value;
    let monitor = monitors.iter().position(|monitor| monitor.name == name).ok_or_else(|| {
        let measured = match monitors {
            [] => "nothing is: configure resource_monitors".to_owned(),
            _ => format!("these are: {}", monitors.iter().map(|m| &*m.name).collect::<Vec<_>>().join(", ")),
        };
        Invalid::field("name", format!("{name} is not a resource that is measured; {measured}"))
    })?;
    let ramp = match trigger_oneof {
        Some(TriggerOneof::Threshold(value)) => threshold(value).within("threshold"),
        Some(TriggerOneof::Scaled(value)) => scaled(value).within("scaled"),
        None => Err(Invalid::field("threshold", "is missing")),
    }?;
    Ok(Trigger { monitor, ramp })
}

fn threshold(value: proto::ThresholdTrigger) -> Result<Ramp> {
    let proto::ThresholdTrigger { value } = value;
    let at = pressure(value, "value")?;
    Ok(Ramp { from: at, to: at })
}

fn scaled(value: proto::ScaledTrigger) -> Result<Ramp> {
    let proto::ScaledTrigger { scaling_threshold, saturation_threshold } = value;
    let ramp =
        Ramp { from: pressure(scaling_threshold, "scaling_threshold")?, to: pressure(saturation_threshold, "saturation_threshold")? };
    if ramp.from < ramp.to { Ok(ramp) } else { Err(Invalid::field("saturation_threshold", "is not above scaling_threshold")) }
}

fn pressure(value: f64, field: &str) -> Result<f64> {
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(Invalid::field(field, "is not between 0 and 1")) }
}
