//! Access logs: where they go, their format, and which requests they hold.
use std::sync::Arc;

use lateen_proto::envoy::config::accesslog::v3::{self as proto, access_log, access_log_filter::FilterSpecifier, comparison_filter};
use lateen_proto::envoy::config::core::v3::{self as core, substitution_format_string};
use lateen_proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use lateen_proto::envoy::extensions::access_loggers::stream::v3 as stream;
use lateen_proto::{Any, any};
use lateen_telemetry::ResponseFlags;
use lateen_telemetry::access_log::{JsonFormat, TextFormat};

use super::common::{data, open, struct_json};
use super::invalid::{Invalid, Result, Within, each, harmless, refuse};
use super::matcher::header;
use crate::http::{AccessLog, LogFilter, LogFormat};
use crate::matcher::ValueMatcher;

pub(crate) fn logs(values: Vec<proto::AccessLog>, field: &str) -> Result<Vec<Arc<AccessLog>>> {
    each(values, field, |v| log(v).map(Arc::new))
}

fn log(value: proto::AccessLog) -> Result<AccessLog> {
    let proto::AccessLog { name, filter, config_type } = value;
    let filter = filter.map(|f| log_filter(f, 0)).transpose().within("filter")?;
    let Some(access_log::ConfigType::TypedConfig(config)) = config_type else {
        return Err(Invalid::field("typed_config", "is missing"));
    };
    let (path, format) = sink(&name, &config)?;
    can_be_written(&format).map_err(|why| Invalid::field("log_format", why))?;
    Ok(AccessLog { path: path.into(), format, filter })
}

/// An operator that cannot be written is refused now, not found missing in the log later.
fn can_be_written(format: &LogFormat) -> std::result::Result<(), String> {
    match format {
        LogFormat::Default => Ok(()),
        LogFormat::Text(text) => TextFormat::compile(text).map(drop),
        LogFormat::Json(json) => JsonFormat::compile(json).map(drop),
    }
    .map_err(|e| e.to_string())
}

/// The format of a reply's body.
pub(crate) fn body(value: core::SubstitutionFormatString) -> Result<LogFormat> {
    let format = substitution(value)?;
    can_be_written(&format).map_err(Invalid::new)?;
    Ok(format)
}

/// Which replies are meant.
pub(crate) fn filter(value: proto::AccessLogFilter) -> Result<LogFilter> {
    log_filter(value, 0)
}

