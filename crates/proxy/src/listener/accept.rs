//! The accept loop: survives whatever `accept` fails with, and takes no more than limits and overload allow.
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lateen_snapshot::bootstrap::overload::Action;
use lateen_snapshot::exact_balance::Place;
use lateen_telemetry::envoy_names::listener as names;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::manager::Current;
use super::{ListenerState, connection};
use crate::worker::{self, DrainSignal, Handed, Worker};

/// Without descriptors or memory there is nothing to do but let connections end.
const BACK_OFF: Duration = Duration::from_millis(100);
/// How often an overloaded process looks whether it may accept again.
const PAUSE: Duration = Duration::from_millis(50);

/// The most that a queue can hold in the end.
const MOST_QUEUED: usize = 65_536;

/// Accepts until `stop`, and then what the kernel has queued: closing a socket resets those.
pub(super) async fn run(worker: Rc<Worker>, current: Current, socket: Rc<TcpListener>, stop: oneshot::Receiver<()>) {
    tokio::select! {
        _ = stop => {}
        () = accept(&worker, &current, &socket) => {}
    }
    drain(&worker, &current, &socket);
}

/// Takes all that is queued, asking the kernel itself: the event loop may not know of the last ones yet, and lets a task have only
/// so many in one turn.
fn drain(worker: &Rc<Worker>, current: &Current, socket: &TcpListener) {
    let socket = SockRef::from(socket);
    for _ in 0..MOST_QUEUED {
        match socket.accept() {
            Ok((stream, remote)) => {
                let Some(remote) = remote.as_socket() else { continue };
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream.into()));
                match stream {
                    Ok(stream) => admit(worker, current, stream, remote),
                    Err(e) => tracing::warn!("listener {} lost a connection: {e}", current.borrow().listener.name),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) if concerns_one_connection(&e) => {}
            Err(e) => return tracing::error!("listener {} loses the connections in its queue: {e}", current.borrow().listener.name),
        }
    }
}

async fn accept(worker: &Rc<Worker>, current: &Current, socket: &TcpListener) {
    let mut complained = None;
    loop {
        while is_paused(worker, &current.borrow()) {
            tokio::time::sleep(PAUSE).await;
        }
        match socket.accept().await {
            Ok((stream, remote)) => {
                complained = None;
                admit(worker, current, stream, remote);
            }
            Err(e) if concerns_one_connection(&e) => {}
            Err(e) => {
                if complained != Some(e.kind()) {
                    tracing::error!("listener {} cannot accept connections for now: {e}", current.borrow().listener.name);
                    complained = Some(e.kind());
                }
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

fn is_paused(worker: &Worker, listener: &ListenerState) -> bool {
    worker.overload.is_saturated(Action::StopAcceptingConnections) && !listener.listener.ignores_overload
}

/// Serves the connection here, or has it served by the worker with the fewest where the listener says so.
fn admit(worker: &Rc<Worker>, current: &Current, stream: TcpStream, remote: SocketAddr) {
    let listener = Rc::clone(&current.borrow());
    let Some(balance) = &listener.listener.balance else { return serve(worker, listener, stream, remote, None) };
    let own = worker.shard.index();
    let place = balance.place(own);
    if place.worker() == own {
        return serve(worker, listener, stream, remote, Some(place));
    }
    // Its descriptor leaves this worker's event loop.
    let Ok(stream) = stream.into_std() else { return };
    let handed = Box::new(Handed { listener: Arc::clone(&listener.listener), stream, remote, place });
    if let Err(handed) = worker.peers.hand_over(handed) {
        take(worker, *handed);
    }
}

/// Serves what another worker accepted.
pub(crate) fn take(worker: &Rc<Worker>, handed: Handed) {
    let Handed { listener, stream, remote, place } = handed;
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    // The listener may be gone here already.
    let known = worker.listeners.named(&listener.name);
    let listener = known.unwrap_or_else(|| {
        let state = ListenerState::new(worker, listener);
        state.drain(DrainSignal::start);
        state
    });
    serve(worker, listener, stream, remote, Some(place));
}

fn is_rejected(worker: &Worker) -> bool {
    let concerns = |action| worker.overload.concerns(action, || worker.roll());
    concerns(Action::ShedConnections) || concerns(Action::RejectIncomingConnections)
}

/// Serves the connection, or closes it when there are too many.
fn serve(worker: &Rc<Worker>, listener: Rc<ListenerState>, stream: TcpStream, remote: SocketAddr, place: Option<Place>) {
    let config = &listener.listener;
    if !config.ignores_overload && is_rejected(worker) {
        return listener.stats.inc(names::DOWNSTREAM_CX_OVERLOAD_REJECT);
    }
    // Each worker has its share: one that counted for all would have to be asked by all.
    let share = worker.overload.listener_limit(&config.name).map(|most| most.div_ceil(worker.registry.workers().max(1) as u64));
    if share.is_some_and(|most| listener.accepted.get() >= most) {
        return listener.stats.inc(names::DOWNSTREAM_CX_OVERFLOW);
    }
    let Some(admitted) = worker.overload.admit(config.ignores_connection_limit) else {
        return listener.stats.inc(names::DOWNSTREAM_GLOBAL_CX_OVERFLOW);
    };
    let open = Open::new(&listener);
    let worker_of_task = Rc::clone(worker);
    worker::spawn(worker, async move {
        let _counted = (admitted, open, place);
        connection::serve(worker_of_task, listener, stream, remote).await;
    });
}

/// Counts what a listener accepted and has not ended.
struct Open(Rc<ListenerState>);

impl Open {
    fn new(listener: &Rc<ListenerState>) -> Self {
        listener.accepted.set(listener.accepted.get() + 1);
        Self(Rc::clone(listener))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.accepted.set(self.0.accepted.get() - 1);
    }
}

/// Errors of the connection that was to be accepted, which `accept(2)` hands on.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | HostUnreachable | NetworkDown | NetworkUnreachable
    ) || matches!(error.raw_os_error(), Some(libc::EPROTO | libc::ENOPROTOOPT | libc::EPERM | libc::EHOSTDOWN | libc::ENONET))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concerns_one(code: i32) -> bool {
        concerns_one_connection(&io::Error::from_raw_os_error(code))
    }

    #[test]
    fn what_accept_tells_of_one_connection_stops_no_other() {
        // All that Linux hands on from a connection that broke while it waited (accept(2)), a firewall, and a signal.
        let of_one = [libc::ECONNABORTED, libc::EPROTO, libc::ENOPROTOOPT, libc::EPERM, libc::EINTR, libc::ECONNRESET];
        let of_its_way = [libc::ENETDOWN, libc::ENETUNREACH, libc::EHOSTDOWN, libc::EHOSTUNREACH, libc::ENONET];
        for code in of_one.into_iter().chain(of_its_way) {
            assert!(concerns_one(code), "{}", io::Error::from_raw_os_error(code));
        }
        // What every connection would meet is waited out, and told.
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EBADF, libc::EINVAL] {
            assert!(!concerns_one(code), "{}", io::Error::from_raw_os_error(code));
        }
    }
}
