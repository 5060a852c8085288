//! The ports that Istio's agent opens in a pod: health, statistics, and its own control port.
use std::sync::Arc;

use http::{Method, StatusCode};

use super::pages;
use super::server::{Ask, Reply};
use crate::main_thread::{Main, Phase};

/// 15021.
pub(super) fn health(main: &Main, ask: &Ask<'_>) -> Reply {
    match ask.path {
        "/healthz/ready" => healthz(main),
        _ => not_found(),
    }
}

/// 15090.
pub(super) fn stats(main: &Main, ask: &Ask<'_>) -> Reply {
    match ask.path {
        "/stats/prometheus" => pages::prometheus(main, ask),
        _ => not_found(),
    }
}

/// 15020.
pub(super) fn agent(main: &Arc<Main>, ask: &Ask<'_>) -> Reply {
    match (ask.path, ask.method == Method::POST) {
        ("/healthz/ready", _) => healthz(main),
        ("/stats/prometheus", _) => pages::prometheus(main, ask),
        ("/quitquitquit", true) => pages::quit(main),
        ("/drain", true) => pages::drain(main, ask),
        ("/quitquitquit" | "/drain", false) => Reply::error(StatusCode::METHOD_NOT_ALLOWED, "POST required\n"),
        (path, _) if path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/") => Reply::error(
            StatusCode::NOT_IMPLEMENTED,
            "probes of the application are not relayed; point the probe at the application's port\n",
        ),
        _ => not_found(),
    }
}

/// Ready once the first configuration is in force; not while it drains.
fn healthz(main: &Main) -> Reply {
    match main.phase() {
        Phase::Live if !main.is_failing_health_check() => Reply::text("ready\n"),
        phase => {
            Reply::error(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {phase:?}; waiting for {}\n", pages::listed(&main.waiting())))
        }
    }
}

fn not_found() -> Reply {
    Reply::error(StatusCode::NOT_FOUND, "not found\n")
}
