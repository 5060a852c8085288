use std::time::Duration;

use super::{Action, CpuOf, Overload, Ramp, Resource};
use crate::bootstrap::parse;

const TYPES: &str = "type.googleapis.com/envoy.extensions.resource_monitors";
const HEAP: &str = "envoy.resource_monitors.fixed_heap";

fn monitor(name: &str, kind: &str, fields: &str) -> String {
    format!("{{name: {name}, typed_config: {{'@type': {kind}, {fields}}}}}")
}

fn heap() -> String {
    monitor(HEAP, &format!("{TYPES}.fixed_heap.v3.FixedHeapConfig"), "max_heap_size_bytes: 1000")
}

fn connections() -> String {
    let kind = format!("{TYPES}.downstream_connections.v3.DownstreamConnectionsConfig");
    monitor("envoy.resource_monitors.global_downstream_max_connections", &kind, "max_active_downstream_connections: 5")
}

fn cpu(fields: &str) -> String {
    monitor("cpu", &format!("{TYPES}.cpu_utilization.v3.CpuUtilizationConfig"), fields)
}

fn queue(fields: &str) -> String {
    monitor("queue", "type.googleapis.com/lateen.resource_monitors.v1.QueueDelayConfig", fields)
}

fn action(name: &str, triggers: &str) -> String {
    format!("{{name: envoy.{name}, triggers: [{triggers}]}}")
}

fn threshold(monitor: &str, value: f64) -> String {
    format!("{{name: {monitor}, threshold: {{value: {value}}}}}")
}

fn scaled(from: f64, to: f64) -> String {
    format!("{{name: {HEAP}, scaled: {{scaling_threshold: {from}, saturation_threshold: {to}}}}}")
}

fn read(monitors: &str, actions: &str, points: &str) -> Result<Overload, String> {
    let text = format!("overload_manager: {{resource_monitors: [{monitors}], actions: [{actions}], loadshed_points: [{points}]}}");
    parse(&text, "b.yaml").map(|b| b.overload).map_err(|e| e.to_string())
}

#[test]
fn every_monitor_is_read_and_known_by_its_name() {
    let group = |name: &str, fields: &str| monitor(name, &format!("{TYPES}.cgroup_memory.v3.CgroupMemoryConfig"), fields);
    let monitors = [heap(), connections(), group("free", ""), group("bounded", "max_memory_bytes: 7"), cpu("mode: CONTAINER")];
    let monitors = format!("{}, {}", monitors.join(", "), queue("max_delay: 0.2s"));
    let overload = read(&monitors, &action("overload_actions.shrink_heap", &threshold("queue", 0.9)), "").unwrap();
    assert_eq!(overload.limits.connections, Some(5));
    let known: Vec<_> = overload.monitors.iter().map(|m| (&*m.name, m.resource)).collect();
    assert_eq!(
        known,
        [
            (HEAP, Resource::Heap { most: 1000 }),
            ("free", Resource::CgroupMemory { most: None }),
            ("bounded", Resource::CgroupMemory { most: Some(7) }),
            ("cpu", Resource::Cpu(CpuOf::Container)),
            ("queue", Resource::QueueDelay { most: Duration::from_millis(200) }),
        ]
    );
    assert!(overload.watches_queues());
    let (action, triggers) = &overload.actions[0];
    assert_eq!((*action, triggers[0].monitor), (Action::ShrinkHeap, 4));
    assert!(!read(&cpu("mode: HOST"), "", "").unwrap().watches_queues());
}

#[test]
fn a_threshold_is_all_or_nothing_and_a_scaled_trigger_is_what_lies_between() {
    let ramp = |trigger: &str| -> Ramp {
        let points = action("load_shed_points.tcp_listener_accept", trigger);
        read(&heap(), "", &points).unwrap().actions.remove(0).1.remove(0).ramp
    };
    let shares = |ramp: Ramp, at: [f64; 4]| at.map(|pressure| ramp.share(pressure));
    assert_eq!(shares(ramp(&threshold(HEAP, 0.5)), [0.0, 0.49, 0.5, 2.0]), [0.0, 0.0, 1.0, 1.0]);
    assert_eq!(shares(ramp(&threshold(HEAP, 0.0)), [0.0, 0.0, 0.0, 0.0]), [1.0; 4]);
    assert_eq!(shares(ramp(&scaled(0.5, 0.75)), [0.5, 0.625, 0.75, 2.0]), [0.0, 0.5, 1.0, 1.0]);
}

