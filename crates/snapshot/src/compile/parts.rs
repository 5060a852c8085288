//! The pieces that the judging of bootstraps shares with the compiling of resources.
pub(crate) use super::access_log::refuse_admin_logs;
pub(crate) use super::common::{Place, duration_or, place};
pub(crate) use super::dns::resolver as dns_resolver;
pub(crate) use super::invalid::{Within, harmless, refuse};
pub(crate) use super::matcher::strings;
#[cfg(test)]
pub(crate) use super::matcher::{header as header_matcher, string as string_matcher};
#[cfg(test)]
pub(crate) use super::rbac::{Judged, rules as rbac_rules, tree as rbac_tree};
pub(crate) use super::source::{api_source, existing, fetch_timeout, watched_path};
