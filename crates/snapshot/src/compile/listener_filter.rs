//! Listener filters: what looks at a connection before its chain is chosen, and at which ports.
use std::ops::RangeInclusive;
use std::sync::Arc;

use lateen_proto::envoy::config::listener::v3::{self as proto, listener_filter, listener_filter_chain_match_predicate::Rule};
use lateen_proto::envoy::extensions::filters::listener as filters;
use lateen_proto::{Any, any};

use super::common::open;
use super::context::{Context, Place};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::{extension, local_ratelimit, opaque, proxy_protocol};
use crate::listener::{Inspection, Inspectors, OriginalSrc, PortGate};

const SUPPORTED: &str = "tls_inspector, http_inspector, original_dst, original_src, proxy_protocol and local_ratelimit";

pub(crate) fn inspectors(values: Vec<proto::ListenerFilter>, context: &mut Context<'_>) -> Result<Inspectors> {
    let mut result = Inspectors::default();
    for (index, value) in values.into_iter().enumerate() {
        inspector(&mut result, value, context).within_item("listener_filters", index)?;
    }
    Ok(result)
}

fn inspector(result: &mut Inspectors, value: proto::ListenerFilter, context: &mut Context<'_>) -> Result<()> {
    let proto::ListenerFilter { name, filter_disabled, config_type } = value;
    let disabled = filter_disabled.map_or_else(|| Ok(Vec::new()), |p| ports(p, 0)).within("filter_disabled")?;
    let gate = PortGate { disabled };
    match config_type {
        Some(listener_filter::ConfigType::TypedConfig(config)) => result.add(inspection(&name, &opaque::typed(config)?)?, gate),
        Some(listener_filter::ConfigType::ConfigDiscovery(source)) => {
            let place = extension::place(&name, source, Place::Inspection, context, |name, config, _| inspection(name, config));
            result.discovered.push((gate, Arc::new(place.within("config_discovery")?)));
        }
        None => return Err(Invalid::field("typed_config", format!("is missing for {name}"))),
    }
    Ok(())
}

pub(crate) fn inspection(name: &str, config: &Any) -> Result<Inspection> {
    if any::is::<filters::tls_inspector::v3::TlsInspector>(config) {
        let filters::tls_inspector::v3::TlsInspector {
            enable_ja3_fingerprinting,
            enable_ja4_fingerprinting,
            initial_read_buffer_size,
            close_connection_on_client_hello_parsing_errors,
            max_client_hello_size,
        } = open(config)?;
        // Fingerprints are seen only by log operators that are refused.
        harmless!(enable_ja3_fingerprinting, enable_ja4_fingerprinting, initial_read_buffer_size, max_client_hello_size);
        refuse!(close_connection_on_client_hello_parsing_errors);
        Ok(Inspection::Tls)
    } else if any::is::<filters::http_inspector::v3::HttpInspector>(config) {
        Ok(Inspection::Http)
    } else if any::is::<filters::original_dst::v3::OriginalDst>(config) {
        Ok(Inspection::OriginalDst)
    } else if any::is::<filters::proxy_protocol::v3::ProxyProtocol>(config) {
        Ok(Inspection::ProxyProtocol(Arc::new(proxy_protocol::listener_filter(open(config)?)?)))
    } else if any::is::<filters::original_src::v3::OriginalSrc>(config) {
        let filters::original_src::v3::OriginalSrc { bind_port, mark } = open(config)?;
        Ok(Inspection::OriginalSrc(OriginalSrc { bind_port, mark: (mark != 0).then_some(mark), direct: false }))
    } else if any::is::<filters::local_ratelimit::v3::LocalRateLimit>(config) {
        let filters::local_ratelimit::v3::LocalRateLimit { stat_prefix, token_bucket, runtime_enabled } = open(config)?;
        let limit = local_ratelimit::connections(stat_prefix, token_bucket, runtime_enabled)?;
        Ok(limit.map_or(Inspection::Nothing, |limit| Inspection::RateLimit(Arc::new(limit))))
    } else {
        Err(Invalid::new(format!("{name} ({}) is not supported; supported are {SUPPORTED}", any::name_of(&config.type_url))))
    }
}

type Ports = Vec<RangeInclusive<u16>>;

