//! Probes: whether a container is ready or alive, asked from inside its pod so that nothing is captured on the way.
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use lateen_model::kinds::workload::Probe as ProbeSpec;
use lateen_model::schema::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::namespaces::in_network;
use crate::namespaces::pod::PodNamespaces;

/// How often a container that is not ready yet is asked, whatever its period: a mesh on one machine should not sit waiting.
const EAGER: Duration = Duration::from_millis(200);
/// Longer heads of an answer are not read; only the status line counts.
const HEAD_LIMIT: usize = 4096;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Http {
        port: u16,
        path: String,
        host: Option<String>,
        headers: Vec<(String, String)>,
    },
    Tcp {
        port: u16,
    },
    /// A command in the container that must exit with 0.
    Exec {
        command: Vec<String>,
    },
    /// Nothing to ask: ready as soon as it runs.
    Nothing,
}

/// A check with its timing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub check: Check,
    pub initial_delay: Duration,
    pub timeout: Duration,
    pub period: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

impl Probe {
    /// A check with Kubernetes' default timing.
    pub fn of(check: Check) -> Self {
        Self {
            check,
            initial_delay: Duration::ZERO,
            timeout: Duration::from_secs(1),
            period: Duration::from_secs(10),
            success_threshold: 1,
            failure_threshold: 3,
        }
    }

    /// Reads a probe; `port_named` finds a container port by its name.
    ///
    /// # Errors
    /// What of it cannot be done, in words.
    pub fn read(spec: &ProbeSpec, port_named: impl Fn(&str) -> Option<u16>) -> Result<Self, String> {
        let port = |port: Option<&IntOrString>| match port {
            Some(IntOrString::Int(number)) => u16::try_from(*number).map_err(|_| format!("port {number} is out of range")),
            Some(IntOrString::String(name)) => {
                port_named(name).or_else(|| name.parse().ok()).ok_or(format!("the container has no port named `{name}`"))
            }
            None => Err("the probe has no port".to_owned()),
        };
        let check = if let Some(http) = &spec.http_get {
            if http.scheme != lateen_model::kinds::workload::ProbeScheme::Http {
                return Err("httpGet with scheme HTTPS is not supported; use tcpSocket or exec".into());
            }
            Check::Http {
                port: port(http.port.as_ref())?,
                path: http.path.clone().unwrap_or_else(|| "/".into()),
                host: http.host.clone(),
                headers: http.http_headers.iter().map(|h| (h.name.clone(), h.value.clone())).collect(),
            }
        } else if let Some(tcp) = &spec.tcp_socket {
            Check::Tcp { port: port(tcp.port.as_ref())? }
        } else if let Some(exec) = &spec.exec {
            Check::Exec { command: exec.command.clone() }
        } else if spec.grpc.is_some() {
            return Err("grpc probes are not supported; use tcpSocket or exec".into());
        } else {
            Check::Nothing
        };
        let seconds = |n: Option<std::num::NonZeroU32>, default| n.map_or(default, |n| Duration::from_secs(n.get().into()));
        Ok(Self {
            check,
            initial_delay: Duration::from_secs(spec.initial_delay_seconds.unwrap_or(0).into()),
            timeout: seconds(spec.timeout_seconds, Duration::from_secs(1)),
            period: seconds(spec.period_seconds, Duration::from_secs(10)),
            success_threshold: spec.success_threshold.map_or(1, Into::into),
            failure_threshold: spec.failure_threshold.map_or(3, Into::into),
        })
    }
}

/// The verdict over time; changes only when a threshold is reached.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    good: bool,
    decided: bool,
    streak: u32,
}

impl Verdict {
    /// Counts one result; `Some` when the verdict changes.
    pub fn count(&mut self, success: bool, probe: &Probe) -> Option<bool> {
        if success == self.good && self.decided {
            self.streak = 0;
            return None;
        }
        self.streak += 1;
        let needed = if success { probe.success_threshold } else { probe.failure_threshold };
        if self.streak < needed {
            return None;
        }
        (self.good, self.decided, self.streak) = (success, true, 0);
        Some(success)
    }

    /// How long to wait for the next one.
    pub fn pause(&self, probe: &Probe) -> Duration {
        if self.good { probe.period } else { probe.period.min(EAGER) }
    }
}

/// Asks once. Exec checks are not for this function: their process belongs to the reaper.
pub async fn ask(check: &Check, namespaces: &Rc<PodNamespaces>, address: std::net::IpAddr, timeout: Duration) -> bool {
    let asked = async {
        match check {
            Check::Nothing | Check::Exec { .. } => Ok(true),
            Check::Tcp { port } => connect(namespaces, SocketAddr::new(address, *port)).await.map(|_| true),
            Check::Http { port, path, host, headers } => {
                let to = SocketAddr::new(address, *port);
                http(connect(namespaces, to).await?, path, host.as_deref().unwrap_or(&to.to_string()), headers).await
            }
        }
    };
    matches!(tokio::time::timeout(timeout, asked).await, Ok(Ok(true)))
}

/// A connection from inside the pod.
///
/// # Errors
/// The socket's.
pub async fn connect(namespaces: &PodNamespaces, to: SocketAddr) -> io::Result<TcpStream> {
    // Only the making needs the namespace; the socket stays in it.
    let socket = in_network(namespaces.net.as_fd(), move || {
        let domain = socket2::Domain::for_address(to);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM.nonblocking().cloexec(), Some(socket2::Protocol::TCP))?;
        Ok(std::net::TcpStream::from(socket))
    })?;
    TcpSocket::from_std_stream(socket).connect(to).await
}

async fn http(mut stream: TcpStream, path: &str, host: &str, headers: &[(String, String)]) -> io::Result<bool> {
    let host = headers.iter().find(|(k, _)| k.eq_ignore_ascii_case("host")).map_or(host, |(_, v)| v);
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kube-probe/1.32\r\nAccept: */*\r\nConnection: close\r\n");
    for (name, value) in headers.iter().filter(|(k, _)| !k.eq_ignore_ascii_case("host")) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while head.len() < HEAD_LIMIT && !head.contains(&b'\n') {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(status(&head).is_some_and(|code| (200..400).contains(&code)))
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|b| *b == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next()?.starts_with("HTTP/").then_some(())?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_changes_at_its_thresholds_only() {
        let probe = Probe { success_threshold: 2, ..Probe::of(Check::Nothing) };
        let mut verdict = Verdict::default();
        assert_eq!(verdict.count(true, &probe), None);
        assert_eq!(verdict.count(true, &probe), Some(true));
        assert_eq!(verdict.pause(&probe), probe.period);
        assert_eq!((verdict.count(false, &probe), verdict.count(false, &probe)), (None, None));
        assert_eq!(verdict.count(true, &probe), None, "one good answer forgives the bad ones");
        let fall: Vec<_> = (0..4).map(|_| verdict.count(false, &probe)).collect();
        assert_eq!(fall, [None, None, Some(false), None]);
        assert!(verdict.pause(&probe) < probe.period);
    }

    #[test]
    fn status_lines_are_read_and_nonsense_is_not_ready() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        for bad in [&b""[..], b"SSH-2.0\r\n", b"HTTP/1.1\r\n", b"HTTP/1.1 abc\r\n", &[0xff, 0xfe]] {
            assert_eq!(status(bad), None);
        }
    }
}
