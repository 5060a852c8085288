//! The path that everybody after this point sees: policies, routes, upstream and log alike.
use lateen_telemetry::{ResponseFlags, details};

use super::reply::Reply;
use super::{End, Exchange};
use crate::io::Text;
use http::header::{HeaderValue, LOCATION};
use lateen_snapshot::normalize::{Normalized, normalize};

pub(crate) fn run(exchange: &mut Exchange<'_>) -> Result<(), End> {
    let config = &exchange.hcm.config;
    let path = &exchange.request.path;
    match normalize(path, &config.path, config.merge_slashes) {
        Normalized::Path(std::borrow::Cow::Borrowed(same)) if same.len() == path.len() => {}
        Normalized::Path(other) => exchange.request.path = Text::from(other.into_owned()),
        Normalized::Redirect(location) => {
            let reply = Reply::new(307, "", details::PATH_NORMALIZATION_FAILED, ResponseFlags::NONE);
            return Err(match HeaderValue::from_str(&location) {
                Ok(value) => reply.with_header(LOCATION, value).into(),
                Err(_) => Reply::new(400, "", details::PATH_NORMALIZATION_FAILED, ResponseFlags::NONE).into(),
            });
        }
        Normalized::Reject(why) => {
            exchange.hcm.stats.inc(lateen_telemetry::envoy_names::http::DOWNSTREAM_RQ_FAILED_PATH_NORMALIZATION);
            return Err(Reply::new(400, "", why, ResponseFlags::NONE).into());
        }
    }
    Ok(())
}
