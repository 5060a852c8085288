//! Addresses: pods get the next free one, services one that follows from their name and so survives a restart of the mesh.
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::nft::Cidr;

/// The bridge's addresses: the pods' gateway and name server.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1);
/// The control plane's cluster address.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const POD_BASE: u32 = 0x0af4_0000;
const SERVICE_BASE: u32 = 0x0a60_0000;
/// Both ranges are /16; the first few numbers are ours.
const RANGE: u32 = 65_534;
const RESERVED: u32 = 16;

/// The pods' ranges.
pub fn pod_ranges() -> Vec<Cidr> {
    ranges(GATEWAY.into(), 16, GATEWAY6.into(), 64)
}

/// The cluster addresses' ranges.
pub fn service_ranges() -> Vec<Cidr> {
    ranges(Ipv4Addr::from_bits(SERVICE_BASE).into(), 16, service6(0).into(), 112)
}

fn ranges(four: IpAddr, prefix4: u8, six: IpAddr, prefix6: u8) -> Vec<Cidr> {
    [Cidr::new(four, prefix4), Cidr::new(six, prefix6)].into_iter().flatten().collect()
}

fn service6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfd00_0096_0000_0000_0000_0000_0000_0000 | u128::from(number))
}

/// Both addresses of pod `number`.
fn pod_addresses(number: u32) -> [IpAddr; 2] {
    let six = GATEWAY6.to_bits() & !0xffff | u128::from(number);
    [Ipv4Addr::from_bits(POD_BASE | number).into(), Ipv6Addr::from_bits(six).into()]
}

/// Hands out pod addresses; one that is given back comes last in turn, so that nobody's old connection finds a stranger.
#[derive(Clone, Debug)]
pub struct PodAddresses {
    used: BTreeSet<u32>,
    next: u32,
}

impl Default for PodAddresses {
    fn default() -> Self {
        Self { used: BTreeSet::new(), next: RESERVED }
    }
}

impl PodAddresses {
    /// The next free number with its IPv4 and IPv6 address; `None` when 65 000 pods run.
    pub fn take(&mut self) -> Option<(u32, [IpAddr; 2])> {
        for _ in 0..RANGE {
            let number = self.next;
            self.next = if number + 1 >= RANGE { RESERVED } else { number + 1 };
            if self.used.insert(number) {
                return Some((number, pod_addresses(number)));
            }
        }
        None
    }

    /// Gives a number back.
    pub fn release(&mut self, number: u32) {
        self.used.remove(&number);
    }
}

/// Cluster addresses by `namespace/name`.
#[derive(Clone, Debug, Default)]
pub struct ServiceAddresses {
    numbers: BTreeMap<String, u32>,
}

impl ServiceAddresses {
    /// The addresses of a service: the one it asks for when in range and free, else by its name.
    pub fn of(&mut self, namespace: &str, name: &str, wanted: Option<Ipv4Addr>) -> [IpAddr; 2] {
        let key = format!("{namespace}/{name}");
        let number = match self.numbers.get(&key) {
            Some(number) => *number,
            None => {
                let number = self.choose(&key, wanted);
                self.numbers.insert(key, number);
                number
            }
        };
        [Ipv4Addr::from_bits(SERVICE_BASE | number).into(), service6(number).into()]
    }

    fn choose(&self, key: &str, wanted: Option<Ipv4Addr>) -> u32 {
        let taken = |number: &u32| self.numbers.values().any(|n| n == number);
        let wanted = wanted.map(|w| w.to_bits().wrapping_sub(SERVICE_BASE)).filter(|n| (1..RANGE).contains(n));
        if let Some(number) = wanted.filter(|n| !taken(n)) {
            return number;
        }
        let start = fnv(key.as_bytes()) % (RANGE - RESERVED);
        let mut numbers = (0..RANGE - RESERVED).map(|i| RESERVED + (start + i) % (RANGE - RESERVED));
        numbers.find(|n| !taken(n)).unwrap_or(RESERVED)
    }

    /// Forgets a removed service.
    pub fn release(&mut self, namespace: &str, name: &str) {
        self.numbers.remove(&format!("{namespace}/{name}"));
    }
}

/// A hash that is the same on every machine and in every run.
pub(crate) fn fnv(bytes: &[u8]) -> u32 {
    let mut hasher = Fnv(0x811c_9dc5);
    hasher.write(bytes);
    hasher.0
}

struct Fnv(u32);
impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
    fn finish(&self) -> u64 {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_addresses_are_distinct_and_come_back_last() {
        let mut pool = PodAddresses::default();
        let (first, addresses) = pool.take().unwrap();
        assert_eq!(addresses.map(|a| a.to_string()), ["10.244.0.16", "fd00:244::10"]);
        pool.release(first);
        assert_ne!(pool.take().unwrap().0, first);
        let all: BTreeSet<u32> = (0..1000).map(|_| pool.take().unwrap().0).collect();
        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn service_addresses_follow_from_the_name() {
        let (mut one, mut two) = (ServiceAddresses::default(), ServiceAddresses::default());
        two.of("default", "other", None);
        assert_eq!(one.of("default", "reviews", None), two.of("default", "reviews", None));
        assert_eq!(one.of("istio-system", "istiod", Some(CONTROL))[0], IpAddr::from(CONTROL));
        assert_ne!(one.of("x", "thief", Some(CONTROL))[0], IpAddr::from(CONTROL));
        assert!(service_ranges()[1].contains(one.of("default", "reviews", None)[1]));
        let many: BTreeSet<_> = (0..500).map(|i| one.of("n", &i.to_string(), None)).collect();
        assert_eq!(many.len(), 500);
    }
}
