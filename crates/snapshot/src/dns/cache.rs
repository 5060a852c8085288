//! Names that requests bring along, resolved once for all workers (Envoy's DNS cache of the dynamic forward proxy).
//!
//! A worker remembers the hosts it has met, so that only the first request for a name takes the lock here. The main thread
//! resolves what is asked for and keeps it fresh; whoever comes before the first answer waits for it.
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lateen_balance::breaker::{Gate, Permit};
use lateen_balance::{Address, Host};

use super::{DnsFamily, DnsResolver, LONGEST_TTL};
use crate::cluster::AddressOrder;
use crate::dns::Backoff;
use crate::matcher::Cidr;

/// Envoy `DnsCacheConfig`. Whoever names a cache gives the same settings.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsCacheConfig {
    pub name: Arc<str>,
    pub family: DnsFamily,
    pub resolver: Option<DnsResolver>,
    /// When to ask again for what has no address; Envoy default 60 s.
    pub refresh: Duration,
    /// A shorter time to live of an answer counts as this; Envoy default 5 s.
    pub min_refresh: Duration,
    /// Hosts that nobody used for so long are forgotten; Envoy default 5 min.
    pub host_ttl: Duration,
    /// Envoy default 1024.
    pub max_hosts: usize,
    /// Whether a failure is forgotten at once: the next request asks again.
    pub forget_failures: bool,
    pub failure: Option<Backoff>,
    /// Requests that may wait for names at once; Envoy default 1024.
    pub max_pending: u32,
    /// How long a lookup may take; Envoy default 5 s. `None` leaves it to the resolver.
    pub query_timeout: Option<Duration>,
    /// Names to resolve before anybody asks.
    pub preresolve: Vec<(Arc<str>, u16)>,
    /// Addresses in these ranges are left out; with `true` those outside.
    pub refused: Option<(Vec<Cidr>, bool)>,
}

impl DnsCacheConfig {
    /// When to ask again after an answer with addresses, and to see then whether anybody uses the host. `ttl` is theirs, if they
    /// have one: no answer keeps its place in the cache for years by its own word.
    pub fn after_answer(&self, ttl: Option<Duration>) -> Duration {
        ttl.unwrap_or_default().min(LONGEST_TTL).max(self.min_refresh)
    }

    /// Whether an address may be used at all.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.refused.as_ref().is_none_or(|(ranges, invert)| ranges.iter().any(|r| r.contains(address)) == *invert)
    }
}

/// A host and its port, as requests name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKey {
    /// `name:port` in lower case.
    pub text: Arc<str>,
    pub name: Arc<str>,
    pub port: u16,
}

impl HostKey {
    /// The host of an authority, which may hold a port; `None` when there is no host in it.
    pub fn of(authority: &str, default_port: u16) -> Option<Self> {
        let mut text = String::new();
        let (name, port) = Self::write(authority, default_port, &mut text)?;
        Some(Self { name: name.to_ascii_lowercase().into(), port, text: text.into() })
    }

    /// Writes the text of the key of an authority in the place of what is in `text`: name and port of it.
    pub fn write<'a>(authority: &'a str, default_port: u16, text: &mut String) -> Option<(&'a str, u16)> {
        let (name, port) = split(authority);
        let port = port.unwrap_or(default_port);
        let name = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        if name.is_empty() {
            return None;
        }
        text.clear();
        let (open, close) = if name.contains(':') { ("[", "]") } else { ("", "") };
        // Writing to a text cannot fail.
        let _ = write!(text, "{open}{name}{close}:{port}");
        text.make_ascii_lowercase();
        Some((name, port))
    }
}

/// Host and port of an authority. What only looks like a port is part of the name.
fn split(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((name, port)) if name.ends_with(']') || !name.contains(':') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    }
}

/// One name with its port.
#[derive(Debug)]
pub struct CachedHost {
    pub key: HostKey,
    /// Counts changes of what is behind the lock.
    version: AtomicU64,
    state: Mutex<State>,
    removed: AtomicBool,
    /// Milliseconds since the cache was made.
    used: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the first lookup is over, however it ended.
    complete: bool,
    host: Option<Arc<Host>>,
    /// Why there is no address.
    failure: Arc<str>,
    waiting: HashMap<u64, Waker>,
    next: u64,
}

impl CachedHost {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host with its addresses of the moment; without, the reason.
    ///
    /// # Errors
    /// Why there is no address.
    pub fn host(&self) -> Result<Arc<Host>, Arc<str>> {
        let state = self.state();
        state.host.clone().ok_or_else(|| Arc::clone(&state.failure))
    }

