//! Links, addresses and routes of the calling thread's network namespace.
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;

use super::{Message, NLM_F_CREATE, NLM_F_EXCL, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_NET_NS_FD: u16 = 28;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTNH_F_ONLINK: u32 = 4;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

/// rtnetlink of one network namespace.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
}

fn ifinfo(index: u32, flags: u32) -> Vec<u8> {
    let mut bytes = vec![0u8; 4];
    bytes.extend_from_slice(&(index as i32).to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn explained(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

impl Links {
    /// Opens rtnetlink in the calling thread's namespace.
    ///
    /// # Errors
    /// When netlink is not to be had.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(SockProtocol::NetlinkRoute).map_err(explained("cannot open rtnetlink"))? })
    }

    /// Makes a bridge with a fixed hardware address, so that it does not change (and neighbours' caches with it) as ports join.
    ///
    /// # Errors
    /// The kernel's, for instance without bridge support.
    pub fn add_bridge(&mut self, name: &str, hardware: [u8; 6]) -> io::Result<()> {
        let mut m = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &ifinfo(0, 0));
        m.text(IFLA_IFNAME, name).attr(IFLA_ADDRESS, &hardware).nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "bridge");
        });
        self.socket.request(m).map_err(explained(format_args!("cannot make bridge {name} (kernel without CONFIG_BRIDGE?)")))
    }

    /// Makes a veth pair: `name` here, as a port of `bridge`, and `peer` in the namespace `netns`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_veth(&mut self, name: &str, bridge: &str, peer: &str, netns: BorrowedFd<'_>) -> io::Result<()> {
        let master = if_nametoindex(bridge).map_err(|e| io::Error::other(format!("no bridge {bridge}: {e}")))?;
        let mut m = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &ifinfo(0, IFF_UP));
        m.text(IFLA_IFNAME, name).u32_ne(IFLA_MASTER, master).nest(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&ifinfo(0, 0)).text(IFLA_IFNAME, peer).u32_ne(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
                });
            });
        });
        self.socket.request(m).map_err(explained(format_args!("cannot make the veth pair {name} (kernel without CONFIG_VETH?)")))
    }

    /// Removes a link, and its peer with it.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        let index = self.index(name)?;
        self.socket.request(Message::new(RTM_DELLINK, 0, &ifinfo(index, 0))).map_err(explained(format_args!("cannot remove {name}")))
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn up(&mut self, name: &str) -> io::Result<()> {
        let index = self.index(name)?;
        self.socket.request(Message::new(RTM_NEWLINK, 0, &ifinfo(index, IFF_UP))).map_err(explained(format_args!("cannot set {name} up")))
    }

    /// Adds an address, without duplicate address detection: nobody else hands them out.
    ///
    /// # Errors
    /// When the address is taken or the family switched off.
    pub fn add_address(&mut self, name: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
        let index = self.index(name)?;
        let mut fixed = vec![family(address), prefix, 0, 0];
        fixed.extend_from_slice(&index.to_ne_bytes());
        let mut m = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &fixed);
        m.attr(IFA_LOCAL, &octets(address)).attr(IFA_ADDRESS, &octets(address)).u32_ne(IFA_FLAGS, IFA_F_NODAD);
        self.socket.request(m).map_err(explained(format_args!("cannot add {address}/{prefix} to {name}")))
    }

    /// Adds the default route through `gateway`, which need not be in any prefix of `name` (on-link).
    ///
    /// # Errors
    /// When the link is down or the family switched off.
    pub fn add_default_route(&mut self, name: &str, gateway: IpAddr) -> io::Result<()> {
        let index = self.index(name)?;
        let mut fixed = vec![family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST];
        fixed.extend_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
        let mut m = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &fixed);
        m.attr(RTA_GATEWAY, &octets(gateway)).u32_ne(RTA_OIF, index);
        self.socket.request(m).map_err(explained(format_args!("cannot route by {gateway} on {name}")))
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        if_nametoindex(name).map_err(|e| io::Error::other(format!("no link {name}: {e}")))
    }
}
