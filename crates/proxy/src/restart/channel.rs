//! One connection between parent and child: messages with descriptors, from and to processes of the same user only.
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::message::{MOST_BYTES, MOST_SOCKETS};

const ROOM: usize = rustix::cmsg_space!(ScmRights(MOST_SOCKETS));

/// The stream is one of messages (`SOCK_SEQPACKET`): what is sent at once is received at once.
pub(super) struct Channel(UnixStream);

impl Channel {
    /// # Errors
    /// When the process at the other end belongs to another user: whoever can send it sockets decides whom callers talk to.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        let theirs = rustix::net::sockopt::socket_peercred(&socket)?.uid.as_raw();
        let ours = nix::unistd::geteuid().as_raw();
        if theirs != ours {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it belongs to user {theirs}, not to {ours}")));
        }
        Ok(Self(socket))
    }

    pub(super) async fn send(&self, message: &impl Serialize, sockets: &[OwnedFd], limit: Duration) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > MOST_BYTES || sockets.len() > MOST_SOCKETS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message that is too large"));
        }
        let send = self.0.async_io(Interest::WRITABLE, || send(&self.0, &text, sockets));
        tokio::time::timeout(limit, send).await?
    }

    /// The next message; `None` at the end of the connection.
    pub(super) async fn receive<T: DeserializeOwned>(&self, limit: Duration) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let receive = self.0.async_io(Interest::READABLE, || receive(&self.0));
        let (text, sockets) = tokio::time::timeout(limit, receive).await??;
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&text)?, sockets)))
    }
}

fn send(socket: &UnixStream, text: &[u8], sockets: &[OwnedFd]) -> io::Result<()> {
    let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("no room for descriptors"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(socket: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; MOST_BYTES];
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    // Taken out before anything is judged, or they would stay open.
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too large, or descriptors for which there is no room"));
    }
    text.truncate(got.bytes);
    Ok((text, sockets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    const LIMIT: Duration = Duration::from_secs(5);

    fn pair() -> (Channel, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Channel::new(UnixStream::from_std(a.into()).unwrap()).unwrap(), b)
    }

    #[tokio::test]
    async fn messages_and_sockets_arrive_in_order() {
        let (a, b) = pair();
        let b = Channel::new(UnixStream::from_std(b.into()).unwrap()).unwrap();
        let listeners: Vec<std::net::TcpListener> =
            (0..MOST_SOCKETS).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let sockets: Vec<OwnedFd> = listeners.iter().map(|l| l.as_fd().try_clone_to_owned().unwrap()).collect();
        a.send(&"first", &sockets, LIMIT).await.unwrap();
        a.send(&"second", &[], LIMIT).await.unwrap();
        let (text, got) = b.receive::<String>(LIMIT).await.unwrap().unwrap();
        assert_eq!((text.as_str(), got.len()), ("first", MOST_SOCKETS));
        for (listener, socket) in listeners.iter().zip(got) {
            assert_eq!(std::net::TcpListener::from(socket).local_addr().unwrap(), listener.local_addr().unwrap());
        }
        assert_eq!(b.receive::<String>(LIMIT).await.unwrap().unwrap().0, "second");
        drop(a);
        assert!(b.receive::<String>(LIMIT).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn damaged_messages_and_silence_are_errors() {
        let (a, b) = pair();
        let write = |bytes: &[u8]| rustix::net::send(&b, bytes, SendFlags::empty()).unwrap();
        write(b"{\"hello\":");
        assert!(a.receive::<String>(LIMIT).await.is_err());
        write(&vec![b' '; MOST_BYTES + 1]);
        assert!(a.receive::<String>(LIMIT).await.is_err());
        assert_eq!(a.receive::<String>(Duration::from_millis(10)).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(a.send(&"x".repeat(MOST_BYTES), &[], LIMIT).await.is_err());
        write(b"\"still here\"");
        assert_eq!(a.receive::<String>(LIMIT).await.unwrap().unwrap().0, "still here");
    }
}
