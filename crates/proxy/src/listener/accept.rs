//! The accept loop: survives whatever `accept` fails with.
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::connection;
use super::manager::Current;
use crate::worker::Worker;

/// Without descriptors or memory there is nothing to do but let connections end.
const BACK_OFF: Duration = Duration::from_millis(100);

pub(super) async fn run(worker: Rc<Worker>, current: Current, socket: TcpListener) {
    let mut complained = None;
    loop {
        match socket.accept().await {
            Ok((stream, remote)) => {
                complained = None;
                let listener = Rc::clone(&current.borrow());
                tokio::task::spawn_local(connection::serve(Rc::clone(&worker), listener, stream, remote));
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

/// Errors of the connection that was to be accepted, which `accept(2)` hands on.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | HostUnreachable | NetworkDown | NetworkUnreachable
    ) || matches!(error.raw_os_error(), Some(libc::EPROTO | libc::ENOPROTOOPT | libc::EPERM))
}
