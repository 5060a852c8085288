//! Kernel namespaces: the mesh's own set ([`birth`]), one set per pod ([`pod`]), and entering them.
//!
//! Nothing here is bound to a path: a namespace lives as long as a process in it or a descriptor of
//! it does, so that the death of the runner is the end of them all.
pub mod birth;
pub mod pod;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};

/// Runs `work` on a thread of its own inside the network namespace `netns`. A socket made there stays there.
///
/// # Errors
/// When the namespace cannot be entered, or what `work` returns.
pub fn in_network<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let entered = scope.spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).map_err(|e| io::Error::other(format!("cannot enter a network namespace: {e}")))?;
            work()
        });
        entered.join().unwrap_or_else(|_| Err(io::Error::other("a thread in a network namespace panicked")))
    })
}

/// Writes a kernel setting; `name` as in `net.ipv4.ip_forward`, seen from the calling thread's namespace.
///
/// # Errors
/// When there is no such setting or it may not be written.
pub fn sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("cannot set {name}={value}: {e}")))
}

/// Bind-mounts `from` on `to` in the calling thread's mount namespace.
pub(crate) fn bind(from: &Path, to: &Path) -> io::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| io::Error::other(format!("cannot bind {} on {}: {e}", from.display(), to.display())))
}

/// Keeps mounts made here from spreading to where the mount namespace was copied from.
pub(crate) fn make_mounts_private() -> io::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|e| io::Error::other(format!("cannot make mounts private: {e}")))
}
