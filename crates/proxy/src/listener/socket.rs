//! System calls about sockets that the standard library lacks.
#![allow(unsafe_code)]
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use lateen_snapshot::Listener;
use lateen_snapshot::socket::{OptionValue, SocketOption};
use socket2::{Domain, Protocol, Socket, Type};

const SO_ORIGINAL_DST: libc::c_int = 80;

/// What is settled when a socket is made: where it changes there has to be another socket (Envoy's `socketOptionsEqual`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    /// A socket of IPv6 takes IPv4 too.
    dual_stack: bool,
    transparent: bool,
    freebind: bool,
    options: Vec<SocketOption>,
}

impl Setup {
    pub(super) fn of(listener: &Listener, address: SocketAddr) -> Self {
        let own = listener.own_options.iter().find(|(of, _)| *of == address).map(|(_, options)| options);
        let options = own.unwrap_or(&listener.socket_options).iter().filter(|option| option.applies_to(address));
        Self {
            dual_stack: listener.dual_stack.contains(&address),
            transparent: listener.transparent,
            freebind: listener.freebind,
            options: options.cloned().collect(),
        }
    }
}

/// A listening socket that shares its port with those of the other workers.
pub(super) fn listen(listener: &Listener, setup: &Setup, address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!setup.dual_stack)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if setup.transparent {
        set_transparent(&socket, address)?;
    }
    if setup.freebind {
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    // Connections inherit it, and need no system call of their own.
    socket.set_tcp_nodelay(true)?;
    for option in &setup.options {
        apply(&socket, option)?;
    }
    socket.bind(&address.into())?;
    socket.listen(backlog(listener))?;
    Ok(socket.into())
}

fn backlog(listener: &Listener) -> i32 {
    i32::try_from(listener.tcp_backlog.clamp(1, 65_535)).unwrap_or(1024)
}

fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

/// Makes a socket of the process before one of this listener: what can still be set on a bound socket is.
pub(super) fn adopt(socket: &std::net::TcpListener, listener: &Listener, setup: &Setup, address: SocketAddr) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_nonblocking(true)?;
    if setup.transparent
        && let Err(e) = set_transparent(&socket, address)
    {
        tracing::warn!("listener {}: a socket cannot be made transparent by a hot restart: {e}", listener.name);
    }
    for option in &setup.options {
        if let Err(e) = apply(&socket, option) {
            let SocketOption { level, name, .. } = option;
            tracing::warn!("listener {}: socket option {level}/{name} cannot be changed by a hot restart: {e}", listener.name);
        }
    }
    socket.listen(backlog(listener))
}

/// Changes the length of a socket's queue: all that listening again does.
pub(super) fn set_backlog(socket: &tokio::net::TcpListener, listener: &Listener) -> io::Result<()> {
    socket2::SockRef::from(socket).listen(backlog(listener))
}

/// Sets an integer socket option by number, as listeners and clusters configure them.
pub(crate) fn set_option(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which outlives the call; the descriptor is open.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<i32>() as libc::socklen_t) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option as it is configured.
pub(crate) fn apply(socket: &Socket, option: &SocketOption) -> io::Result<()> {
    let bytes = match &option.value {
        OptionValue::Number(value) => return set_option(socket, option.level, option.name, *value),
        OptionValue::Bytes(bytes) => bytes,
    };
    let length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the pointer and length describe `bytes`, which outlive the call; the descriptor is open.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), option.level, option.name, bytes.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where a redirected connection wanted to go; `None` when it was not redirected.
pub(super) fn original_destination(stream: &tokio::net::TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    // An IPv4 connection on a dual-stack socket keeps its destination with the IPv4 tables.
    let v4 = local.is_ipv4() || matches!(local.ip(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    if v4 {
        let address: libc::sockaddr_in = get_option(stream, libc::SOL_IP, SO_ORIGINAL_DST)?;
        let ip = u32::from_be(address.sin_addr.s_addr);
        Some(SocketAddr::V4(SocketAddrV4::new(ip.into(), u16::from_be(address.sin_port))))
    } else {
        let address: libc::sockaddr_in6 = get_option(stream, libc::SOL_IPV6, SO_ORIGINAL_DST)?;
        let ip = address.sin6_addr.s6_addr.into();
        Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, 0)))
    }
}

fn get_option<T: Copy>(stream: &tokio::net::TcpStream, level: libc::c_int, name: libc::c_int) -> Option<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` has room for `size` bytes, and the callers' types are plain C structures for which any
    // bytes, also fewer than asked for over zeroes, are valid.
    unsafe {
        let result = libc::getsockopt(stream.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut size);
        (result == 0).then(|| value.assume_init())
    }
}

/// IPv4 addresses seen through an IPv6 socket, as IPv4.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}
