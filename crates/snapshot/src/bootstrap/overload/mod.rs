//! The overload manager of a bootstrap (overload.proto) and its limits on connections (Envoy
//! `docs/root/configuration/operations/overload_manager`).
mod monitor;
mod runtime;
#[cfg(test)]
mod tests;
mod trigger;

use std::collections::HashMap;
use std::time::Duration;

use lateen_proto::envoy::config::overload::v3 as proto;

pub use monitor::{CpuOf, Monitor, Resource};
pub(super) use runtime::runtime_limits;
pub use trigger::{Ramp, Trigger};

use crate::compile::Invalid;
use crate::compile::parts::{Within, duration_or, refuse};

type Result<T> = std::result::Result<T, Invalid>;

/// What happens while a trigger fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connections wait in the kernel.
    StopAcceptingConnections,
    /// New connections are accepted and closed.
    RejectIncomingConnections,
    /// Requests are answered 503.
    StopAcceptingRequests,
    /// Connections end after their response.
    DisableKeepalive,
    /// Memory that is free inside the process is given back.
    ShrinkHeap,
    /// As [`Self::RejectIncomingConnections`], given as a load shed point.
    ShedConnections,
    /// As [`Self::StopAcceptingRequests`], given as a load shed point.
    ShedRequests,
}

impl Action {
    pub const ALL: [Self; 7] = [
        Self::StopAcceptingConnections,
        Self::RejectIncomingConnections,
        Self::StopAcceptingRequests,
        Self::DisableKeepalive,
        Self::ShrinkHeap,
        Self::ShedConnections,
        Self::ShedRequests,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::StopAcceptingConnections => "envoy.overload_actions.stop_accepting_connections",
            Self::RejectIncomingConnections => "envoy.overload_actions.reject_incoming_connections",
            Self::StopAcceptingRequests => "envoy.overload_actions.stop_accepting_requests",
            Self::DisableKeepalive => "envoy.overload_actions.disable_http_keepalive",
            Self::ShrinkHeap => "envoy.overload_actions.shrink_heap",
            Self::ShedConnections => "envoy.load_shed_points.tcp_listener_accept",
            Self::ShedRequests => "envoy.load_shed_points.http_connection_manager_decode_headers",
        }
    }

    /// Whether it stands among `loadshed_points` rather than `actions`.
    pub fn is_load_shed_point(self) -> bool {
        matches!(self, Self::ShedConnections | Self::ShedRequests)
    }

    fn named(name: &str, point: bool) -> Result<Self> {
        let kind = || Self::ALL.into_iter().filter(move |a| a.is_load_shed_point() == point);
        kind().find(|a| a.name() == name).ok_or_else(|| {
            let known: Vec<_> = kind().map(Self::name).collect();
            Invalid::field("name", format!("{name} is not supported; there are {}", known.join(", ")))
        })
    }
}

/// Limits that need no monitor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Open downstream connections of the process.
    pub connections: Option<u64>,
    /// By listener name.
    pub listeners: HashMap<String, u64>,
}

/// What is measured and what it triggers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overload {
    /// How often pressure is measured; Envoy's default is 1 s.
    pub refresh: Duration,
    pub monitors: Vec<Monitor>,
    /// Each action once, with at least one trigger: the strongest of them counts.
    pub actions: Vec<(Action, Vec<Trigger>)>,
    pub limits: Limits,
}

impl Overload {
    /// Whether workers have to tell how long work waits for them.
    pub fn watches_queues(&self) -> bool {
        self.monitors.iter().any(|monitor| matches!(monitor.resource, Resource::QueueDelay { .. }))
    }

    fn add(&mut self, action: Action, triggers: Vec<proto::Trigger>) -> Result<()> {
        if self.actions.iter().any(|(known, _)| *known == action) {
            return Err(Invalid::field("name", format!("{} is there twice; put all its triggers in one", action.name())));
        }
        let triggers = trigger::compile(triggers, &self.monitors)?;
        self.actions.push((action, triggers));
        Ok(())
    }
}

pub(super) fn compile(value: Option<proto::OverloadManager>, runtime: Limits) -> Result<Overload> {
    let given = value.is_some();
    let proto::OverloadManager { refresh_interval, resource_monitors, actions, loadshed_points, buffer_factory_config } =
        value.unwrap_or_default();
    refuse!(buffer_factory_config);
    let refresh = duration_or(refresh_interval.as_ref(), Duration::from_secs(1), "refresh_interval")?;
    if given && refresh < Duration::from_millis(1) {
        return Err(Invalid::field("refresh_interval", "is zero; pressure is measured at intervals"));
    }
    let (monitors, connections) = monitor::compile(resource_monitors)?;
    let limits = Limits { connections: connections.or(runtime.connections), ..runtime };
    let mut overload = Overload { refresh, monitors, actions: Vec::new(), limits };
    for (index, value) in actions.into_iter().enumerate() {
        action(value, &mut overload).within_item("actions", index)?;
    }
    for (index, value) in loadshed_points.into_iter().enumerate() {
        load_shed_point(value, &mut overload).within_item("loadshed_points", index)?;
    }
    Ok(overload)
}

fn action(value: proto::OverloadAction, overload: &mut Overload) -> Result<()> {
    let proto::OverloadAction { name, triggers, typed_config } = value;
    let action = Action::named(&name, false)?;
    refuse!(typed_config);
    overload.add(action, triggers)
}

fn load_shed_point(value: proto::LoadShedPoint, overload: &mut Overload) -> Result<()> {
    let proto::LoadShedPoint { name, triggers } = value;
    let action = Action::named(&name, true)?;
    overload.add(action, triggers)
}