/// The ports at which a predicate holds.
fn ports(value: proto::ListenerFilterChainMatchPredicate, depth: u32) -> Result<Ports> {
    if depth > 16 {
        return Err(Invalid::new("is nested more than 16 deep"));
    }
    let all = |set: proto::listener_filter_chain_match_predicate::MatchSet, name: &str| {
        if set.rules.len() < 2 {
            return Err(Invalid::field(&format!("{name}.rules"), "has less than two rules"));
        }
        let rules = set.rules.into_iter().enumerate();
        rules.map(|(i, rule)| ports(rule, depth + 1).within_item(&format!("{name}.rules"), i)).collect::<Result<Vec<Ports>>>()
    };
    match value.rule {
        Some(Rule::AnyMatch(true)) => Ok(std::iter::once(0..=u16::MAX).collect()),
        // Envoy takes nothing but true here.
        Some(Rule::AnyMatch(false)) => Ok(Vec::new()),
        Some(Rule::DestinationPortRange(range)) => match (u16::try_from(range.start), u16::try_from(range.end.wrapping_sub(1))) {
            // Half open, so that the end may be one more than a port.
            (Ok(start), Ok(last)) if start <= last => Ok(std::iter::once(start..=last).collect()),
            _ => Err(Invalid::field("destination_port_range", "the start must be less than the end, both being ports")),
        },
        Some(Rule::OrMatch(set)) => Ok(union(all(set, "or_match")?.concat())),
        // What is in all is not outside of any.
        Some(Rule::AndMatch(set)) => Ok(complement(union(all(set, "and_match")?.into_iter().map(complement).collect::<Vec<_>>().concat()))),
        Some(Rule::NotMatch(rule)) => ports(*rule, depth + 1).within("not_match").map(complement),
        None => Err(Invalid::new("has no rule")),
    }
}

/// In order and apart from each other.
fn union(mut ports: Ports) -> Ports {
    ports.sort_by_key(|r| *r.start());
    let mut result: Ports = Vec::with_capacity(ports.len());
    for range in ports {
        match result.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => *last = *last.start()..=*last.end().max(range.end()),
            _ => result.push(range),
        }
    }
    result
}

/// All ports but those, which are in order.
fn complement(ports: Ports) -> Ports {
    let mut next = Some(0u16);
    let mut rest = Vec::new();
    for range in ports {
        if let Some(first) = next.filter(|first| first < range.start()) {
            rest.push(first..=range.start() - 1);
        }
        next = range.end().checked_add(1);
    }
    rest.extend(next.map(|first| first..=u16::MAX));
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::message;

    fn gate(yaml: &str) -> Ports {
        ports(message(yaml), 0).unwrap()
    }

    #[test]
    fn predicates_are_sets_of_ports() {
        assert_eq!(gate("{any_match: true}"), [0..=u16::MAX]);
        assert_eq!(gate("{not_match: {any_match: true}}"), []);
        assert_eq!(gate("{destination_port_range: {start: 80, end: 81}}"), [80..=80]);
        assert_eq!(gate("{destination_port_range: {start: 1, end: 65536}}"), [1..=u16::MAX]);
        assert_eq!(gate("{not_match: {destination_port_range: {start: 80, end: 82}}}"), [0..=79, 82..=u16::MAX]);
        let both = |kind: &str| {
            gate(&format!(
                "{{{kind}: {{rules: [{{destination_port_range: {{start: 10, end: 20}}}}, {{destination_port_range: {{start: 15, end: 30}}}}]}}}}"
            ))
        };
        assert_eq!(both("or_match"), [10..=29]);
        assert_eq!(both("and_match"), [15..=19]);
    }

    #[test]
    fn every_port_is_in_a_set_or_in_its_complement() {
        for yaml in [
            "{any_match: true}",
            "{destination_port_range: {start: 0, end: 65536}}",
            "{destination_port_range: {start: 65535, end: 65536}}",
            "{or_match: {rules: [{destination_port_range: {start: 0, end: 1}}, {destination_port_range: {start: 1, end: 3}}]}}",
        ] {
            let (set, rest) = (gate(yaml), gate(&format!("{{not_match: {yaml}}}")));
            for port in 0..=u16::MAX {
                let within = |ports: &Ports| ports.iter().any(|r| r.contains(&port));
                assert_ne!(within(&set), within(&rest), "{port} of {yaml}");
            }
        }
    }
}