    /// Another number whenever [`CachedHost::host`] gives something else.
    pub fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// No longer in the cache: whoever remembers it looks there again.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    fn finish(&self, change: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.state();
            change(&mut state);
            state.complete = true;
            self.version.fetch_add(1, Relaxed);
            std::mem::take(&mut state.waiting)
        };
        wakers.into_values().for_each(Waker::wake);
    }

    /// Takes addresses in use. Whether they are others than before.
    pub fn resolved(&self, addresses: &[IpAddr]) -> bool {
        let sockets: Vec<SocketAddr> = addresses.iter().map(|ip| SocketAddr::new(*ip, self.key.port)).collect();
        let Some(first) = sockets.first().copied() else { return false };
        let all = if sockets.len() > 1 { AddressOrder::default().sort(&sockets) } else { Vec::new() };
        let same = |host: &Arc<Host>| host.address == Address::Socket(first) && host.addresses == all;
        if self.state().host.as_ref().is_some_and(same) {
            return false;
        }
        let mut host = Host::new(Address::Socket(first));
        host.addresses = all;
        host.hostname = Arc::clone(&self.key.text);
        self.finish(|state| state.host = Some(Arc::new(host)));
        true
    }

    /// There is no address to be had now; an earlier one stays.
    pub fn failed(&self, reason: &str) {
        self.finish(|state| state.failure = reason.into());
    }
}

/// What the workers and the main thread share.
#[derive(Debug)]
pub struct DnsCache {
    pub config: Arc<DnsCacheConfig>,
    started: Instant,
    hosts: Mutex<HashMap<Arc<str>, Arc<CachedHost>>>,
    pending: Arc<Gate>,
    asked: Mutex<Asked>,
    /// Requests refused because the cache was full, or because too many waited.
    pub overflows: AtomicU64,
    pub pending_overflows: AtomicU64,
}

/// What the main thread has to resolve.
#[derive(Debug, Default)]
struct Asked {
    hosts: Vec<Arc<CachedHost>>,
    waker: Option<Waker>,
}

/// What became of a request for a name.
#[derive(Debug)]
pub enum Load {
    Known(Arc<CachedHost>),
    /// Its first lookup is under way.
    Wait(Waiting),
    /// Too many wait already.
    Overflow,
    /// The cache holds as many hosts as it may.
    Full,
}

