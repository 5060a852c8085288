//! Which requests and connections a log holds.
use lateen_proto::envoy::config::accesslog::v3::{self as proto, access_log_filter::FilterSpecifier, comparison_filter};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::data::accesslog::v3::AccessLogType;
use lateen_telemetry::ResponseFlags;

use super::common::fraction;
use super::invalid::{Invalid, Result, Within, each, harmless};
use super::matcher::header;
use super::metadata;
use crate::log_filter::LogFilter;
use crate::matcher::{Fraction, ValueMatcher};

/// Filters nested deeper are refused: they are walked recursively.
const MAX_DEPTH: u32 = 16;

pub(crate) fn filter(value: proto::AccessLogFilter) -> Result<LogFilter> {
    nested(value, 0)
}

fn all(values: Vec<proto::AccessLogFilter>, field: &str, depth: u32) -> Result<Vec<LogFilter>> {
    each(values, field, |v| nested(v, depth + 1))
}

fn nested(value: proto::AccessLogFilter, depth: u32) -> Result<LogFilter> {
    if depth > MAX_DEPTH {
        return Err(Invalid::new(format!("is nested more than {MAX_DEPTH} deep")));
    }
    Ok(match value.filter_specifier {
        Some(FilterSpecifier::StatusCodeFilter(f)) => {
            LogFilter::StatusCode(comparison(f.comparison).within("status_code_filter.comparison")?)
        }
        Some(FilterSpecifier::DurationFilter(f)) => LogFilter::Duration(comparison(f.comparison).within("duration_filter.comparison")?),
        Some(FilterSpecifier::NotHealthCheckFilter(_)) => LogFilter::NotHealthCheck,
        Some(FilterSpecifier::AndFilter(f)) => LogFilter::And(all(f.filters, "and_filter.filters", depth)?),
        Some(FilterSpecifier::OrFilter(f)) => LogFilter::Or(all(f.filters, "or_filter.filters", depth)?),
        Some(FilterSpecifier::ResponseFlagFilter(f)) => {
            LogFilter::ResponseFlags(response_flags(&f.flags).within("response_flag_filter.flags")?)
        }
        Some(FilterSpecifier::HeaderFilter(f)) => {
            let matcher = f.header.ok_or_else(|| Invalid::field("header_filter.header", "is missing"))?;
            LogFilter::Header(header(matcher).within("header_filter.header")?)
        }
        Some(FilterSpecifier::TraceableFilter(proto::TraceableFilter {})) => LogFilter::Traceable,
        Some(FilterSpecifier::RuntimeFilter(f)) => share(f).within("runtime_filter")?,
        Some(FilterSpecifier::GrpcStatusFilter(f)) => grpc_status(&f).within("grpc_status_filter")?,
        Some(FilterSpecifier::MetadataFilter(f)) => metadata_filter(f).within("metadata_filter")?,
        Some(FilterSpecifier::LogTypeFilter(f)) => log_type(&f).within("log_type_filter")?,
        Some(FilterSpecifier::ExtensionFilter(_)) => return Err(Invalid::unsupported("extension_filter")),
        None => return Err(Invalid::new("has no filter")),
    })
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

/// What a runtime key could override; there are no such keys here.
fn share(value: proto::RuntimeFilter) -> Result<LogFilter> {
    let proto::RuntimeFilter { runtime_key, percent_sampled, use_independent_randomness: independent } = value;
    if runtime_key.is_empty() {
        return Err(Invalid::field("runtime_key", "is empty"));
    }
    let fraction = percent_sampled.map_or(Ok(Fraction::NONE), |v| fraction(v).within("percent_sampled"))?;
    Ok(LogFilter::Share { fraction, independent })
}

fn grpc_status(value: &proto::GrpcStatusFilter) -> Result<LogFilter> {
    let proto::GrpcStatusFilter { statuses, exclude } = value;
    let known = |status: i32| proto::grpc_status_filter::Status::try_from(status).ok().map(|status| status as u32);
    Ok(LogFilter::GrpcStatus { statuses: bits(statuses, known, "statuses")?, exclude: *exclude })
}

fn log_type(value: &proto::LogTypeFilter) -> Result<LogFilter> {
    let proto::LogTypeFilter { types, exclude } = value;
    let known = |kind: i32| AccessLogType::try_from(kind).ok().map(|kind| kind as u32);
    Ok(LogFilter::LogType { types: bits(types, known, "types")?, exclude: *exclude })
}

fn bits(values: &[i32], known: impl Fn(i32) -> Option<u32>, field: &str) -> Result<u32> {
    values.iter().enumerate().try_fold(0, |bits, (index, value)| {
        let bit = known(*value).and_then(|n| 1_u32.checked_shl(n));
        bit.map(|bit| bits | bit).ok_or_else(|| Invalid::new(format!("{value} is not known"))).within_item(field, index)
    })
}

fn metadata_filter(value: proto::MetadataFilter) -> Result<LogFilter> {
    let proto::MetadataFilter { matcher, match_if_key_not_found } = value;
    let matcher = matcher.map(metadata::matcher).transpose().within("matcher")?;
    if matcher.as_ref().is_some_and(|matcher| matcher.invert) {
        return Err(Invalid::field("matcher.invert", "has no effect in Envoy; remove it"));
    }
    Ok(LogFilter::Metadata { matcher, without: match_if_key_not_found.unwrap_or(true) })
}

#[cfg(test)]
mod tests {
    use lateen_proto::envoy::r#type::v3::FractionalPercent;

    use super::*;

    fn compiled(specifier: FilterSpecifier) -> std::result::Result<LogFilter, String> {
        filter(proto::AccessLogFilter { filter_specifier: Some(specifier) }).map_err(|e| e.to_string())
    }

    #[test]
    fn response_flags_are_one_set_settled_beforehand() {
        let settled = |names: &[&str]| response_flags(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(settled(&["UH", "NR"]).unwrap(), ResponseFlags::NO_HEALTHY_UPSTREAM | ResponseFlags::NO_ROUTE_FOUND);
        assert_eq!(settled(&[]).unwrap(), ResponseFlags::every(), "any");
        assert!(settled(&["UH", "XX"]).unwrap_err().to_string().contains("`XX`"));
    }

    #[test]
    fn a_share_without_a_default_is_nothing_and_needs_a_key() {
        let runtime = |key: &str, percent| {
            compiled(FilterSpecifier::RuntimeFilter(proto::RuntimeFilter {
                runtime_key: key.to_owned(),
                percent_sampled: percent,
                use_independent_randomness: true,
            }))
        };
        let share = |of| match of {
            Ok(LogFilter::Share { fraction, independent: true }) => Ok(fraction),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        };
        assert_eq!(share(runtime("k", None)), Ok(Fraction::NONE));
        let percent = FractionalPercent { numerator: 5, denominator: 2 };
        assert_eq!(share(runtime("k", Some(percent))), Ok(Fraction { numerator: 5, denominator: 1_000_000 }));
        assert_eq!(share(runtime("", None)), Err("runtime_filter.runtime_key: is empty".to_owned()));
        let strange = FractionalPercent { numerator: 5, denominator: 3 };
        assert_eq!(share(runtime("k", Some(strange))), Err("runtime_filter.percent_sampled.denominator: 3 is not known".to_owned()));
    }

    #[test]
    fn statuses_and_types_that_there_are_not_are_refused() {
        let status = |statuses: &[i32]| {
            compiled(FilterSpecifier::GrpcStatusFilter(proto::GrpcStatusFilter { statuses: statuses.to_vec(), exclude: true }))
        };
        assert!(matches!(status(&[0, 16]), Ok(LogFilter::GrpcStatus { statuses: 0x1_0001, exclude: true })));
        assert_eq!(status(&[0, 17]).unwrap_err(), "grpc_status_filter.statuses[1]: 17 is not known");
        let kind = |types: &[i32]| compiled(FilterSpecifier::LogTypeFilter(proto::LogTypeFilter { types: types.to_vec(), exclude: false }));
        assert!(matches!(kind(&[3, 14]), Ok(LogFilter::LogType { types: 0x4008, exclude: false })));
        assert_eq!(kind(&[-1]).unwrap_err(), "log_type_filter.types[0]: -1 is not known");
    }
}
