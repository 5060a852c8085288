//! The line between the mesh's first process and the one outside: JSON messages over a seqpacket socket, descriptors beside them.
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair};
use serde::{Deserialize, Serialize};

/// Longer messages do not occur: names and addresses only.
const LONGEST: usize = 64 * 1024;

/// What the mesh asks of the process outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// Connect to this address in the host's network; the answer carries the socket.
    Connect { id: u64, to: SocketAddr },
    /// Resolve a name with the host's resolver.
    Resolve { id: u64, name: String },
}

/// What comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Tell {
    /// Connected: the socket comes along.
    Connected { id: u64 },
    /// Not connected: the error number.
    Failed { id: u64, errno: i32 },
    /// The addresses of a name; none when it does not exist.
    Resolved { id: u64, addresses: Vec<IpAddr> },
    /// End: gracefully, or at once on the second telling.
    Stop,
}

/// Both ends of a new line.
///
/// # Errors
/// When the process has no descriptors left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one message.
///
/// # Errors
/// The socket's, `WouldBlock` among them.
pub fn send<T: Serialize>(line: BorrowedFd<'_>, message: &T, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let raw: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(line.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message with at most one descriptor; `None` when the other end is gone.
///
/// # Errors
/// The socket's, or a message that is not of type `T`.
pub fn receive<T: for<'a> Deserialize<'a>>(line: BorrowedFd<'_>) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0; LONGEST];
    let (length, mut descriptors) = receive_bytes(line, &mut bytes)?;
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&bytes[..length])?;
    Ok(Some((message, descriptors.pop())))
}

/// Reads bytes and whatever descriptors came with them (three at most).
///
/// # Errors
/// The socket's.
#[allow(unsafe_code)]
pub fn receive_bytes(line: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 3]);
    let mut parts = [IoSliceMut::new(bytes)];
    let received = recvmsg::<()>(line.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn messages_keep_their_bounds_and_carry_descriptors() {
        let (a, b) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(a.as_fd(), &Tell::Connected { id: 7 }, Some(file.as_fd())).unwrap();
        send(a.as_fd(), &Tell::Stop, None).unwrap();
        let (first, descriptor) = receive::<Tell>(b.as_fd()).unwrap().unwrap();
        assert_eq!(first, Tell::Connected { id: 7 });
        assert!(descriptor.is_some());
        assert_eq!(receive::<Tell>(b.as_fd()).unwrap().unwrap().0, Tell::Stop);
        drop(a);
        assert!(receive::<Tell>(b.as_fd()).unwrap().is_none());
    }
}
