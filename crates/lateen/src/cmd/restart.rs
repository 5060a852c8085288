//! How a new `lateen proxy` takes over from an old one: Envoy's flags for it.
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use lateen_proxy::restart::{Options, Place, SocketPath};

/// One process follows another that has the same base id and the epoch before. A process that is given none of these cannot
/// be replaced: two plain ones on a machine must not be taken for each other.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Hot restart")]
pub(super) struct RestartArgs {
    /// How often this proxy was restarted: with N above 0, take over from the running one of N - 1
    #[arg(long, value_name = "N")]
    restart_epoch: Option<u64>,
    /// Tells proxies of one machine apart; the same for all restarts of one [default: 0]
    #[arg(long, value_name = "N")]
    base_id: Option<u32>,
    /// Choose a base id that nobody has
    #[arg(long, conflicts_with = "base_id")]
    use_dynamic_base_id: bool,
    /// Write the base id to this file
    #[arg(long, value_name = "FILE")]
    base_id_path: Option<PathBuf>,
    /// After taking over, seconds until the old process ends, whatever it has open
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    parent_shutdown_time_s: u64,
    /// Where proxies find each other: a path, or @ and a name, which leaves no file
    #[arg(long, value_name = "PATH", default_value = "@lateen_domain_socket")]
    socket_path: String,
    /// The mode of that file, in octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = octal)]
    socket_mode: u32,
    /// Start also when there is no process to take over from
    #[arg(long)]
    skip_hot_restart_on_no_parent: bool,
    /// Let counters begin from zero after taking over
    #[arg(long)]
    skip_hot_restart_parent_stats: bool,
    /// Neither take over nor be taken over from
    #[arg(long, conflicts_with = "use_dynamic_base_id")]
    disable_hot_restart: bool,
    /// Print which processes can follow one another, and end
    #[arg(long, id = "hot_restart_version")]
    pub(super) hot_restart_version: bool,
}

impl RestartArgs {
    /// For `/server_info`, under Envoy's names.
    pub(super) fn shown(&self) -> serde_json::Value {
        serde_json::json!({
            "base_id": self.base_id.unwrap_or(0).to_string(),
            "use_dynamic_base_id": self.use_dynamic_base_id,
            "base_id_path": self.base_id_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            "parent_shutdown_time": format!("{}s", self.parent_shutdown_time_s),
            "socket_path": self.socket_path,
            "socket_mode": self.socket_mode,
            "skip_hot_restart_on_no_parent": self.skip_hot_restart_on_no_parent,
            "skip_hot_restart_parent_stats": self.skip_hot_restart_parent_stats,
        })
    }

    /// What the proxy is to do about it. A base id that is to be chosen is taken at once.
    pub(super) fn options(&self) -> anyhow::Result<Option<Options>> {
        let is_asked_for = self.restart_epoch.is_some() || self.base_id.is_some() || self.use_dynamic_base_id;
        if self.disable_hot_restart || !is_asked_for {
            return Ok(None);
        }
        let place = Place {
            path: SocketPath::parse(&self.socket_path),
            mode: self.socket_mode,
            base_id: self.base_id.unwrap_or(0),
            epoch: self.restart_epoch.unwrap_or(0),
        };
        let (place, bound) = if self.use_dynamic_base_id {
            anyhow::ensure!(
                place.epoch == 0,
                "--use-dynamic-base-id is for the first process; a restart needs the --base-id of the one before"
            );
            let (place, bound) = place.bind_any().context("no base id can be had")?;
            (place, Some(bound))
        } else {
            (place, None)
        };
        if let Some(file) = &self.base_id_path {
            std::fs::write(file, place.base_id.to_string())
                .with_context(|| format!("the base id cannot be written to {}", file.display()))?;
        }
        Ok(Some(Options {
            place,
            bound,
            parent_shutdown: Duration::from_secs(self.parent_shutdown_time_s),
            parent_optional: self.skip_hot_restart_on_no_parent,
            skip_figures: self.skip_hot_restart_parent_stats,
        }))
    }
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| format!("`{text}` is no mode such as 600"))
}
