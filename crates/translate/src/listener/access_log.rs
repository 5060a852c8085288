//! Access logs, as the mesh configuration asks for them: Istio's default text line or JSON object.
use lateen_core::access_log::{ISTIO_JSON, ISTIO_TEXT};
use lateen_proto::envoy::extensions::access_loggers::file::v3 as file_v3;

use crate::wire::{Struct, accesslog_v3, any, core_v3, string};
use crate::world::mesh::Mesh;

/// The log of a connection manager or TCP proxy; empty unless the mesh names a file.
pub(crate) fn always(mesh: &Mesh) -> Vec<accesslog_v3::AccessLog> {
    file_log(mesh, None).into_iter().collect()
}

/// The log of a listener: only connections that no filter chain took, which nobody else would report.
pub(crate) fn unmatched(mesh: &Mesh) -> Vec<accesslog_v3::AccessLog> {
    use accesslog_v3::access_log_filter::FilterSpecifier;
    if mesh.disable_listener_log {
        return Vec::new();
    }
    let no_route = accesslog_v3::AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(accesslog_v3::ResponseFlagFilter { flags: vec!["NR".to_owned()] })),
    };
    file_log(mesh, Some(no_route)).into_iter().collect()
}

fn file_log(mesh: &Mesh, filter: Option<accesslog_v3::AccessLogFilter>) -> Option<accesslog_v3::AccessLog> {
    use accesslog_v3::access_log::ConfigType;
    use file_v3::file_access_log::AccessLogFormat;
    let settings = mesh.access_log.as_ref()?;
    let config = file_v3::FileAccessLog {
        path: settings.file.clone(),
        access_log_format: Some(AccessLogFormat::LogFormat(format(settings.json, &settings.format))),
    };
    Some(accesslog_v3::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter,
        config_type: Some(ConfigType::TypedConfig(any(&config))),
    })
}

fn format(json: bool, custom: &str) -> core_v3::SubstitutionFormatString {
    use core_v3::substitution_format_string::Format;
    let format = if json {
        Format::JsonFormat(json_fields(custom))
    } else {
        let line = match custom {
            "" => ISTIO_TEXT.to_owned(),
            line if line.ends_with('\n') => line.to_owned(),
            line => format!("{line}\n"),
        };
        let source = core_v3::DataSource { specifier: Some(core_v3::data_source::Specifier::InlineString(line)), ..Default::default() };
        Format::TextFormatSource(source)
    };
    core_v3::SubstitutionFormatString { format: Some(format), ..Default::default() }
}

/// A custom ISTIO_JSON format is itself a JSON object of strings; one that is not falls back to the default.
fn json_fields(custom: &str) -> Struct {
    let parsed: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_str(custom).ok();
    match parsed {
        Some(fields) if !fields.is_empty() => {
            Struct { fields: fields.into_iter().filter_map(|(key, value)| Some((key, string(value.as_str()?)))).collect() }
        }
        _ => Struct { fields: ISTIO_JSON.iter().map(|(key, value)| ((*key).to_owned(), string(*value))).collect() },
    }
}
