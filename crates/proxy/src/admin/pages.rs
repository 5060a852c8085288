//! The small pages.
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use lateen_telemetry::stats::{Format, Query};
use serde_json::{Value, json};

use super::server::{AdminOptions, Ask, Reply};
use crate::main_thread::{Main, Pages, Phase};

pub(super) const HELP: &str = "\
admin commands are:
  /: this list
  /certs: print certs on machine
  /clusters: upstream cluster status (?format=json, ?filter=)
  /config_dump: dump current configs (?resource=, ?mask=, ?name_regex=, ?include_eds)
  /drain_listeners (POST): drain listeners (?graceful, ?skip_exit, ?inboundonly)
  /healthcheck/fail (POST): cause the server to fail health checks
  /healthcheck/ok (POST): cause the server to pass health checks
  /help: print out list of admin commands
  /hot_restart_version: print the hot restart compatibility version
  /init_dump: what has to arrive before it serves (?mask=)
  /listeners: print listener info (?format=json)
  /logging (POST): show or change log levels (?level=, ?paths=NAME:LEVEL,…)
  /memory: print current allocation/heap usage
  /quitquitquit (POST): exit the server
  /ready: print server state, return 200 if LIVE, otherwise return 503
  /reopen_logs (POST): reopen access logs
  /reset_counters (POST): reset all counters to zero
  /runtime: print runtime values
  /server_info: print server version/status information
  /stats: print server stats (?filter=, ?invert_filter, ?usedonly, ?format=json|prometheus, ?type=, ?histogram_buckets=)
  /stats/prometheus: print server stats in prometheus format
";

pub(super) fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::PreInitializing => "PRE_INITIALIZING",
        Phase::Initializing => "INITIALIZING",
        Phase::Live => "LIVE",
        Phase::Draining => "DRAINING",
    }
}

pub(super) fn ready(main: &Main) -> Reply {
    let phase = main.shown_phase();
    let status = if phase == Phase::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Reply::error(status, format!("{}\n", state(phase)))
}

pub(super) fn server_info(main: &Main, options: &AdminOptions) -> Reply {
    let node = lateen_proto::json::Codec::new().write(&main.bootstrap.node).unwrap_or_default();
    let mut command_line = json!({
        "concurrency": main.workers,
        "mode": "Serve",
        "restart_epoch": main.lineage.epoch,
        "drain_time": duration(main.drain_time),
        "drain_strategy": if main.drain_gradually { "Gradual" } else { "Immediate" },
        "disable_hot_restart": !main.can_restart,
    });
    if let (Value::Object(fields), Value::Object(others)) = (&mut command_line, &options.command_line) {
        fields.extend(others.clone());
    }
    Reply::json(&json!({
        "version": version(),
        "state": state(main.shown_phase()),
        "uptime_current_epoch": duration(main.uptime()),
        "uptime_all_epochs": duration(main.lineage.first_started.elapsed().unwrap_or(main.uptime())),
        "hot_restart_version": restart_version(main),
        "command_line_options": command_line,
        "node": node,
        "hot_restart_initializing": main.is_held(),
    }))
}

/// What is being waited for. All of it is the server's own: nothing else has to be ready before another thing is.
pub(super) fn init_dump(main: &Main, ask: &Ask<'_>) -> Reply {
    let waiting = if main.is_warm() { Vec::new() } else { main.waiting() };
    // `mask=listener` asks for the targets of listeners alone.
    let of_listeners = ask.parameter("mask").is_some_and(|mask| mask == "listener");
    let names: Vec<String> = waiting.into_iter().filter(|name| !of_listeners || name.contains("listener")).collect();
    if names.is_empty() {
        return Reply::json(&json!({}));
    }
    Reply::json(&json!({"unready_targets_dumps": [{"name": "init manager Server", "target_names": names}]}))
}

pub(super) fn reset_counters(main: &Main) -> Reply {
    main.registry.reset_counters();
    Reply::text("OK\n")
}

pub(super) fn reopen_logs(main: &Main) -> Reply {
    main.reopen_logs.notify_one();
    Reply::text("OK\n")
}

pub(super) fn hot_restart_version(main: &Main) -> Reply {
    Reply::text(restart_version(main))
}

fn restart_version(main: &Main) -> String {
    if main.can_restart { crate::restart::version() } else { "disabled".to_owned() }
}

/// In the shape of Envoy's: revision, version, state, build type, TLS library.
fn version() -> String {
    format!("lateen/{}/Clean/{}/rustls", env!("CARGO_PKG_VERSION"), if cfg!(debug_assertions) { "DEBUG" } else { "RELEASE" })
}

