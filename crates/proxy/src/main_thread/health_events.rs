//! Events of active health checks as lines of JSON, as Envoy writes its `HealthCheckEvent`; without the endpoint's metadata,
//! which is not kept.
use std::time::SystemTime;

use lateen_balance::health::Checked;
use lateen_balance::{Address, Host};
use lateen_snapshot::cluster::ClusterConfig;
use lateen_snapshot::health_check::{EventLog, HealthCheck, HealthCheckKind};
use lateen_telemetry::access_log::{LogWriter, TimeFormat};
use serde_json::Value;

use super::probe::{Answer, FailureType};
use crate::worker::LogFiles;

/// The files of one check of one host.
pub(super) struct Events {
    settings: EventLog,
    writers: Vec<LogWriter>,
    time: TimeFormat,
    /// What every line begins with, and what comes behind the event.
    host: String,
    locality: String,
}

/// What one result was to the host that it is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// It takes the host out or back in.
    pub(super) changed: bool,
    pub(super) first: bool,
    /// The host was degraded before.
    pub(super) was_degraded: bool,
}

impl Events {
    pub(super) fn of(check: &HealthCheck, config: &ClusterConfig, host: &Host, files: &LogFiles) -> Self {
        let kind = match check.kind {
            HealthCheckKind::Http(_) => "HTTP",
            HealthCheckKind::Tcp { .. } => "TCP",
            HealthCheckKind::Grpc { .. } => "GRPC",
        };
        let address = match &host.address {
            Address::Socket(socket) => format!(
                r#""socket_address":{{"protocol":"TCP","address":{},"port_value":{},"resolver_name":"","ipv4_compat":false,"network_namespace_filepath":""}}"#,
                text(&socket.ip().to_string()),
                socket.port()
            ),
            Address::Pipe(path) => format!(r#""pipe":{{"path":{},"mode":0}}"#, text(path)),
        };
        let at = &host.locality;
        Self {
            writers: check.events.paths.iter().filter_map(|path| files.writer(path)).collect(),
            settings: check.events.clone(),
            time: TimeFormat::iso8601(),
            host: format!(r#"{{"health_checker_type":"{kind}","host":{{{address}}},"cluster_name":{}"#, text(&config.name)),
            locality: format!(
                r#""locality":{{"region":{},"zone":{},"sub_zone":{}}}"#,
                text(&at.region),
                text(&at.zone),
                text(&at.sub_zone)
            ),
        }
    }

    /// Writes what a result means, in Envoy's order.
    pub(super) fn tell(&mut self, answer: Answer, outcome: Outcome) {
        if self.writers.is_empty() {
            return;
        }
        let Outcome { changed, first, was_degraded } = outcome;
        if answer.result == Checked::Healthy {
            if changed {
                self.line(&format!(r#""add_healthy_event":{{"first_check":{first}}},"#), "", "");
            } else if self.settings.always_successes {
                self.line("", "", r#","successful_health_check_event":{}"#);
            }
            match (was_degraded, answer.degraded) {
                (false, true) => self.line("", r#""degraded_healthy_host":{},"#, ""),
                (true, false) => self.line("", r#""no_longer_degraded_host":{},"#, ""),
                _ => {}
            }
            return;
        }
        let failure = match answer.failure {
            FailureType::Active => "ACTIVE",
            FailureType::Passive => "PASSIVE",
            FailureType::Network => "NETWORK",
            FailureType::NetworkTimeout => "NETWORK_TIMEOUT",
        };
        let status = answer.status;
        if changed {
            let event = format!(r#""eject_unhealthy_event":{{"failure_type":"{failure}","http_status_code":{status}}},"#);
            self.line(&event, "", "");
        }
        if first || self.settings.always_failures {
            let event = format!(
                r#""health_check_failure_event":{{"failure_type":"{failure}","first_check":{first},"http_status_code":{status}}},"#
            );
            self.line("", &event, "");
        }
    }

    /// One event; where it stands goes by its field's number.
    fn line(&mut self, before_time: &str, after_time: &str, last: &str) {
        let Self { writers, time, host, locality, .. } = self;
        for writer in writers {
            writer.line(|out| {
                out.extend_from_slice(format!("{host},{before_time}\"timestamp\":\"").as_bytes());
                time.write(SystemTime::now(), out);
                out.extend_from_slice(format!("\",{after_time}{locality}{last}}}\n").as_bytes());
            });
            // Events are few, and who waits for them wants them now.
            writer.flush();
        }
    }
}

fn text(value: &str) -> Value {
    Value::from(value)
}
