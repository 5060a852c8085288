//! The overload manager of a bootstrap (overload.proto) and its limits on connections (Envoy
//! `docs/root/configuration/operations/overload_manager`).
use std::collections::HashMap;
use std::time::Duration;

use lateen_proto::envoy::config::overload::v3::{self as proto, trigger::TriggerOneof};
use lateen_proto::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use lateen_proto::envoy::extensions::resource_monitors::fixed_heap::v3::FixedHeapConfig;
use lateen_proto::{Struct, Value, any};
use prost_types::value::Kind;

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
}

impl Action {
    pub const ALL: [Self; 5] = [
        Self::StopAcceptingConnections,
        Self::RejectIncomingConnections,
        Self::StopAcceptingRequests,
        Self::DisableKeepalive,
        Self::ShrinkHeap,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::StopAcceptingConnections => "envoy.overload_actions.stop_accepting_connections",
            Self::RejectIncomingConnections => "envoy.overload_actions.reject_incoming_connections",
            Self::StopAcceptingRequests => "envoy.overload_actions.stop_accepting_requests",
            Self::DisableKeepalive => "envoy.overload_actions.disable_http_keepalive",
            Self::ShrinkHeap => "envoy.overload_actions.shrink_heap",
        }
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

/// Memory pressure and what it triggers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overload {
    /// How often pressure is measured; Envoy's default is 1 s.
    pub refresh: Duration,
    /// Resident bytes that count as a pressure of 1.
    pub heap: Option<u64>,
    /// The action is active at this pressure and above.
    pub actions: Vec<(Action, f64)>,
    pub limits: Limits,
}

const HEAP: &str = "envoy.resource_monitors.fixed_heap";

pub(super) fn compile(value: Option<proto::OverloadManager>, runtime: Limits) -> Result<Overload> {
    let given = value.is_some();
    let proto::OverloadManager { refresh_interval, resource_monitors, actions, loadshed_points, buffer_factory_config } =
        value.unwrap_or_default();
    refuse!(loadshed_points, buffer_factory_config);
    let refresh = duration_or(refresh_interval.as_ref(), Duration::from_secs(1), "refresh_interval")?;
    if given && refresh < Duration::from_millis(1) {
        return Err(Invalid::field("refresh_interval", "is zero; pressure is measured at intervals"));
    }
    let mut overload = Overload { refresh, limits: runtime, ..Overload::default() };
    for (index, monitor) in resource_monitors.into_iter().enumerate() {
        self::monitor(monitor, &mut overload).within_item("resource_monitors", index)?;
    }
    for (index, action) in actions.into_iter().enumerate() {
        let action = self::action(action, overload.heap.is_some()).within_item("actions", index)?;
        overload.actions.push(action);
    }
    Ok(overload)
}

fn monitor(value: proto::ResourceMonitor, overload: &mut Overload) -> Result<()> {
    let proto::ResourceMonitor { name, config_type } = value;
    let Some(proto::resource_monitor::ConfigType::TypedConfig(config)) = config_type else {
        return Err(Invalid::field("typed_config", format!("is missing; {name} cannot be configured without")));
    };
    let open = |e: any::InvalidAny| Invalid::field("typed_config", e.to_string());
    if any::is::<FixedHeapConfig>(&config) {
        overload.heap = Some(any::open(&config).map_err(open).and_then(|config| heap(config).within("typed_config"))?);
        return Ok(());
    }
    if any::is::<DownstreamConnectionsConfig>(&config) {
        let DownstreamConnectionsConfig { max_active_downstream_connections: most } = any::open(&config).map_err(open)?;
        let most = u64::try_from(most).ok().filter(|n| *n > 0);
        overload.limits.connections = Some(most.ok_or_else(|| {
            Invalid::field("typed_config.max_active_downstream_connections", "is not above zero; give a number of connections")
        })?);
        return Ok(());
    }
    Err(Invalid::field(
        "name",
        format!("{name} is not supported; there are {HEAP} and envoy.resource_monitors.global_downstream_max_connections"),
    ))
}

fn heap(value: FixedHeapConfig) -> Result<u64> {
    let FixedHeapConfig { max_heap_size_bytes, max_heap_size_bytes_runtime } = value;
    refuse!(max_heap_size_bytes_runtime);
    match max_heap_size_bytes {
        0 => Err(Invalid::field("max_heap_size_bytes", "is zero; give a number of bytes")),
        most => Ok(most),
    }
}

fn action(value: proto::OverloadAction, measured: bool) -> Result<(Action, f64)> {
    let proto::OverloadAction { name, triggers, typed_config } = value;
    let Some(action) = Action::ALL.into_iter().find(|a| a.name() == name) else {
        let known: Vec<_> = Action::ALL.iter().map(|a| a.name()).collect();
        return Err(Invalid::field("name", format!("{name} is not supported; there are {}", known.join(", "))));
    };
    refuse!(typed_config);
    let mut at: Option<f64> = None;
    for (index, trigger) in triggers.into_iter().enumerate() {
        let threshold = self::trigger(trigger, measured).within_item("triggers", index)?;
        // The first that fires decides.
        at = Some(at.map_or(threshold, |at| at.min(threshold)));
    }
    Ok((action, at.ok_or_else(|| Invalid::field("triggers", "is empty; the action would never happen"))?))
}

