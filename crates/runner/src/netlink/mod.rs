//! Netlink: message encoding and a blocking socket, shared by links ([`link`]) and nftables ([`crate::nft`]).
//!
//! A socket belongs to the network namespace of the thread that opened it, so everything here is
//! synchronous and is called on a thread that has entered the namespace it works in.
pub mod link;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

pub const NLM_F_REQUEST: u16 = 0x1;
pub const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
/// No answer of the kernel takes longer; it answers while `send` runs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One netlink message under construction: header, fixed part, attributes padded to four bytes.
#[derive(Clone, Debug)]
pub struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    /// A message of type `kind` whose fixed part is `fixed`; `NLM_F_REQUEST` is always set.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut message = Self { kind, flags: flags | NLM_F_REQUEST, body: fixed.to_vec() };
        message.pad();
        message
    }

    fn pad(&mut self) {
        while !self.body.len().is_multiple_of(4) {
            self.body.push(0);
        }
    }

    /// Appends raw bytes: the fixed part of a message nested in an attribute.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.body.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = (value.len() + 4) as u16;
        self.body.extend_from_slice(&length.to_ne_bytes());
        self.body.extend_from_slice(&kind.to_ne_bytes());
        self.body.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a text attribute with its closing zero.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends a number in the machine's byte order (rtnetlink).
    pub fn u32_ne(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a number in network byte order (nfnetlink).
    pub fn u32_be(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends an attribute that holds what `fill` appends.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.body.len();
        self.body.extend_from_slice(&[0, 0]);
        self.body.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        let length = ((self.body.len() - start) as u16).to_ne_bytes();
        self.body[start..start + 2].copy_from_slice(&length);
        self
    }

    pub(crate) fn want_ack(&mut self) {
        self.flags |= NLM_F_ACK;
    }

    /// The bytes that travel, numbered `sequence`.
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        bytes.extend_from_slice(&((HEADER + self.body.len()) as u32).to_ne_bytes());
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&self.flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A netlink socket of the calling thread's network namespace.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket of `protocol`.
    ///
    /// # Errors
    /// When the kernel has no such protocol.
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(TIMEOUT.as_secs() as i64, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Lets one transfer hold more than the default 200 kB; the kernel caps it at `net.core.wmem_max`.
    pub fn grow_send_buffer(&self, bytes: usize) {
        let _ = setsockopt(&self.fd, sockopt::SndBuf, &bytes);
        // One acknowledgement a message at most, but an error carries the whole request back.
        let _ = setsockopt(&self.fd, sockopt::RcvBuf, &bytes);
    }

    /// Sends one request and waits for its acknowledgement.
    ///
    /// # Errors
    /// The kernel's verdict.
    pub fn request(&mut self, mut message: Message) -> io::Result<()> {
        message.want_ack();
        self.transfer(&[message])
    }

    /// Sends `messages` in one datagram and waits for the acknowledgement of every one that asked for it.
    ///
    /// # Errors
    /// The first error the kernel reports for any of them.
    pub fn transfer(&mut self, messages: &[Message]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut awaited = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            if message.flags & NLM_F_ACK != 0 {
                awaited.push(self.sequence);
            }
            bytes.extend_from_slice(&message.encode(self.sequence));
        }
        sendto(self.fd.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        self.await_acks(awaited)
    }

    fn await_acks(&self, mut awaited: Vec<u32>) -> io::Result<()> {
        let mut buffer = vec![0u8; 64 * 1024];
        while !awaited.is_empty() {
            let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (sequence, code) in verdicts(&buffer[..length]) {
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                awaited.retain(|s| *s != sequence);
            }
        }
        Ok(())
    }
}

/// The (sequence, error code) of every acknowledgement in a received datagram; other messages are skipped.
fn verdicts(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER {
        let length = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if length < HEADER || length > bytes.len() {
            break;
        }
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let sequence = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        if kind == NLMSG_ERROR && length >= HEADER + 4 {
            found.push((sequence, i32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]])));
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nests_carry_their_length() {
        let mut message = Message::new(16, NLM_F_CREATE, &[1, 2, 3, 4]);
        message.text(3, "eth0").nest(18, |m| {
            m.text(1, "veth");
        });
        let bytes = message.encode(7);
        assert_eq!(&bytes[..4], (bytes.len() as u32).to_ne_bytes());
        assert_eq!(&bytes[20..32], &[9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0]);
        assert_eq!(&bytes[32..36], &[16, 0, 18, 0x80]);
        assert_eq!(bytes.len(), 48);
    }

    #[test]
    fn verdicts_survive_truncated_and_nonsense_datagrams() {
        let mut ack = vec![36, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        ack.extend_from_slice(&(-17i32).to_ne_bytes());
        ack.resize(36, 0);
        assert_eq!(verdicts(&ack), vec![(9, -17)]);
        assert_eq!(verdicts(&ack[..30]), vec![]);
        assert_eq!(verdicts(&[0; 40]), vec![]);
    }
}
