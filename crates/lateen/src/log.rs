//! Where the program's own log goes: standard error, at a level that can be changed while it runs.
use std::io::IsTerminal;
use std::sync::Arc;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// Reads (`None`) or changes the level of a log that has been started: `info`, or `lateen_xds=debug,info`.
/// Answers with the level in force.
pub(crate) type Level = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// Starts logging at `level`, unless `RUST_LOG` says otherwise.
pub(crate) fn start(level: &str) -> Level {
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(level)).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(true);
    // A second start (tests in one process) keeps the first.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Arc::new(move |level| {
        if let Some(level) = level {
            handle.reload(EnvFilter::try_new(level).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        }
        handle.with_current(ToString::to_string).map_err(|e| e.to_string())
    })
}