impl DnsCache {
    pub fn new(config: DnsCacheConfig) -> Arc<Self> {
        let cache = Arc::new(Self {
            pending: Gate::new(config.max_pending),
            config: Arc::new(config),
            started: Instant::now(),
            hosts: Mutex::default(),
            asked: Mutex::default(),
            overflows: AtomicU64::new(0),
            pending_overflows: AtomicU64::new(0),
        });
        for (name, port) in &cache.config.preresolve {
            if let Some(key) = HostKey::of(name, *port) {
                cache.insert(&mut cache.hosts(), key);
            }
        }
        cache
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<CachedHost>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Asks for a name.
    pub fn load(&self, key: HostKey) -> Load {
        let Some(permit) = self.pending.take() else {
            self.pending_overflows.fetch_add(1, Relaxed);
            return Load::Overflow;
        };
        let mut hosts = self.hosts();
        let host = match hosts.get(&key.text) {
            Some(host) => Arc::clone(host),
            None if hosts.len() >= self.config.max_hosts => {
                self.overflows.fetch_add(1, Relaxed);
                return Load::Full;
            }
            None => self.insert(&mut hosts, key),
        };
        drop(hosts);
        let complete = host.state().complete;
        if complete { Load::Known(host) } else { Load::Wait(Waiting { host, id: None, _permit: permit }) }
    }

    /// A host that is known already.
    pub fn get(&self, key: &str) -> Option<Arc<CachedHost>> {
        self.hosts().get(key).cloned()
    }

    fn insert(&self, hosts: &mut HashMap<Arc<str>, Arc<CachedHost>>, key: HostKey) -> Arc<CachedHost> {
        let host = Arc::new(CachedHost {
            version: AtomicU64::new(0),
            state: Mutex::default(),
            removed: AtomicBool::new(false),
            used: AtomicU64::new(self.millis()),
            key,
        });
        hosts.insert(Arc::clone(&host.key.text), Arc::clone(&host));
        let waker = {
            let mut asked = self.asked();
            asked.hosts.push(Arc::clone(&host));
            asked.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        host
    }

    /// A host serves a request: it will not be forgotten soon.
    pub fn used(&self, host: &CachedHost) {
        host.used.store(self.millis(), Relaxed);
    }

    /// Whether nobody has used the host for the time that hosts are kept.
    pub fn is_stale(&self, host: &CachedHost) -> bool {
        let unused = self.millis().saturating_sub(host.used.load(Relaxed));
        Duration::from_millis(unused) > self.config.host_ttl
    }

    pub fn forget(&self, host: &CachedHost) {
        self.hosts().remove(&host.key.text);
        host.removed.store(true, Relaxed);
    }

    pub fn len(&self) -> usize {
        self.hosts().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For the main thread, which alone asks: the hosts that were asked for since.
    pub fn poll_asked(&self, cx: &mut Context<'_>) -> Poll<Vec<Arc<CachedHost>>> {
        let mut asked = self.asked();
        if asked.hosts.is_empty() {
            asked.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut asked.hosts))
    }
}

/// Waits until the first lookup of a name is over.
#[derive(Debug)]
pub struct Waiting {
    host: Arc<CachedHost>,
    /// Our place among those who are woken.
    id: Option<u64>,
    _permit: Permit,
}

impl Future for Waiting {
    type Output = Arc<CachedHost>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Arc<CachedHost>> {
        let host = Arc::clone(&self.host);
        let mut state = host.state();
        if state.complete {
            drop(state);
            return Poll::Ready(host);
        }
        let id = *self.id.get_or_insert_with(|| {
            state.next += 1;
            state.next
        });
        state.waiting.insert(id, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.host.state().waiting.remove(&id);
        }
    }
}

/// The caches of a configuration by name.
#[derive(Debug, Default)]
pub struct DnsCaches(HashMap<Arc<str>, Arc<DnsCache>>);

impl DnsCaches {
    /// The cache of that name, which all who name it share.
    ///
    /// # Errors
    /// When there is one with other settings.
    pub fn share(&mut self, config: DnsCacheConfig) -> Result<Arc<DnsCache>, String> {
        self.forget_unused();
        match self.0.get(&config.name) {
            Some(cache) if *cache.config == config => Ok(Arc::clone(cache)),
            Some(_) => Err(format!("the cache `{}` is also used with other settings; they must be the same", config.name)),
            None => {
                let cache = DnsCache::new(config);
                self.0.insert(Arc::clone(&cache.config.name), Arc::clone(&cache));
                Ok(cache)
            }
        }
    }

    fn forget_unused(&mut self) {
        self.0.retain(|_, cache| Arc::strong_count(cache) > 1);
    }

    /// The caches in use.
    pub fn all(&mut self) -> Vec<Arc<DnsCache>> {
        self.forget_unused();
        self.0.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    pub(crate) fn config(name: &str) -> DnsCacheConfig {
        DnsCacheConfig {
            name: name.into(),
            family: DnsFamily::All,
            resolver: None,
            refresh: Duration::from_secs(60),
            min_refresh: Duration::from_secs(5),
            host_ttl: Duration::from_secs(300),
            max_hosts: 2,
            forget_failures: false,
            failure: None,
            max_pending: 2,
            query_timeout: None,
            preresolve: Vec::new(),
            refused: None,
        }
    }

    fn key(text: &str) -> HostKey {
        HostKey::of(text, 80).unwrap()
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn authorities_are_taken_apart() {
        let parts = |text: &str| HostKey::of(text, 80).map(|k| (k.name.to_string(), k.port, k.text.to_string()));
        let is = |name: &str, port, text: &str| Some((name.to_owned(), port, text.to_owned()));
        assert_eq!(parts("Example.COM"), is("example.com", 80, "example.com:80"));
        assert_eq!(parts("example.com:8080"), is("example.com", 8080, "example.com:8080"));
        assert_eq!(parts("[::1]:443"), is("::1", 443, "[::1]:443"));
        assert_eq!(parts("[::1]"), is("::1", 80, "[::1]:80"));
        assert_eq!(parts("::1"), is("::1", 80, "[::1]:80"));
        assert_eq!(parts("a:99999").map(|p| p.1), Some(80));
        assert_eq!(parts(""), None);
        assert_eq!(parts(":80"), None);
    }

    #[test]
    fn who_comes_before_the_first_answer_waits_for_it() {
        let cache = DnsCache::new(config("c"));
        let Load::Wait(waiting) = cache.load(key("a")) else { panic!("known already") };
        let mut waiting = pin!(waiting);
        assert!(poll(waiting.as_mut()).is_pending());
        let Poll::Ready(asked) = cache.poll_asked(&mut Context::from_waker(Waker::noop())) else { panic!("nothing asked") };
        assert_eq!((asked.len(), &*asked[0].key.text), (1, "a:80"));
        assert!(cache.poll_asked(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(asked[0].resolved(&["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()]));
        let Poll::Ready(host) = poll(waiting.as_mut()) else { panic!("still waits") };
        let host = host.host().unwrap();
        assert_eq!((host.address.to_string(), host.addresses.len(), &*host.hostname), ("10.0.0.1:80".to_owned(), 2, "a:80"));
        assert!(matches!(cache.load(key("A:80")), Load::Known(_)));
    }

    #[test]
    fn waiters_and_hosts_are_bounded() {
        let cache = DnsCache::new(config("c"));
        let first = cache.load(key("a"));
        let second = cache.load(key("a"));
        assert!(matches!((&first, &second), (Load::Wait(_), Load::Wait(_))));
        assert!(matches!(cache.load(key("b")), Load::Overflow));
        drop(second);
        assert!(matches!(cache.load(key("b")), Load::Wait(_)));
        assert!(matches!(cache.load(key("c")), Load::Full));
        assert_eq!((cache.overflows.load(Relaxed), cache.pending_overflows.load(Relaxed)), (1, 1));
        let host = cache.get("b:80").unwrap();
        cache.forget(&host);
        assert!(host.is_removed() && matches!(cache.load(key("c")), Load::Wait(_)));
    }

    #[test]
    fn a_failure_ends_the_wait_and_leaves_an_earlier_address() {
        let cache = DnsCache::new(config("c"));
        let Load::Wait(waiting) = cache.load(key("a")) else { panic!("known already") };
        let host = cache.get("a:80").unwrap();
        host.failed("no such name");
        let Poll::Ready(_) = poll(pin!(waiting).as_mut()) else { panic!("still waits") };
        assert_eq!(&*host.host().unwrap_err(), "no such name");
        let before = host.version();
        host.resolved(&["10.0.0.1".parse().unwrap()]);
        assert!(host.version() > before);
        host.failed("timeout");
        assert_eq!(host.host().unwrap().address.to_string(), "10.0.0.1:80");
        assert!(!host.resolved(&["10.0.0.1".parse().unwrap()]), "nothing new");
    }

    #[test]
    fn who_gives_up_waiting_leaves_nothing_behind() {
        let cache = DnsCache::new(config("c"));
        let Load::Wait(mut waiting) = cache.load(key("a")) else { panic!("known already") };
        assert!(poll(Pin::new(&mut waiting)).is_pending());
        let host = cache.get("a:80").unwrap();
        assert_eq!(host.state().waiting.len(), 1);
        drop(waiting);
        assert_eq!(host.state().waiting.len(), 0);
    }

    #[test]
    fn an_answer_counts_as_long_as_it_says_between_bounds() {
        let (config, second) = (config("c"), Duration::from_secs(1));
        let after = |ttl: Option<u32>| config.after_answer(ttl.map(|ttl| ttl * second));
        assert_eq!([after(None), after(Some(0)), after(Some(4)), after(Some(60))], [5 * second, 5 * second, 5 * second, 60 * second]);
        assert_eq!(after(Some(u32::MAX)), 7 * 86_400 * second);
    }

    #[test]
    fn addresses_can_be_refused() {
        let mut config = config("c");
        config.refused = Some((vec![Cidr::new("10.0.0.0".parse().unwrap(), 8)], false));
        assert!(!config.allows("10.1.2.3".parse().unwrap()) && config.allows("192.0.2.1".parse().unwrap()));
        config.refused = Some((vec![Cidr::new("10.0.0.0".parse().unwrap(), 8)], true));
        assert!(config.allows("10.1.2.3".parse().unwrap()) && !config.allows("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn one_name_has_one_cache() {
        let mut caches = DnsCaches::default();
        let first = caches.share(config("c")).unwrap();
        assert!(Arc::ptr_eq(&first, &caches.share(config("c")).unwrap()));
        let other = DnsCacheConfig { max_hosts: 7, ..config("c") };
        assert!(caches.share(other.clone()).unwrap_err().contains("other settings"));
        drop(first);
        assert_eq!(caches.share(other).unwrap().config.max_hosts, 7);
        assert_eq!(caches.all().len(), 0);
    }
}
