//! A pod's namespaces: its own network, mounts and host name, made on a thread that leaves them behind as descriptors.
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;

use super::{bind, make_mounts_private, sysctl};
use crate::netlink::link::Links;

/// The name of a pod's interface, as in Kubernetes.
pub const POD_INTERFACE: &str = "eth0";

/// What a pod's namespaces are made of.
#[derive(Clone, Debug)]
pub struct PodSetup {
    pub hostname: String,
    /// Becomes the pod's `/run`: tokens, sockets, mounted volumes.
    pub run: PathBuf,
    pub resolv_conf: String,
    pub hosts: String,
    /// Further (source, target) bind mounts; a target under `/run` is made, any other must exist on the host.
    pub mounts: Vec<(PathBuf, PathBuf)>,
}

/// The descriptors that keep a pod's namespaces alive.
#[derive(Debug)]
pub struct PodNamespaces {
    pub net: OwnedFd,
    pub mnt: OwnedFd,
    pub uts: OwnedFd,
}

impl PodNamespaces {
    /// Makes them; the network has nothing but a loopback interface that is up.
    ///
    /// # Errors
    /// When the kernel refuses or a mount's target does not exist.
    pub fn make(setup: &PodSetup) -> io::Result<Self> {
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
                make_mounts_private()?;
                mount_files(setup)?;
                sethostname(&setup.hostname)?;
                quiet_network();
                let mut links = Links::open()?;
                links.up("lo")?;
                // What the sidecar hands to the application comes from ::6, as Istio's does; unlike 127.0.0.6 it
                // is nobody's until it is given. A kernel without IPv6 does without.
                let _ = links.add_address("lo", IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)), 128);
                let open = |name: &str| fs::File::open(format!("/proc/thread-self/ns/{name}")).map(OwnedFd::from);
                Ok(Self { net: open("net")?, mnt: open("mnt")?, uts: open("uts")? })
            });
            made.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes a pod's namespaces panicked")))
        })
    }

    /// Gives the pod its addresses and the way out, once its interface is there.
    ///
    /// # Errors
    /// The kernel's; a missing IPv6 is no error.
    pub fn address(&self, addresses: &[(IpAddr, IpAddr)]) -> io::Result<()> {
        super::in_network(self.net.as_fd(), || {
            let mut links = Links::open()?;
            links.up(POD_INTERFACE)?;
            for (address, gateway) in addresses {
                // A host prefix: even a neighbour is reached through the mesh's namespace, where cluster
                // addresses are rewritten both ways and a link can be cut or slowed.
                let prefix = if address.is_ipv4() { 32 } else { 128 };
                let added =
                    links.add_address(POD_INTERFACE, *address, prefix).and_then(|()| links.add_default_route(POD_INTERFACE, *gateway));
                if address.is_ipv4() {
                    added?;
                }
            }
            Ok(())
        })
    }
}

/// Any port may be bound, and routes come from us alone. A kernel without one of the settings does as well.
fn quiet_network() {
    for (name, value) in [
        ("net.ipv4.ip_unprivileged_port_start", "0"),
        ("net.ipv4.ping_group_range", "0 0"),
        ("net.ipv4.conf.all.accept_redirects", "0"),
        ("net.ipv4.conf.default.accept_redirects", "0"),
        ("net.ipv6.conf.all.disable_ipv6", "0"),
        ("net.ipv6.conf.default.disable_ipv6", "0"),
        // Nobody else hands out addresses; without this neighbours cannot be asked for in the first two seconds.
        ("net.ipv6.conf.default.accept_dad", "0"),
        ("net.ipv6.conf.default.accept_ra", "0"),
        ("net.ipv6.conf.default.accept_redirects", "0"),
        ("net.ipv6.conf.all.accept_redirects", "0"),
    ] {
        let _ = sysctl(name, value);
    }
}

fn mount_files(setup: &PodSetup) -> io::Result<()> {
    let etc = setup.run.join("lateen-etc");
    fs::create_dir_all(&etc)?;
    // Followed before /run changes: systemd-resolved has /etc/resolv.conf point there.
    place(&setup.run, &etc, "resolv.conf", &setup.resolv_conf)?;
    place(&setup.run, &etc, "hosts", &setup.hosts)?;
    for (source, target) in &setup.mounts {
        if let Ok(inner) = target.strip_prefix("/run").or_else(|_| target.strip_prefix("/var/run")) {
            let inside = setup.run.join(inner);
            make_target(source, &inside)?;
            bind(source, &inside)?;
        }
    }
    bind(&setup.run, Path::new("/run"))?;
    for (source, target) in setup.mounts.iter().filter(|(_, t)| !t.starts_with("/run") && !t.starts_with("/var/run")) {
        bind(source, target)
            .map_err(|e| io::Error::other(format!("{e} (a volume can be mounted under /run, or where the host has such a path)")))?;
    }
    Ok(())
}

fn make_target(source: &Path, target: &Path) -> io::Result<()> {
    if source.is_dir() {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if target.exists() { Ok(()) } else { fs::write(target, "") }
}

/// Puts `text` where `/etc/<name>` leads, by a mount or, for a link into `/run`, as a file of the pod's own `/run`.
fn place(run: &Path, etc: &Path, name: &str, text: &str) -> io::Result<()> {
    let visible = Path::new("/etc").join(name);
    if let Ok(inner) = follow(&visible).strip_prefix("/run") {
        let file = run.join(inner);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        return fs::write(file, text);
    }
    let file = etc.join(name);
    fs::write(&file, text)?;
    if visible.exists() {
        bind(&file, &visible)
    } else {
        Err(io::Error::other(format!("{} does not exist on this machine: create an empty one", visible.display())))
    }
}

/// Where a chain of links ends, whether or not anything is there.
fn follow(path: &Path) -> PathBuf {
    let mut at = path.to_owned();
    for _ in 0..16 {
        let Ok(target) = fs::read_link(&at) else { break };
        at = normal(&at.parent().unwrap_or(Path::new("/")).join(target));
    }
    at.strip_prefix("/var/run").map(|rest| Path::new("/run").join(rest)).unwrap_or(at.clone())
}

fn normal(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_to_where_nothing_is() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("resolv.conf");
        std::os::unix::fs::symlink("../../../../../../run/systemd/resolve/stub-resolv.conf", &link).unwrap();
        assert_eq!(follow(&link), Path::new("/run/systemd/resolve/stub-resolv.conf"));
        assert_eq!(follow(folder.path()), folder.path());
    }
}
