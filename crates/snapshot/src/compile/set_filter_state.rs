//! Values that a network filter sets for the TCP proxy behind it.
use std::sync::Arc;

use lateen_proto::envoy::config::core::v3::{self as core, substitution_format_string};
use lateen_proto::envoy::extensions::filters::common::set_filter_state::v3::{self as common, filter_state_value};
use lateen_proto::envoy::extensions::filters::network::set_filter_state::v3 as proto;
use lateen_telemetry::access_log::TextFormat;

use super::common::data;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use crate::listener::{NetworkFilter, StateKey, StateValue};

/// The TLS handshake is over when a connection gets here, so both lists apply at once, in Envoy's order.
pub(crate) fn filter(value: proto::Config) -> Result<NetworkFilter> {
    let proto::Config { on_new_connection, on_downstream_tls_handshake, on_downstream_data } = value;
    refuse!(on_downstream_data);
    let values = |list: Vec<common::FilterStateValue>, field: &str| {
        list.into_iter().enumerate().map(|(i, v)| state(v).within_item(field, i)).collect::<Result<Vec<StateValue>>>()
    };
    let mut all = values(on_new_connection, "on_new_connection")?;
    all.extend(values(on_downstream_tls_handshake, "on_downstream_tls_handshake")?);
    Ok(NetworkFilter::SetState(Arc::from(all)))
}

fn state(value: common::FilterStateValue) -> Result<StateValue> {
    let common::FilterStateValue { factory_key, read_only, shared_with_upstream, skip_if_empty, key, value } = value;
    // There are no connections inside the process to share it with.
    harmless!(read_only, shared_with_upstream);
    let Some(filter_state_value::Key::ObjectKey(name)) = key else { return Err(Invalid::field("object_key", "is missing")) };
    if !(factory_key.is_empty() || factory_key == name) {
        return Err(Invalid::unsupported("factory_key"));
    }
    let key = match name.as_str() {
        "envoy.tcp_proxy.cluster" => StateKey::Cluster,
        "envoy.network.upstream_server_name" => StateKey::ServerName,
        "envoy.tcp_proxy.per_connection_idle_timeout_ms" => StateKey::IdleTimeout,
        "envoy.tcp_proxy.disable_tunneling" => StateKey::DisableTunneling,
        other => return Err(Invalid::field("object_key", format!("{other} is not supported; the keys that the TCP proxy reads are"))),
    };
    let Some(filter_state_value::Value::FormatString(format)) = value else { return Err(Invalid::field("format_string", "is missing")) };
    Ok(StateValue { key, format: text(format).within("format_string")?, skip_if_empty })
}

fn text(value: core::SubstitutionFormatString) -> Result<Arc<str>> {
    use substitution_format_string::Format;
    let core::SubstitutionFormatString { omit_empty_values, content_type, formatters, json_format_options, format } = value;
    harmless!(omit_empty_values, content_type, json_format_options);
    refuse!(formatters);
    let text = match format {
        Some(Format::TextFormat(text)) => text,
        Some(Format::TextFormatSource(source)) => {
            let bytes = data(source).within("text_format_source")?;
            String::from_utf8(bytes).map_err(|_| Invalid::field("text_format_source", "is not UTF-8"))?
        }
        Some(Format::JsonFormat(_)) => return Err(Invalid::unsupported("json_format")),
        None => return Err(Invalid::new("has no format")),
    };
    TextFormat::compile(&text).map_err(|e| Invalid::new(e.to_string()))?;
    Ok(text.into())
}
