//! What the system says about names: `/etc/resolv.conf` and `/etc/hosts`, read again when they change.
use std::collections::HashMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// More of a file than this is not read: some lists of hosts to block are long.
const MOST_BYTES: u64 = 4 << 20;
const MOST_SERVERS: usize = 8;
const MOST_DOMAINS: usize = 16;
/// As the C library has it.
const MOST_DOTS: usize = 15;

/// `resolv.conf(5)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<String>,
    /// Names with at least so many dots are asked for as they are first.
    pub(super) ndots: usize,
    pub(super) tcp: bool,
}

pub(super) type Hosts = HashMap<String, Vec<IpAddr>>;

/// Both files, as they were when last looked at.
#[derive(Debug, Default)]
pub(super) struct System {
    resolv_conf: Cached<ResolvConf>,
    hosts: Cached<Hosts>,
}

impl System {
    pub(super) fn resolv_conf(&self) -> Arc<ResolvConf> {
        self.resolv_conf.get(Path::new("/etc/resolv.conf"), resolv_conf)
    }

    pub(super) fn hosts(&self) -> Arc<Hosts> {
        self.hosts.get(Path::new("/etc/hosts"), hosts)
    }
}

/// When a file was changed, and how long it is.
type Stamp = Option<(SystemTime, u64)>;

#[derive(Debug)]
struct Cached<T>(Mutex<Option<(Stamp, Arc<T>)>>);

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Cached<T> {
    /// What `parse` made of the file; of nothing, where it cannot be read.
    fn get(&self, path: &Path, parse: impl FnOnce(&str) -> T) -> Arc<T> {
        let stamp: Stamp = std::fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, value)) = &*kept
            && *before == stamp
        {
            return Arc::clone(value);
        }
        let mut bytes = Vec::new();
        let _ = std::fs::File::open(path).and_then(|f| f.take(MOST_BYTES).read_to_end(&mut bytes));
        let value = Arc::new(parse(&String::from_utf8_lossy(&bytes)));
        *kept = Some((stamp, Arc::clone(&value)));
        value
    }
}

fn resolv_conf(text: &str) -> ResolvConf {
    let mut found = ResolvConf { servers: Vec::new(), search: Vec::new(), ndots: 1, tcp: false };
    let mut says_domain = false;
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => found.servers.extend(words.next().and_then(server)),
            // The last of these two counts.
            Some("search" | "domain") => {
                says_domain = true;
                found.search = words.map(|w| w.trim_matches('.').to_owned()).filter(|w| !w.is_empty()).take(MOST_DOMAINS).collect();
            }
            Some("options") => words.for_each(|option| match option.split_once(':') {
                Some(("ndots", n)) => found.ndots = n.parse().unwrap_or(found.ndots).min(MOST_DOTS),
                None if option == "use-vc" => found.tcp = true,
                _ => {}
            }),
            _ => {}
        }
    }
    found.servers.truncate(MOST_SERVERS);
    if !says_domain {
        found.search = own_domain().into_iter().collect();
    }
    found
}

/// The domain of this host's name.
fn own_domain() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    name.split_once('.').map(|(_, domain)| domain.to_owned()).filter(|d| !d.is_empty())
}

/// An address, in IPv6 perhaps with an interface: `fe80::1%eth0`.
fn server(word: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = word.split_once('%') else { return Some(SocketAddr::new(word.parse().ok()?, 53)) };
    let scope = interface.parse().ok().or_else(|| nix::net::if_::if_nametoindex(interface).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into())
}

/// `hosts(5)`: the addresses of each name, in the order of the file.
fn hosts(text: &str) -> Hosts {
    let mut found = Hosts::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        for name in words {
            let all = found.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default();
            if !all.contains(&address) {
                all.push(address);
            }
        }
    }
    found
}

/// The loopback addresses, for names that mean this host wherever they are asked for (RFC 6761).
pub(super) fn loopback(name: &str) -> Option<[IpAddr; 2]> {
    let local = name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
    local.then_some([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
}

impl ResolvConf {
    /// The full names that a name may mean, in the order in which to ask for them.
    pub(super) fn candidates(&self, name: &str, no_search: bool) -> Vec<String> {
        if let Some(full) = name.strip_suffix('.') {
            return vec![full.to_owned()];
        }
        if no_search {
            return vec![name.to_owned()];
        }
        let mut all: Vec<String> = self.search.iter().map(|domain| format!("{name}.{domain}")).collect();
        let as_it_is = if name.matches('.').count() >= self.ndots { 0 } else { all.len() };
        all.insert(as_it_is, name.to_owned());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_says_servers_domains_and_dots() {
        let found = resolv_conf(
            "# made by hand\nnameserver 10.0.0.10 ; first\nnameserver fd00::a\nnameserver nonsense\nnameserver fe80::1%7\n\
             domain old.example\nsearch shop.svc.cluster.local svc.cluster.local.\noptions ndots:5 timeout:1 use-vc\n",
        );
        let servers: Vec<String> = found.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.10:53", "[fd00::a]:53", "[fe80::1%7]:53"]);
        assert_eq!(
            (found.search.as_slice(), found.ndots, found.tcp),
            (&["shop.svc.cluster.local".to_owned(), "svc.cluster.local".to_owned()][..], 5, true)
        );
        assert_eq!(resolv_conf("options ndots:400\nsearch\n"), ResolvConf { servers: vec![], search: vec![], ndots: 15, tcp: false });
    }

    #[test]
    fn names_with_few_dots_are_looked_for_in_the_domains_first() {
        let conf = resolv_conf("search a.b c\noptions ndots:2\n");
        assert_eq!(conf.candidates("x.y", false), ["x.y.a.b", "x.y.c", "x.y"]);
        assert_eq!(conf.candidates("x.y.z", false), ["x.y.z", "x.y.z.a.b", "x.y.z.c"]);
        assert_eq!(conf.candidates("x.y.", false), ["x.y"]);
        assert_eq!(conf.candidates("x", true), ["x"]);
    }

    #[test]
    fn hosts_have_several_names_and_addresses() {
        let found = hosts("127.0.0.1 localhost\n10.0.0.1\tDb.local db # the old one\n10.0.0.2 db\n10.0.0.1 db\nfoo bar\n");
        assert_eq!(found["db"], ["10.0.0.1".parse::<IpAddr>().unwrap(), "10.0.0.2".parse().unwrap()]);
        assert_eq!(found["db.local"].len(), 1);
        assert!(!found.contains_key("bar"));
        assert!(loopback("a.LocalHost").is_some() && loopback("localhost.example").is_none());
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cached = Cached::default();
        let read = || cached.get(file.path(), |text| text.len()).as_ref().to_owned();
        assert_eq!(read(), 0);
        std::fs::write(file.path(), "more").unwrap();
        assert_eq!(read(), 4);
        assert_eq!(*cached.get(file.path(), |_| 99), 4);
    }
}
