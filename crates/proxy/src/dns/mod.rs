//! Names to addresses: a resolver that knows the time to live of answers, as the system's own does not tell.
//!
//! It follows `/etc/hosts` and `/etc/resolv.conf` as they are at the moment. A library would bring forty crates, among them
//! the tables of Unicode; what is needed is one question with one kind of answer.
mod exchange;
mod message;
mod system;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use lateen_snapshot::dns::{DnsFamily, DnsResolver, StubResolver};
use tokio::sync::Semaphore;

use message::{Kind, Query, Reply};
use system::{ResolvConf, System};

/// Lookups at once; more wait.
const AT_ONCE: usize = 256;
/// The system's resolver has limits of its own, which nobody here can see.
const SYSTEM_TIMEOUT: Duration = Duration::from_secs(10);
/// What Envoy takes an answer of `getaddrinfo` to live.
const SYSTEM_TTL: Duration = Duration::from_secs(60);

/// Asks for names. One for the process.
#[derive(Debug)]
pub(crate) struct Resolver {
    system: System,
    mark: Option<u32>,
    default: DnsResolver,
    limit: Semaphore,
    turn: AtomicUsize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// None where the name does not exist or has no address of the families wanted.
    pub(crate) addresses: Vec<IpAddr>,
    /// The shortest time to live; `None` for addresses that come from a file.
    pub(crate) ttl: Option<Duration>,
}

/// Nobody could be asked; the reason in words.
type Failure = String;

impl Resolver {
    /// `default` is how names are looked up for whoever says nothing about it.
    pub(crate) fn new(mark: Option<u32>, default: DnsResolver) -> Arc<Self> {
        Arc::new(Self { system: System::default(), mark, default, limit: Semaphore::new(AT_ONCE), turn: AtomicUsize::new(0) })
    }

    /// # Errors
    /// When no server gave an answer: what was known before is not wrong for that.
    pub(crate) async fn lookup(&self, name: &str, family: DnsFamily, how: Option<&DnsResolver>) -> Result<Answer, Failure> {
        if let Ok(address) = name.parse() {
            return Ok(Answer { addresses: vec![address], ttl: None });
        }
        let _permit = self.limit.acquire().await.map_err(|e| e.to_string())?;
        match how.unwrap_or(&self.default) {
            DnsResolver::System => system_lookup(name, family).await,
            DnsResolver::Stub(how) => self.stub_lookup(name, family, how).await,
        }
    }

    async fn stub_lookup(&self, name: &str, family: DnsFamily, how: &StubResolver) -> Result<Answer, Failure> {
        let (v4, v6) = if how.filter_unroutable { routable() } else { (true, true) };
        if let Some(addresses) = self.without_asking(name) {
            let addresses = addresses.into_iter().filter(|a| if a.is_ipv4() { v4 } else { v6 }).collect();
            return Ok(Answer { addresses: of_family(addresses, family), ttl: None });
        }
        let one = |wanted: bool, kind| async move { if wanted { self.search(name, kind, how).await } else { Ok(Answer::default()) } };
        let (a, aaaa) = (one(v4, Kind::A), one(v6, Kind::Aaaa));
        match family {
            DnsFamily::V4Only => a.await,
            DnsFamily::V6Only => aaaa.await,
            DnsFamily::V4Preferred => else_other(a.await, aaaa).await,
            DnsFamily::Auto => else_other(aaaa.await, a).await,
            DnsFamily::All => both(tokio::join!(a, aaaa)),
        }
    }

