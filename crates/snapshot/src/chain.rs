//! Choosing the filter chain of a connection: nested indexes, built when the listener is compiled.
//!
//! Envoy (listener_components.proto, `FilterChainMatch`) compares criterion by criterion, the most
//! specific value first, and never goes back: once a server name matched, chains for other server
//! names are out even if the rest of the criteria fit none of those left. Nesting one map per
//! criterion gives exactly that.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::authorize::Facts;
use crate::listener::{ChainCriteria, ConnectionInfo, FilterChain, Listener, SourceType};
use crate::matcher::Cidr;

type Chain = usize;

/// The chains of a listener by their criteria.
#[derive(Debug, Default)]
pub struct ChainIndex {
    ports: HashMap<Option<u16>, ByIp<ServerNames>>,
}

/// Values by address block; the longest block that holds an address wins.
#[derive(Debug)]
struct ByIp<T> {
    /// (address family is IPv4, prefix length, masked address → value), longest first.
    lengths: Vec<(bool, u8, HashMap<IpAddr, T>)>,
    /// Chains that do not name a block.
    any: Option<T>,
}

impl<T> Default for ByIp<T> {
    fn default() -> Self {
        Self { lengths: Vec::new(), any: None }
    }
}

impl<T: Default> ByIp<T> {
    fn entry(&mut self, block: Option<Cidr>) -> &mut T {
        let Some(block) = block else { return self.any.get_or_insert_with(T::default) };
        let (v4, length) = (block.address.is_ipv4(), block.length);
        let at = self.lengths.partition_point(|(_, l, _)| *l > length);
        let at = match self.lengths.iter().skip(at).position(|(f, l, _)| *f == v4 && *l == length) {
            Some(offset) => at + offset,
            None => {
                self.lengths.insert(at, (v4, length, HashMap::new()));
                at
            }
        };
        self.lengths[at].2.entry(block.address).or_default()
    }

    fn find(&self, address: IpAddr) -> Option<&T> {
        let address = address.to_canonical();
        self.lengths
            .iter()
            .filter(|(v4, _, _)| *v4 == address.is_ipv4())
            .find_map(|(_, length, map)| map.get(&Cidr::mask(address, *length)))
            .or(self.any.as_ref())
    }
}

#[derive(Debug, Default)]
struct ServerNames {
    exact: HashMap<Arc<str>, Transports>,
    /// `*.example.com` under `example.com`.
    wildcard: HashMap<Arc<str>, Transports>,
    any: Option<Transports>,
}

/// By transport protocol; empty is any.
type Transports = HashMap<Arc<str>, Applications>;

#[derive(Debug, Default)]
struct Applications {
    named: HashMap<Arc<[u8]>, ByIp<SourceTypes>>,
    any: Option<ByIp<SourceTypes>>,
}

#[derive(Debug, Default)]
struct SourceTypes {
    any: Option<ByIp<SourcePorts>>,
    local: Option<ByIp<SourcePorts>>,
    external: Option<ByIp<SourcePorts>>,
}

type SourcePorts = HashMap<Option<u16>, Chain>;

impl ChainIndex {
    /// Builds the index.
    ///
    /// # Errors
    /// When two chains have the same criteria, so that one could never be chosen.
    pub fn build(chains: &[Arc<FilterChain>]) -> Result<Self, String> {
        let mut index = Self::default();
        for (number, chain) in chains.iter().enumerate() {
            if let Some(other) = index.insert(&chain.criteria, number) {
                let name = |at: Chain| match chains.get(at).map(|c| &*c.name) {
                    None | Some("") => format!("chain {at}"),
                    Some(name) => format!("chain {at} ({name})"),
                };
                return Err(format!(
                    "{} and {} match the same connections; make their filter_chain_match differ",
                    name(other),
                    name(number)
                ));
            }
        }
        Ok(index)
    }

    /// The chain that already stands at one of these criteria, if any.
    fn insert(&mut self, criteria: &ChainCriteria, chain: Chain) -> Option<Chain> {
        let by_destination = self.ports.entry(criteria.destination_port).or_default();
        let mut clash = None;
        for block in or_any(&criteria.prefix_ranges) {
            let names = by_destination.entry(block);
            if criteria.server_names.is_empty() {
                clash = clash.or(insert_transport(names.any.get_or_insert_default(), criteria, chain));
            }
            for name in &criteria.server_names {
                let map = match name.strip_prefix("*.") {
                    Some(parent) => names.wildcard.entry(parent.into()).or_default(),
                    None => names.exact.entry(name.clone()).or_default(),
                };
                clash = clash.or(insert_transport(map, criteria, chain));
            }
        }
        clash
    }

