//! Where a caller's address comes from, of an HTTP connection manager.
use lateen_proto::any;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::http::original_ip_detection::custom_header::v3::CustomHeaderConfig;
use lateen_proto::envoy::extensions::http::original_ip_detection::xff::v3 as xff;
use lateen_proto::envoy::r#type::v3::HttpStatus;

use super::common::{cidrs, open};
use super::invalid::{Invalid, Result, Within};
use super::matcher::header_name;
use crate::original_ip::{Forwarded, OriginalIp};

/// In the order in which they are asked.
pub(crate) fn detections(values: Vec<core::TypedExtensionConfig>) -> Result<Vec<OriginalIp>> {
    values.into_iter().enumerate().map(|(i, value)| detection(value).within_item("original_ip_detection_extensions", i)).collect()
}

fn detection(value: core::TypedExtensionConfig) -> Result<OriginalIp> {
    let core::TypedExtensionConfig { name, typed_config } = value;
    let config = typed_config.ok_or_else(|| Invalid::field("typed_config", format!("is missing for {name}")))?;
    if any::is::<CustomHeaderConfig>(&config) {
        open(&config).and_then(header).within("typed_config")
    } else if any::is::<xff::XffConfig>(&config) {
        open(&config).and_then(forwarded).within("typed_config")
    } else {
        Err(Invalid::field("typed_config", format!("{name} is not supported; custom_header and xff are")))
    }
}

fn header(value: CustomHeaderConfig) -> Result<OriginalIp> {
    let CustomHeaderConfig { header_name: name, allow_extension_to_set_address_as_trusted: trusted, reject_with_status } = value;
    let reject =
        reject_with_status.map(|HttpStatus { code }| u16::try_from(code).ok().filter(|code| (400..=511).contains(code)).unwrap_or(403));
    Ok(OriginalIp::Header { name: header_name(&name).within("header_name")?, trusted, reject })
}

fn forwarded(value: xff::XffConfig) -> Result<OriginalIp> {
    let xff::XffConfig { xff_num_trusted_hops, xff_trusted_cidrs, skip_xff_append } = value;
    let from = match xff_trusted_cidrs {
        Some(_) if xff_num_trusted_hops > 0 => {
            return Err(Invalid::field("xff_trusted_cidrs", "cannot be used with xff_num_trusted_hops; remove one"));
        }
        Some(xff::XffTrustedCidrs { cidrs: blocks }) if !blocks.is_empty() => {
            Forwarded::Trusted(cidrs(blocks, "cidrs").within("xff_trusted_cidrs")?)
        }
        _ => Forwarded::Hops(xff_num_trusted_hops),
    };
    Ok(OriginalIp::Forwarded { from, append: !skip_xff_append.unwrap_or(true) })
}