fn sink(name: &str, config: &Any) -> Result<(String, LogFormat)> {
    if any::is::<FileAccessLog>(config) {
        let FileAccessLog { path, access_log_format } = open(config)?;
        if path.is_empty() {
            return Err(Invalid::field("path", "is empty; give a file, /dev/stdout or /dev/null"));
        }
        let format = match access_log_format {
            None => LogFormat::Default,
            Some(AccessLogFormat::Format(text)) => LogFormat::Text(text.into()),
            Some(AccessLogFormat::JsonFormat(json) | AccessLogFormat::TypedJsonFormat(json)) => {
                LogFormat::Json(Arc::new(struct_json(&json)))
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
    let core::SubstitutionFormatString { omit_empty_values, content_type, formatters, json_format_options, format } = value;
    // The built-in operators include those of these extensions; an operator we lack is refused by itself.
    harmless!(content_type, formatters, json_format_options);
    refuse!(omit_empty_values);
    Ok(match format {
        Some(Format::TextFormat(text)) => LogFormat::Text(text.into()),
        Some(Format::TextFormatSource(source)) => {
            let bytes = data(source).within("text_format_source")?;
            let text = String::from_utf8(bytes).map_err(|_| Invalid::field("text_format_source", "is not UTF-8"))?;
            LogFormat::Text(text.into())
        }
        Some(Format::JsonFormat(json)) => LogFormat::Json(Arc::new(struct_json(&json))),
        None => return Err(Invalid::new("is empty; give text_format_source or json_format")),
    })
}

fn log_filters(values: Vec<proto::AccessLogFilter>, field: &str, depth: u32) -> Result<Vec<LogFilter>> {
    each(values, field, |v| log_filter(v, depth + 1))
}

/// None at all stand for any.
fn response_flags(names: &[String]) -> Result<ResponseFlags> {
    if names.is_empty() {
        return Ok(ResponseFlags::every());
    }
    names.iter().try_fold(ResponseFlags::NONE, |all, name| {
        let flag = ResponseFlags::from_short(name).ok_or_else(|| Invalid::new(format!("`{name}` is no response flag")))?;
        Ok(all | flag)
    })
}

fn log_filter(value: proto::AccessLogFilter, depth: u32) -> Result<LogFilter> {
    if depth > 16 {
        return Err(Invalid::new("is nested more than 16 deep"));
    }
    Ok(match value.filter_specifier {
        Some(FilterSpecifier::StatusCodeFilter(f)) => {
            LogFilter::StatusCode(comparison(f.comparison).within("status_code_filter.comparison")?)
        }
        Some(FilterSpecifier::DurationFilter(f)) => LogFilter::Duration(comparison(f.comparison).within("duration_filter.comparison")?),
        Some(FilterSpecifier::NotHealthCheckFilter(_)) => LogFilter::NotHealthCheck,
        Some(FilterSpecifier::AndFilter(f)) => LogFilter::And(log_filters(f.filters, "and_filter.filters", depth)?),
        Some(FilterSpecifier::OrFilter(f)) => LogFilter::Or(log_filters(f.filters, "or_filter.filters", depth)?),
        Some(FilterSpecifier::ResponseFlagFilter(f)) => {
            LogFilter::ResponseFlags(response_flags(&f.flags).within("response_flag_filter.flags")?)
        }
        Some(FilterSpecifier::HeaderFilter(f)) => {
            let matcher = f.header.ok_or_else(|| Invalid::field("header_filter.header", "is missing"))?;
            LogFilter::Header(header(matcher).within("header_filter.header")?)
        }
        Some(FilterSpecifier::TraceableFilter(_)) => return Err(Invalid::unsupported("traceable_filter")),
        Some(FilterSpecifier::RuntimeFilter(_)) => return Err(Invalid::unsupported("runtime_filter")),
        Some(FilterSpecifier::GrpcStatusFilter(_)) => return Err(Invalid::unsupported("grpc_status_filter")),
        Some(FilterSpecifier::ExtensionFilter(_)) => return Err(Invalid::unsupported("extension_filter")),
        Some(FilterSpecifier::MetadataFilter(_)) => return Err(Invalid::unsupported("metadata_filter")),
        Some(FilterSpecifier::LogTypeFilter(_)) => return Err(Invalid::unsupported("log_type_filter")),
        None => return Err(Invalid::new("has no filter")),
    })
}

fn comparison(value: Option<proto::ComparisonFilter>) -> Result<ValueMatcher> {
    use comparison_filter::Op;
    let proto::ComparisonFilter { op, value } = value.ok_or_else(|| Invalid::new("is missing"))?;
    let core::RuntimeUInt32 { default_value, runtime_key } = value.ok_or_else(|| Invalid::field("value", "is missing"))?;
    harmless!(runtime_key);
    let value = u64::from(default_value);
    match Op::try_from(op) {
        Ok(Op::Eq) => Ok(ValueMatcher::Equal(value)),
        Ok(Op::Ge) => Ok(ValueMatcher::GreaterOrEqual(value)),
        Ok(Op::Le) => Ok(ValueMatcher::LessOrEqual(value)),
        Ok(Op::Ne) => Ok(ValueMatcher::NotEqual(value)),
        Err(_) => Err(Invalid::field("op", format!("{op} is not known"))),
    }
}

/// The admin server's own log is not written, and says so instead of being silently empty.
pub(crate) fn refuse_admin_logs(values: &[proto::AccessLog]) -> Result<()> {
    let is_null = |log: &proto::AccessLog| match &log.config_type {
        Some(access_log::ConfigType::TypedConfig(config)) => any::open::<FileAccessLog>(config).is_ok_and(|file| file.path == "/dev/null"),
        None => true,
    };
    if values.iter().all(is_null) { Ok(()) } else { Err(Invalid::unsupported("access_log")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_flags_are_one_set_settled_beforehand() {
        let settled = |names: &[&str]| response_flags(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(settled(&["UH", "NR"]).unwrap(), ResponseFlags::NO_HEALTHY_UPSTREAM | ResponseFlags::NO_ROUTE_FOUND);
        assert_eq!(settled(&[]).unwrap(), ResponseFlags::every(), "any");
        assert!(settled(&["UH", "XX"]).unwrap_err().to_string().contains("`XX`"));
    }
}