    fn find(&self, connection: &ConnectionInfo) -> Option<Chain> {
        let port = connection.destination.port();
        // A port that has chains of its own is never served by chains for any port.
        let by_destination = self.ports.get(&Some(port)).or_else(|| self.ports.get(&None))?;
        let names = by_destination.find(connection.destination.ip())?;
        let transports = names.find(connection.server_name.as_deref())?;
        let applications = transports.get(connection.transport_protocol).or_else(|| transports.get(""))?;
        let by_direct = connection.application_protocols.iter().find_map(|p| applications.named.get(&**p)).or(applications.any.as_ref())?;
        let types = by_direct.find(connection.direct_source.ip())?;
        let ports = types.find(connection)?.find(connection.source.ip())?;
        ports.get(&Some(connection.source.port())).or_else(|| ports.get(&None)).copied()
    }
}

fn insert_transport(transports: &mut Transports, criteria: &ChainCriteria, chain: Chain) -> Option<Chain> {
    let applications = transports.entry(criteria.transport_protocol.clone()).or_default();
    let mut clash = None;
    if criteria.application_protocols.is_empty() {
        clash = insert_source(applications.any.get_or_insert_default(), criteria, chain);
    }
    for protocol in &criteria.application_protocols {
        clash = clash.or(insert_source(applications.named.entry(protocol.clone()).or_default(), criteria, chain));
    }
    clash
}

fn insert_source(by_direct: &mut ByIp<SourceTypes>, criteria: &ChainCriteria, chain: Chain) -> Option<Chain> {
    let mut clash = None;
    for direct in or_any(&criteria.direct_source_prefix_ranges) {
        let types = by_direct.entry(direct);
        let by_source = match criteria.source_type {
            SourceType::Any => &mut types.any,
            SourceType::SameIpOrLoopback => &mut types.local,
            SourceType::External => &mut types.external,
        };
        let by_source = by_source.get_or_insert_default();
        for source in or_any(&criteria.source_prefix_ranges) {
            let ports = by_source.entry(source);
            let wanted: Vec<Option<u16>> =
                if criteria.source_ports.is_empty() { vec![None] } else { criteria.source_ports.iter().copied().map(Some).collect() };
            for port in wanted {
                // The same chain may name a value twice, which is odd but clear.
                clash = clash.or(ports.insert(port, chain).filter(|other| *other != chain));
            }
        }
    }
    clash
}

/// The blocks, or the absence of any. A block of length 0 covers everything, like none at all.
fn or_any(blocks: &[Cidr]) -> Vec<Option<Cidr>> {
    if blocks.is_empty() { vec![None] } else { blocks.iter().copied().map(Some).collect() }
}

impl ServerNames {
    /// The exact name, else the longest wildcard, else chains without names.
    fn find(&self, name: Option<&str>) -> Option<&Transports> {
        let Some(name) = name.filter(|n| !n.is_empty()) else { return self.any.as_ref() };
        let lower;
        let name = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            lower = name.to_ascii_lowercase();
            lower.as_str()
        } else {
            name
        };
        if let Some(found) = self.exact.get(name) {
            return Some(found);
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(found) = self.wildcard.get(parent) {
                return Some(found);
            }
            rest = parent;
        }
        self.any.as_ref()
    }
}

impl SourceTypes {
    fn find(&self, connection: &ConnectionInfo) -> Option<&ByIp<SourcePorts>> {
        if self.local.is_none() && self.external.is_none() {
            return self.any.as_ref();
        }
        let source = connection.source.ip().to_canonical();
        let local = source.is_loopback() || source == connection.destination.ip().to_canonical();
        if local { self.local.as_ref() } else { self.external.as_ref() }.or(self.any.as_ref())
    }
}

/// The connection as trees of matchers look at it.
fn facts(connection: &ConnectionInfo) -> Facts<'_> {
    Facts {
        head: None,
        destination: connection.destination,
        direct_remote: connection.direct_source.ip(),
        connection_remote: connection.source.ip(),
        remote: connection.source.ip(),
        source_port: connection.source.port(),
        peer: None,
        server_name: connection.server_name.as_deref(),
        metadata: None,
    }
}

impl Listener {
    /// The chain for a connection: the most specific one, else the default chain, else none (the connection is closed).
    pub fn choose_chain(&self, connection: &ConnectionInfo) -> Option<&Arc<FilterChain>> {
        let found = match &self.chain_matcher {
            Some(tree) => tree.find(&facts(connection)).copied(),
            None => self.index.find(connection),
        };
        found.and_then(|chain| self.chains.get(chain)).or(self.default_chain.as_ref())
    }
}

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