pub(super) fn stats(main: &Main, ask: &Ask<'_>) -> Reply {
    match Query::parse(ask.query) {
        Ok(query) => render(main, &query),
        Err(e) => Reply::error(StatusCode::BAD_REQUEST, format!("{e}\n")),
    }
}

pub(super) fn prometheus(main: &Main, ask: &Ask<'_>) -> Reply {
    match Query::parse(ask.query) {
        Ok(query) => render(main, &Query { format: Format::Prometheus, ..query }),
        Err(e) => Reply::error(StatusCode::BAD_REQUEST, format!("{e}\n")),
    }
}

fn render(main: &Main, query: &Query) -> Reply {
    Reply { status: StatusCode::OK, content_type: query.content_type(), body: query.render(&main.registry).into() }
}

/// Resident memory stands for the heap: there is no allocator that could tell more.
pub(super) fn memory() -> Reply {
    let pages = Pages::now();
    Reply::json(&json!({
        "allocated": pages.data_bytes().to_string(),
        "heap_size": pages.virtual_bytes().to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": pages.resident_bytes().to_string(),
    }))
}

pub(super) fn logging(options: &AdminOptions, ask: &Ask<'_>) -> Reply {
    let Some(control) = &options.logging else {
        return Reply::error(StatusCode::NOT_IMPLEMENTED, "the log level of this process is fixed\n");
    };
    let change = match wanted_level(ask) {
        Ok(change) => change,
        Err(why) => return Reply::error(StatusCode::BAD_REQUEST, format!("error: {why}\n{LOGGING_USAGE}")),
    };
    match control(change.as_deref()) {
        Ok(level) => Reply::text(format!("active loggers:\n{}", loggers(&level))),
        Err(reason) => Reply::error(StatusCode::BAD_REQUEST, format!("error: {reason}\n{LOGGING_USAGE}")),
    }
}

const LOGGING_USAGE: &str = "\
usage: /logging?<name>=<level> (change single level)
usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)
usage: /logging?level=<level> (change all levels)
names: modules of this program, such as lateen_proxy or lateen_xds
levels: trace debug info warning error critical off
";

/// The filter that a request asks for, as directives: `level`, or `name=level` with commas between.
fn wanted_level(ask: &Ask<'_>) -> Result<Option<String>, &'static str> {
    let one = |pair: &str| {
        let (name, of) = pair.split_once([':', '=']).ok_or("unknown logger name")?;
        Ok(format!("{name}={}", level(of)?))
    };
    let several = |text: &str| text.split(',').map(one).collect::<Result<Vec<_>, _>>().map(|all| all.join(","));
    if let Some(of) = ask.parameter("level").filter(|l| !l.is_empty()) {
        return level(&of).map(|of| Some(of.to_owned()));
    }
    if let Some(paths) = ask.parameter("paths").or_else(|| ask.parameter("group")).filter(|p| !p.is_empty()) {
        return several(&paths).map(Some);
    }
    if ask.query.is_empty() { Ok(None) } else { several(&ask.query.replace('&', ",")).map(Some) }
}

/// Envoy's levels by the names that our log knows.
fn level(name: &str) -> Result<&'static str, &'static str> {
    Ok(match name {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warning" | "warn" => "warn",
        "error" | "critical" => "error",
        "off" => "off",
        _ => return Err("unknown logger level"),
    })
}

/// One line for each module that has a level of its own.
fn loggers(directives: &str) -> String {
    let line = |directive: &str| {
        let (name, level) = directive.split_once('=').unwrap_or(("all", directive));
        format!("  {name}: {}\n", if level == "warn" { "warning" } else { level })
    };
    directives.split(',').map(line).collect()
}

/// `?graceful` keeps listeners open for the drain time, `?skip_exit` for good, `?inboundonly` lets outbound ones be
/// (Envoy admin).
pub(super) fn drain(main: &Arc<Main>, ask: &Ask<'_>) -> Reply {
    let inbound_only = ask.parameter("inboundonly").is_some();
    if ask.parameter("skip_exit").is_some() {
        main.drain_connections(inbound_only);
    } else {
        main.drain_listeners(ask.parameter("graceful").is_some(), inbound_only);
    }
    Reply::text("OK\n")
}

pub(super) fn quit(main: &Main) -> Reply {
    main.quit.send_replace(true);
    Reply::text("OK\n")
}

pub(super) fn health_check(main: &Main, failing: bool) -> Reply {
    main.set_failing_health_check(failing);
    Reply::text("OK\n")
}

/// Names in a row, or a word for none.
pub(super) fn listed(names: &[String]) -> String {
    if names.is_empty() { "the workers".to_owned() } else { names.join(", ") }
}

/// Protobuf's JSON form of a duration.
fn duration(value: Duration) -> String {
    format!("{}s", value.as_secs())
}
