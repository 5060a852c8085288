//! The small pages.
use std::sync::Arc;

use http::{Method, StatusCode};
use lateen_telemetry::stats::{Format, Query};
use serde_json::json;

use super::dump::duration;
use super::server::{AdminOptions, Ask, Reply};
use crate::main_thread::{Main, Phase};

pub(super) const HELP: &str = "\
  /certs: print certs on machine
  /clusters: upstream cluster status (?format=json)
  /config_dump: dump current configs (?resource=, ?name_regex=, ?include_eds)
  /drain_listeners (POST): drain listeners (?graceful, ?inboundonly)
  /healthcheck/fail (POST): cause the server to fail health checks
  /healthcheck/ok (POST): cause the server to pass health checks
  /help: print out list of admin commands
  /hot_restart_version: print the hot restart compatibility version
  /listeners: print listener info (?format=json)
  /logging: show the log level; POST ?level=LEVEL changes it
  /memory: print current allocation/heap usage
  /quitquitquit (POST): exit the server
  /ready: print server state, return 200 if LIVE, otherwise return 503
  /runtime: print runtime values
  /server_info: print server version/status information
  /stats: print server stats (?filter=, ?usedonly, ?format=json|prometheus, ?type=)
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
    let phase = main.phase();
    let status = if phase == Phase::Live && !main.is_failing_health_check() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Reply::error(status, format!("{}\n", state(phase)))
}

pub(super) fn server_info(main: &Main) -> Reply {
    let uptime = duration(main.uptime());
    let node = lateen_proto::json::Codec::new().write(&main.bootstrap.node).unwrap_or_default();
    Reply::json(&json!({
        "version": version(),
        "state": state(main.phase()),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": duration(main.lineage.first_started.elapsed().unwrap_or(main.uptime())),
        "hot_restart_version": restart_version(main),
        "command_line_options": {"concurrency": main.workers, "mode": "Serve", "restart_epoch": main.lineage.epoch},
        "node": node,
    }))
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
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = |index: usize| statm.split_whitespace().nth(index).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 4096;
    Reply::json(&json!({
        "allocated": pages(5).to_string(),
        "heap_size": pages(0).to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": pages(1).to_string(),
    }))
}

pub(super) fn logging(options: &AdminOptions, ask: &Ask<'_>) -> Reply {
    let Some(control) = &options.logging else {
        return Reply::error(StatusCode::NOT_IMPLEMENTED, "the log level of this process is fixed\n");
    };
    // Envoy also takes `?paths=name:level,…` and `?name=level`; the level filter understands both as directives.
    let wanted = ask
        .parameter("level")
        .or_else(|| ask.parameter("paths").map(|p| p.replace(':', "=")))
        .or_else(|| (!ask.query.is_empty()).then(|| ask.query.replace('&', ",")));
    let change = wanted.as_deref().filter(|_| *ask.method == Method::POST);
    match control(change) {
        Ok(level) => Reply::text(format!("active loggers:\n  {level}\n")),
        Err(reason) => Reply::error(StatusCode::BAD_REQUEST, format!("{reason}\n")),
    }
}

/// `?graceful` keeps listeners open for the drain time, `?inboundonly` lets outbound ones be (Envoy admin).
pub(super) fn drain(main: &Arc<Main>, ask: &Ask<'_>) -> Reply {
    main.drain_listeners(ask.parameter("graceful").is_some(), ask.parameter("inboundonly").is_some());
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
