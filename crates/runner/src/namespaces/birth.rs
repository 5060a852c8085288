//! The mesh's own namespaces: user, mount, pid, network and host name, with our own program as their first process.
//!
//! As pid 1 of its pid namespace that process takes every other one with it when it ends, and the
//! kernel ends it when the process that made it does (`PR_SET_PDEATHSIG`), however that died.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, clone};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, execv, pipe, read, write};

use super::make_mounts_private;

/// Where everything the mesh keeps lies: a tmpfs over the host's `/run`, in the mesh's mount namespace only.
pub const PRIVATE: &str = "/run";

/// Why the namespaces could not be made; each text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NoNamespaces {
    #[error("this kernel lets nobody make user namespaces ({0}): enable them with `sysctl -w user.max_user_namespaces=15000`")]
    Exhausted(nix::Error),
    #[error("ordinary users may not make user namespaces here: enable them with `sysctl -w {0}`, or run as root")]
    Forbidden(&'static str),
    #[error(
        "cannot make namespaces ({0}); in a container, allow them with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined` or run with `--privileged`"
    )]
    Refused(nix::Error),
    #[error(
        "cannot map user ids into the new namespace: {0}; on Ubuntu, `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` allows it"
    )]
    Unmapped(io::Error),
    #[error("{0}")]
    Other(#[from] io::Error),
}

fn setting(name: &str) -> Option<i64> {
    std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?.trim().parse().ok()
}

fn refused(error: nix::Error) -> NoNamespaces {
    if setting("user.max_user_namespaces") == Some(0) || error == nix::Error::ENOSPC {
        NoNamespaces::Exhausted(error)
    } else if setting("kernel.unprivileged_userns_clone") == Some(0) {
        NoNamespaces::Forbidden("kernel.unprivileged_userns_clone=1")
    } else if setting("kernel.apparmor_restrict_unprivileged_userns").is_some_and(|v| v > 0) {
        NoNamespaces::Forbidden("kernel.apparmor_restrict_unprivileged_userns=0")
    } else {
        NoNamespaces::Refused(error)
    }
}

/// Starts this program again (`/proc/self/exe`) with `arguments` as pid 1 of new namespaces; it inherits `inherited` under their numbers.
///
/// To be called while the process has one thread: the child is a copy of that thread alone.
///
/// # Errors
/// [`NoNamespaces`], which says what to enable.
pub fn start_inside(arguments: &[String], inherited: &[BorrowedFd<'_>]) -> Result<Pid, NoNamespaces> {
    let text = |s: &str| CString::new(s).map_err(|_| io::Error::other("an argument holds a zero byte"));
    let program = text("/proc/self/exe")?;
    let arguments = arguments.iter().map(|a| text(a)).collect::<io::Result<Vec<_>>>()?;
    let (gate, opener) = pipe().map_err(io::Error::from)?;
    let flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    let mut stack = vec![0u8; 256 * 1024];
    let child = || -> isize {
        // The end of the write side of our own copy: a maker that dies before the mapping ends the wait.
        let _ = nix::unistd::close(opener.as_raw_fd());
        let mut byte = [0u8];
        if !matches!(read(&gate, &mut byte), Ok(1)) {
            return 70;
        }
        let _ = set_pdeathsig(Signal::SIGKILL);
        for fd in inherited {
            let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()));
        }
        let _ = execv(&program, &arguments);
        71
    };
    // SAFETY: without CLONE_VM the child has its own copy of memory; it only makes system calls on values prepared above.
    let pid = unsafe { clone(Box::new(child), &mut stack, flags, Some(libc::SIGCHLD)) }.map_err(refused)?;
    map_ids(pid).map_err(NoNamespaces::Unmapped)?;
    write(&opener, b"1").map_err(io::Error::from)?;
    Ok(pid)
}

/// Root keeps every id it has; an ordinary user has one id to give, and it becomes the namespace's root.
fn map_ids(pid: Pid) -> io::Result<()> {
    let folder = Path::new("/proc").join(pid.to_string());
    if Uid::effective().is_root() {
        std::fs::write(folder.join("uid_map"), format!("0 0 {}", ids_from_zero("/proc/self/uid_map")))?;
        std::fs::write(folder.join("gid_map"), format!("0 0 {}", ids_from_zero("/proc/self/gid_map")))
    } else {
        std::fs::write(folder.join("uid_map"), format!("0 {} 1", Uid::effective()))?;
        std::fs::write(folder.join("setgroups"), "deny")?;
        std::fs::write(folder.join("gid_map"), format!("0 {} 1", Gid::effective()))
    }
}

/// How many ids from 0 on exist here: fewer than all inside a container that maps a range.
fn ids_from_zero(map: &str) -> u32 {
    let text = std::fs::read_to_string(map).unwrap_or_default();
    let mut extents = text.lines().map(|line| line.split_whitespace().filter_map(|n| n.parse::<u32>().ok()));
    extents.find_map(|mut n| if n.next()? == 0 { n.nth(1) } else { None }).unwrap_or(1)
}

/// First acts of the process inside: die with the maker, own mounts, own `/proc`, the private tmpfs.
///
/// # Errors
/// When a mount is refused.
pub fn settle_inside() -> io::Result<()> {
    // Set again: the execution above may clear it when it raises capabilities.
    set_pdeathsig(Signal::SIGKILL)?;
    make_mounts_private()?;
    // Fails in containers that mask parts of /proc; the old one still serves then, with the host's numbers.
    let _ = mount(Some("proc"), "/proc", Some("proc"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, None::<&str>);
    mount(Some("lateen"), PRIVATE, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755,size=512m"))
        .map_err(|e| io::Error::other(format!("cannot mount a private tmpfs on {PRIVATE}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_range_from_zero_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("map");
        std::fs::write(&file, "         0     100000      65536\n").unwrap();
        assert_eq!(ids_from_zero(file.to_str().unwrap()), 65536);
        std::fs::write(&file, "").unwrap();
        assert_eq!(ids_from_zero(file.to_str().unwrap()), 1);
    }
}
