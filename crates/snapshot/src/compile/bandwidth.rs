//! The bandwidth limit filter, for a listener and by route.
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use lateen_proto::envoy::extensions::filters::http::bandwidth_limit::v3::{self as proto, bandwidth_limit::EnableMode};

use super::common::{duration_or, runtime_flag};
use super::invalid::{Invalid, Result};
use crate::bandwidth::{BandwidthLimit, ByteBucket, DelayTrailers, Limit};

/// Envoy's default of `fill_interval`.
const FILL_INTERVAL: Duration = Duration::from_millis(50);

/// `by_route`: a route must say how much.
pub(crate) fn filter(value: proto::BandwidthLimit, by_route: bool) -> Result<BandwidthLimit> {
    let proto::BandwidthLimit {
        stat_prefix,
        enable_mode,
        limit_kbps,
        fill_interval,
        runtime_enabled,
        enable_response_trailers,
        response_trailer_prefix,
    } = value;
    if stat_prefix.is_empty() {
        return Err(Invalid::field("stat_prefix", "is empty"));
    }
    let (request, response) = match EnableMode::try_from(enable_mode) {
        Ok(EnableMode::Disabled) => (false, false),
        Ok(EnableMode::Request) => (true, false),
        Ok(EnableMode::Response) => (false, true),
        Ok(EnableMode::RequestAndResponse) => (true, true),
        Err(_) => return Err(Invalid::field("enable_mode", format!("{enable_mode} is not known"))),
    };
    let fill_interval = duration_or(fill_interval.as_ref(), FILL_INTERVAL, "fill_interval")?;
    if !(Duration::from_millis(20)..=Duration::from_secs(1)).contains(&fill_interval) {
        return Err(Invalid::field("fill_interval", "is not between 20ms and 1s"));
    }
    let wanted = (request || response) && runtime_flag(runtime_enabled, true);
    let rate = match limit_kbps {
        Some(0) => return Err(Invalid::field("limit_kbps", "is zero")),
        None if by_route || wanted => return Err(Invalid::field("limit_kbps", "is missing")),
        other => other,
    };
    let trailers = (enable_response_trailers && response).then(|| trailers(&response_trailer_prefix)).transpose()?;
    let limit = rate.filter(|_| wanted).map(|kib| Limit {
        request,
        response,
        bucket: Arc::new(ByteBucket::new(kib.saturating_mul(1024))),
        fill_interval,
        trailers: trailers.map(Arc::new),
    });
    Ok(BandwidthLimit { stat_prefix: stat_prefix.into(), limit })
}

fn trailers(prefix: &str) -> Result<DelayTrailers> {
    let dash = if prefix.is_empty() { "" } else { "-" };
    let name = |of: &str| {
        let name = HeaderName::try_from(format!("{prefix}{dash}bandwidth-{of}-ms"));
        name.map_err(|_| Invalid::field("response_trailer_prefix", format!("`{prefix}` is not the beginning of a header's name")))
    };
    Ok(DelayTrailers {
        request: name("request-delay")?,
        request_filter: name("request-filter-delay")?,
        response: name("response-delay")?,
        response_filter: name("response-filter-delay")?,
    })
}
