//! Listening, serving and stopping without dropping anybody.
use crate::call::Caller;
use crate::http::Service;
use crate::options::ServeOptions;
use crate::state::State;
use crate::tcp;
use anyhow::Context as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// A caller that opens a connection and says nothing is let go after this long.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests still running after SIGTERM get this long.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const BACKLOG: i32 = 1024;

/// A bound sample service.
pub struct Server {
    state: Rc<State>,
    http: TcpListener,
    tcp: Option<TcpListener>,
}

/// Runs hyper's tasks on this thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

impl Server {
    /// Opens the ports.
    ///
    /// # Errors
    /// When a port is taken or may not be opened.
    pub async fn bind(options: ServeOptions) -> anyhow::Result<Self> {
        let http = listen(options.address, options.port).with_context(|| format!("port {} cannot be opened", options.port))?;
        let tcp = match options.tcp_port {
            Some(port) => Some(listen(options.address, port).with_context(|| format!("port {port} cannot be opened"))?),
            None => None,
        };
        Ok(Self { state: Rc::new(State::new(options)), http, tcp })
    }

    /// Where HTTP is served.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn http_address(&self) -> io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// Where TCP is served, if it is.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Serves until `stop` resolves, then finishes what is running. Must run inside a `LocalSet`.
    ///
    /// # Errors
    /// Never for what a caller does; only when the address of a socket cannot be read.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let State { options, pod, .. } = &*self.state;
        tracing::info!(address = %self.http.local_addr()?, service = options.name, version = options.version, pod, "serving");
        let graceful = GracefulShutdown::new();
        let service = Service::new(self.state.clone(), Caller::new(&self.state.options));
        let drain = self.state.options.drain;
        let state = self.state.clone();
        let mut stop = std::pin::pin!(async move {
            stop.await;
            state.set_draining();
            tokio::time::sleep(drain).await;
        });
        loop {
            tokio::select! {
                () = &mut stop => break,
                accepted = self.http.accept() => match accepted {
                    Ok((stream, _)) => serve_http(stream, service.clone(), &graceful),
                    Err(error) => pause_after(&error).await,
                },
                accepted = accept(self.tcp.as_ref()) => match accepted {
                    Ok(stream) => {
                        tokio::task::spawn_local(tcp::serve(stream, self.state.clone()));
                    }
                    Err(error) => pause_after(&error).await,
                },
            }
        }
        drop(self.http);
        drop(self.tcp);
        let _ = tokio::time::timeout(STOP_TIMEOUT, graceful.shutdown()).await;
        Ok(())
    }
}

fn serve_http(stream: TcpStream, service: Service, graceful: &GracefulShutdown) {
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(LocalExecutor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1024);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    let watched = graceful.watch(connection);
    tokio::task::spawn_local(async move {
        if let Err(error) = watched.await {
            tracing::debug!(%error, "connection ended");
        }
    });
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// Running out of file descriptors must not spin the only thread.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "cannot accept");
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Without an address, both families on one socket; only IPv4 where the kernel has no IPv6.
fn listen(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    match address {
        Some(address) => bind(SocketAddr::new(address, port)),
        None => match bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
            Err(error) if error.raw_os_error() == Some(libc_eafnosupport()) => bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)),
            bound => bound,
        },
    }
}

/// `EAFNOSUPPORT` of Linux: the address family is not compiled in or disabled.
const fn libc_eafnosupport() -> i32 {
    97
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}