#[test]
fn what_is_not_supported_or_makes_no_sense_is_refused_by_its_place() {
    let stop = |trigger: &str| action("overload_actions.stop_accepting_requests", trigger);
    let shed = |trigger: &str| action("load_shed_points.http_connection_manager_decode_headers", trigger);
    let at = threshold(HEAP, 0.9);
    let (none, heap) = (String::new(), heap());
    let refused = [
        (
            heap.clone(),
            action("overload_actions.reset_high_memory_stream", &at),
            none.clone(),
            "actions[0].name: envoy.overload_actions.reset",
        ),
        (heap.clone(), action("load_shed_points.tcp_listener_accept", &at), none.clone(), "actions[0].name"),
        (heap.clone(), none.clone(), stop(&at), "loadshed_points[0].name"),
        (heap.clone(), none.clone(), format!("{}, {}", shed(&at), shed(&at)), "loadshed_points[1].name"),
        (heap.clone(), stop(&scaled(0.2, 0.2)), none.clone(), "actions[0].triggers[0].scaled.saturation_threshold"),
        (heap.clone(), stop(&scaled(0.2, 1.2)), none.clone(), "actions[0].triggers[0].scaled.saturation_threshold"),
        (heap.clone(), stop(&threshold(HEAP, 2.0)), none.clone(), "actions[0].triggers[0].threshold.value"),
        (heap.clone(), stop(&format!("{at}, {at}")), none.clone(), "actions[0].triggers[1].name"),
        (heap.clone(), stop(""), none.clone(), "actions[0].triggers"),
        (none.clone(), stop(&at), none.clone(), "actions[0].triggers[0].name: envoy.resource_monitors.fixed_heap is not"),
        (format!("{heap}, {heap}"), none.clone(), none.clone(), "resource_monitors[1].name"),
        (
            format!("{}, {}", connections(), connections().replace("global", "other")),
            none.clone(),
            none.clone(),
            "resource_monitors[1].typed_config: limits connections once more",
        ),
        (format!("{}, {}", connections(), connections()), none.clone(), none.clone(), "resource_monitors[1].name"),
        (heap.replace(HEAP, "''"), none.clone(), none.clone(), "resource_monitors[0].name"),
        (
            heap.replace("1000", "1000, max_heap_size_bytes_runtime: {default_value: 5, runtime_key: k}"),
            none.clone(),
            none.clone(),
            "resource_monitors[0].typed_config.max_heap_size_bytes_runtime",
        ),
        (
            monitor("x", "type.googleapis.com/google.protobuf.Struct", "value: {}"),
            none.clone(),
            none.clone(),
            "resource_monitors[0].typed_config: google.protobuf.Struct of x is not supported",
        ),
        (cpu("mode: 7"), none.clone(), none.clone(), "resource_monitors[0].typed_config.mode"),
        (queue(""), none.clone(), none.clone(), "resource_monitors[0].typed_config.max_delay"),
        (queue("max_delay: 0.001s"), none.clone(), none.clone(), "resource_monitors[0].typed_config.max_delay"),
    ];
    for (monitors, actions, points, part) in refused {
        let error = read(&monitors, &actions, &points).unwrap_err();
        assert!(error.contains(&format!("overload_manager.{part}")), "{part}: {error}");
    }
}

#[test]
fn limits_are_read_from_the_runtime() {
    let text = "layered_runtime: {layers: [{name: l, static_layer: {overload: {global_downstream_max_connections: 7}, envoy.resource_limits.listener.web.connection_limit: '3'}}]}";
    let limits = parse(text, "b.yaml").unwrap().overload.limits;
    assert_eq!((limits.connections, limits.listeners.get("web")), (Some(7), Some(&3)));
}