fn trigger(value: proto::Trigger, measured: bool) -> Result<f64> {
    let proto::Trigger { name, trigger_oneof } = value;
    if name != HEAP || !measured {
        return Err(Invalid::field(
            "name",
            format!("{name} is not a resource that is measured; configure {HEAP} among the resource_monitors"),
        ));
    }
    let threshold = match trigger_oneof {
        Some(TriggerOneof::Threshold(t)) => t.value,
        Some(TriggerOneof::Scaled(_)) => return Err(Invalid::unsupported("scaled")),
        None => return Err(Invalid::field("threshold", "is missing")),
    };
    if (0.0..=1.0).contains(&threshold) { Ok(threshold) } else { Err(Invalid::field("threshold.value", "is not between 0 and 1")) }
}

/// Limits given as runtime keys: `overload.global_downstream_max_connections` and
/// `envoy.resource_limits.listener.NAME.connection_limit` (Envoy listener statistics and limits).
pub(super) fn runtime_limits(values: &Struct, limits: &mut Limits) {
    for (key, value) in &values.fields {
        walk(key.clone(), value, limits);
    }
}

fn walk(key: String, value: &Value, limits: &mut Limits) {
    match &value.kind {
        Some(Kind::StructValue(inner)) => {
            for (name, value) in &inner.fields {
                walk(format!("{key}.{name}"), value, limits);
            }
        }
        Some(Kind::NumberValue(n)) if *n >= 0.0 => number(&key, *n as u64, limits),
        Some(Kind::StringValue(text)) => {
            if let Ok(n) = text.parse() {
                number(&key, n, limits);
            }
        }
        _ => {}
    }
}

fn number(key: &str, n: u64, limits: &mut Limits) {
    if key == "overload.global_downstream_max_connections" {
        limits.connections = Some(n);
    }
    let name = key.strip_prefix("envoy.resource_limits.listener.").and_then(|k| k.strip_suffix(".connection_limit"));
    if let Some(name) = name {
        limits.listeners.insert(name.to_owned(), n);
    }
}

#[cfg(test)]
mod tests {
    use crate::bootstrap::parse;

    const HEAP: &str = "{name: envoy.resource_monitors.fixed_heap, typed_config: {'@type': type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 1000}}";

    fn read(monitors: &str, actions: &str) -> Result<super::Overload, String> {
        let text = format!("overload_manager: {{resource_monitors: [{monitors}], actions: [{actions}]}}");
        parse(&text, "b.yaml").map(|b| b.overload).map_err(|e| e.to_string())
    }

    #[test]
    fn monitors_and_actions_are_honoured_or_refused_by_name() {
        let connections = "{name: envoy.resource_monitors.global_downstream_max_connections, typed_config: {'@type': type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 5}}";
        let action = |name: &str, trigger: &str| format!("{{name: envoy.overload_actions.{name}, triggers: [{trigger}]}}");
        let at = "{name: envoy.resource_monitors.fixed_heap, threshold: {value: 0.9}}";
        let overload = read(&format!("{HEAP}, {connections}"), &action("stop_accepting_requests", at)).unwrap();
        assert_eq!((overload.heap, overload.limits.connections), (Some(1000), Some(5)));
        assert_eq!(overload.actions, [(super::Action::StopAcceptingRequests, 0.9)]);
        for (monitors, actions, part) in [
            (
                HEAP,
                action("reset_high_memory_stream", at),
                "actions[0].name: envoy.overload_actions.reset_high_memory_stream is not supported",
            ),
            (
                HEAP,
                action(
                    "stop_accepting_requests",
                    "{name: envoy.resource_monitors.fixed_heap, scaled: {scaling_threshold: 0.1, saturation_threshold: 0.2}}",
                ),
                "triggers[0].scaled",
            ),
            ("", action("stop_accepting_requests", at), "triggers[0].name"),
            (
                &HEAP.replace("1000", "1000, max_heap_size_bytes_runtime: {default_value: 5, runtime_key: k}"),
                String::new(),
                "resource_monitors[0].typed_config.max_heap_size_bytes_runtime",
            ),
            (HEAP, action("stop_accepting_requests", ""), "actions[0].triggers"),
            (
                HEAP,
                action("stop_accepting_requests", "{name: envoy.resource_monitors.fixed_heap, threshold: {value: 2}}"),
                "threshold.value",
            ),
            (
                "{name: x, typed_config: {'@type': type.googleapis.com/google.protobuf.Struct, value: {}}}",
                String::new(),
                "resource_monitors[0].name: x is not supported",
            ),
        ] {
            let error = read(monitors, &actions).unwrap_err();
            assert!(error.contains(&format!("overload_manager.{part}")) || error.contains(part), "{error}");
        }
    }

    #[test]
    fn limits_are_read_from_the_runtime() {
        let text = "layered_runtime: {layers: [{name: l, static_layer: {overload: {global_downstream_max_connections: 7}, envoy.resource_limits.listener.web.connection_limit: '3'}}]}";
        let limits = parse(text, "b.yaml").unwrap().overload.limits;
        assert_eq!((limits.connections, limits.listeners.get("web")), (Some(7), Some(&3)));
    }
}