    /// The addresses that a file gives the name; those of this host for its own name.
    fn without_asking(&self, name: &str) -> Option<Vec<IpAddr>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let listed = self.system.hosts().get(&name).cloned();
        listed.or_else(|| system::loopback(&name).map(Into::into))
    }

    /// Asks for each full name that the name may mean, until one has addresses.
    async fn search(&self, name: &str, kind: Kind, how: &StubResolver) -> Result<Answer, Failure> {
        let conf = self.system.resolv_conf();
        let servers = servers(&conf, how);
        let mut failure = None;
        for candidate in conf.candidates(name, how.no_search) {
            match self.ask(&candidate, kind, &servers, how, conf.tcp).await {
                Ok(answer) if answer.addresses.is_empty() => {}
                Ok(answer) => return Ok(answer),
                // Servers that do not answer one name will not answer the next.
                Err(Unanswered::Silent(why)) => return Err(why),
                Err(Unanswered::Refused(why)) => failure = Some(why),
            }
        }
        failure.map_or_else(|| Ok(Answer::default()), Err)
    }

    async fn ask(&self, name: &str, kind: Kind, servers: &[SocketAddr], how: &StubResolver, tcp: bool) -> Result<Answer, Unanswered> {
        let first = if how.rotate { self.turn.fetch_add(1, Relaxed) } else { 0 };
        let mut last = Unanswered::Silent("there is no server to ask".to_owned());
        for _ in 0..how.tries {
            let mut silent = false;
            for at in 0..servers.len() {
                let Some(server) = first.wrapping_add(at).checked_rem(servers.len()).and_then(|at| servers.get(at)) else { continue };
                // What cannot be a name does not exist.
                let Some(query) = Query::new(rand::random(), name, kind, how.payload) else { return Ok(Answer::default()) };
                let exchange = exchange::ask(*server, &query, how.tcp || tcp, how.payload, self.mark);
                last = match tokio::time::timeout(how.timeout, exchange).await {
                    Ok(Ok(Reply::Addresses(addresses, ttl))) => return Ok(Answer { addresses, ttl: Some(ttl) }),
                    Ok(Ok(Reply::Failed(code))) => Unanswered::Refused(format!("{server} answers with code {code}")),
                    Ok(Ok(Reply::Truncated | Reply::Foreign)) => Unanswered::Refused(format!("{server} does not answer the question")),
                    Ok(Err(e)) => Unanswered::Silent(format!("{server}: {e}")),
                    Err(_) => {
                        silent = true;
                        Unanswered::Silent(format!("{server}: no answer within {:?}", how.timeout))
                    }
                };
            }
            // Asking again helps only where a question or its answer may have been lost.
            if !silent {
                break;
            }
        }
        Err(last)
    }
}

enum Unanswered {
    Silent(String),
    Refused(String),
}

fn servers(conf: &ResolvConf, how: &StubResolver) -> Vec<SocketAddr> {
    let of_system = !conf.servers.is_empty() && (how.servers.is_empty() || how.servers_as_fallback);
    match (of_system, how.servers.is_empty()) {
        (true, _) => conf.servers.clone(),
        (false, false) => how.servers.clone(),
        // As the C library has it.
        (false, true) => vec![(Ipv4Addr::LOCALHOST, 53).into()],
    }
}

/// The other family's addresses where the preferred one has none.
async fn else_other(first: Result<Answer, Failure>, other: impl Future<Output = Result<Answer, Failure>>) -> Result<Answer, Failure> {
    match first {
        Ok(answer) if !answer.addresses.is_empty() => Ok(answer),
        _ => other.await,
    }
}

/// All addresses. One family is enough where nobody answers for the other.
fn both(answers: (Result<Answer, Failure>, Result<Answer, Failure>)) -> Result<Answer, Failure> {
    match answers {
        (Ok(mut a), Ok(b)) => {
            let lives = [&a, &b].into_iter().filter(|x| !x.addresses.is_empty()).filter_map(|x| x.ttl).min();
            a.addresses.extend(b.addresses);
            Ok(Answer { ttl: lives, ..a })
        }
        (Ok(answer), Err(e)) | (Err(e), Ok(answer)) => {
            if answer.addresses.is_empty() {
                Err(e)
            } else {
                Ok(answer)
            }
        }
        (Err(e), Err(_)) => Err(e),
    }
}

fn of_family(all: Vec<IpAddr>, family: DnsFamily) -> Vec<IpAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = all.into_iter().partition(IpAddr::is_ipv4);
    match family {
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::V4Preferred => {
            if v4.is_empty() {
                v6
            } else {
                v4
            }
        }
        DnsFamily::Auto => {
            if v6.is_empty() {
                v4
            } else {
                v6
            }
        }
        DnsFamily::All => [v4, v6].concat(),
    }
}

/// In which families an interface other than loopback has an address; both, when that cannot be told.
fn routable() -> (bool, bool) {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return (true, true) };
    let (mut v4, mut v6) = (false, false);
    for address in interfaces.filter_map(|i| i.address) {
        v4 |= address.as_sockaddr_in().is_some_and(|a| !a.ip().is_loopback());
        v6 |= address.as_sockaddr_in6().is_some_and(|a| !a.ip().is_loopback());
    }
    if v4 || v6 { (v4, v6) } else { (true, true) }
}

async fn system_lookup(name: &str, family: DnsFamily) -> Result<Answer, Failure> {
    let found = tokio::time::timeout(SYSTEM_TIMEOUT, tokio::net::lookup_host((name, 0))).await;
    let found = found.map_err(|_| format!("no answer within {SYSTEM_TIMEOUT:?}"))?.map_err(|e| e.to_string())?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address.ip()) {
            addresses.push(address.ip());
        }
    }
    Ok(Answer { addresses: of_family(addresses, family), ttl: Some(SYSTEM_TTL) })
}

#[cfg(test)]
mod tests;
