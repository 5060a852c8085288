//! Where the program's own log goes: standard error, at a level that can be changed while it runs.
use std::io::IsTerminal;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// Changes the filter of a log that has been started: takes `info`, or `lateen_xds=debug,info`.
pub(crate) type SetLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Starts logging at `level`, unless `RUST_LOG` says otherwise.
pub(crate) fn start(level: &str) -> SetLevel {
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(level)).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(true);
    // A second start (tests in one process) keeps the first.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Box::new(move |level| {
        let filter = EnvFilter::try_new(level).map_err(|e| e.to_string())?;
        handle.reload(filter).map_err(|e| e.to_string())
    })
}
