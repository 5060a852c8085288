//! Access logs: where they go, and their format.
use std::sync::Arc;

use lateen_proto::envoy::config::accesslog::v3::{self as proto, access_log};
use lateen_proto::envoy::config::core::v3::{self as core, substitution_format_string};
use lateen_proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use lateen_proto::envoy::extensions::access_loggers::stream::v3 as stream;
use lateen_proto::{Any, any};
use lateen_telemetry::access_log::{JsonFormat, TextFormat};

use super::common::{data, open, struct_json};
use super::invalid::{Invalid, Result, Within, each, harmless};
use super::{log_filter, opaque};
use crate::http::{AccessLog, LogFormat};

pub(crate) fn logs(values: Vec<proto::AccessLog>, field: &str) -> Result<Vec<Arc<AccessLog>>> {
    each(values, field, |v| log(v).map(Arc::new))
}

fn log(value: proto::AccessLog) -> Result<AccessLog> {
    let proto::AccessLog { name, filter, config_type } = value;
    let filter = filter.map(log_filter::filter).transpose().within("filter")?;
    let Some(access_log::ConfigType::TypedConfig(config)) = config_type else {
        return Err(Invalid::field("typed_config", "is missing"));
    };
    let (path, format) = sink(&name, &opaque::typed(config)?)?;
    can_be_written(&format).map_err(|why| Invalid::field("log_format", why))?;
    Ok(AccessLog { path: path.into(), format, filter })
}

/// An operator that cannot be written is refused now, not found missing in the log later.
fn can_be_written(format: &LogFormat) -> std::result::Result<(), String> {
    match format {
        LogFormat::Default => Ok(()),
        LogFormat::Text { format, .. } => TextFormat::compile(format).map(drop),
        LogFormat::Json { format, .. } => JsonFormat::compile(format).map(drop),
    }
    .map_err(|e| e.to_string())
}

/// The format of a reply's body.
pub(crate) fn body(value: core::SubstitutionFormatString) -> Result<LogFormat> {
    let format = substitution(value)?;
    can_be_written(&format).map_err(Invalid::new)?;
    Ok(format)
}

fn sink(name: &str, config: &Any) -> Result<(String, LogFormat)> {
    if any::is::<FileAccessLog>(config) {
        let FileAccessLog { path, access_log_format } = open(config)?;
        if path.is_empty() {
            return Err(Invalid::field("path", "is empty; give a file, /dev/stdout or /dev/null"));
        }
        let format = match access_log_format {
            None => LogFormat::Default,
            Some(AccessLogFormat::Format(text)) => LogFormat::Text { format: text.into(), omit_missing: false },
            Some(AccessLogFormat::JsonFormat(json) | AccessLogFormat::TypedJsonFormat(json)) => {
                LogFormat::Json { format: Arc::new(struct_json(&json)), omit_missing: false }
            }
            Some(AccessLogFormat::LogFormat(f)) => substitution(f).within("log_format")?,
        };
        return Ok((path, format));
    }
    if any::is::<stream::StdoutAccessLog>(config) {
        let stream::StdoutAccessLog { access_log_format } = open(config)?;
        let format = access_log_format.map(|stream::stdout_access_log::AccessLogFormat::LogFormat(f)| substitution(f).within("log_format"));
        return Ok(("/dev/stdout".to_owned(), format.transpose()?.unwrap_or(LogFormat::Default)));
    }
    if any::is::<stream::StderrAccessLog>(config) {
        let stream::StderrAccessLog { access_log_format } = open(config)?;
        let format = access_log_format.map(|stream::stderr_access_log::AccessLogFormat::LogFormat(f)| substitution(f).within("log_format"));
        return Ok(("/dev/stderr".to_owned(), format.transpose()?.unwrap_or(LogFormat::Default)));
    }
    Err(Invalid::new(format!("access log {name} ({}) is not supported; use envoy.access_loggers.file", any::name_of(&config.type_url))))
}

fn substitution(value: core::SubstitutionFormatString) -> Result<LogFormat> {
    use substitution_format_string::Format;
    let core::SubstitutionFormatString { omit_empty_values: omit_missing, content_type, formatters, json_format_options, format } = value;
    // The built-in operators include those of these extensions; an operator we lack is refused by itself.
    harmless!(content_type, formatters, json_format_options);
    Ok(match format {
        Some(Format::TextFormat(text)) => LogFormat::Text { format: text.into(), omit_missing },
        Some(Format::TextFormatSource(source)) => {
            let bytes = data(source).within("text_format_source")?;
            let text = String::from_utf8(bytes).map_err(|_| Invalid::field("text_format_source", "is not UTF-8"))?;
            LogFormat::Text { format: text.into(), omit_missing }
        }
        Some(Format::JsonFormat(json)) => LogFormat::Json { format: Arc::new(struct_json(&json)), omit_missing },
        None => return Err(Invalid::new("is empty; give text_format_source or json_format")),
    })
}

/// The admin server's own log is not written, and says so instead of being silently empty.
pub(crate) fn refuse_admin_logs(values: &[proto::AccessLog]) -> Result<()> {
    let is_null = |log: &proto::AccessLog| match &log.config_type {
        Some(access_log::ConfigType::TypedConfig(config)) => any::open::<FileAccessLog>(config).is_ok_and(|file| file.path == "/dev/null"),
        None => true,
    };
    if values.iter().all(is_null) { Ok(()) } else { Err(Invalid::unsupported("access_log")) }
}
