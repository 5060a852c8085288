//! Clusters that are discovered because a request wants them.
use std::time::Duration;

use lateen_proto::envoy::extensions::filters::http::on_demand::v3 as proto;

use super::common::duration_or;
use super::invalid::{Result, Within, refuse};
use super::source::ads_only;
use crate::http::OnDemand;

/// Envoy's default.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn filter(value: proto::OnDemand) -> Result<OnDemand> {
    let proto::OnDemand { odcds } = value;
    on_demand(odcds)
}

pub(crate) fn per_route(value: proto::PerRouteConfig) -> Result<OnDemand> {
    let proto::PerRouteConfig { odcds } = value;
    on_demand(odcds)
}

fn on_demand(value: Option<proto::OnDemandCds>) -> Result<OnDemand> {
    Ok(OnDemand { clusters: value.map(clusters).transpose().within("odcds")? })
}

fn clusters(value: proto::OnDemandCds) -> Result<Duration> {
    let proto::OnDemandCds { source, resources_locator, timeout } = value;
    refuse!(resources_locator);
    // A request waits as long as this filter says.
    ads_only(source).within("source")?;
    duration_or(timeout.as_ref(), TIMEOUT, "timeout")
}
