//! Serving the control socket: reads a request with its descriptors, does it, streams the replies.
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use base64::Engine;
use lateen_model::Kind;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::{Further, LONGEST_REQUEST, Output, Reply, Request};
use crate::pod::process;
use crate::pod::restart::End;
use crate::relay::link::receive_bytes;
use crate::store::change::{Outcome, quoted};
use crate::store::mesh::{Mesh, PodKey, Slot};

mod get;
mod synced;
mod unready;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A change of the state folder is on its way to the proxies after this long.
const CONTROL_PLANE_NOTICES: Duration = Duration::from_millis(200);

/// Serves until dropped. `down` is told when a client asks for the end.
pub async fn serve(listener: UnixListener, mesh: Mesh, down: watch::Sender<u32>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (mesh, down) = (mesh.clone(), down.clone());
        tokio::task::spawn_local(async move {
            // A client that went away needs no answer.
            let _ = converse(stream, mesh, down).await;
        });
    }
}

async fn converse(stream: UnixStream, mesh: Mesh, down: watch::Sender<u32>) -> io::Result<()> {
    // Ids as this user namespace sees them: its root is the user who started the mesh.
    let peer = stream.peer_cred()?.uid();
    let read = tokio::time::timeout(REQUEST_TIMEOUT, read_request(&stream)).await?;
    let (reader, writer) = stream.into_split();
    let mut client = Client { reader: BufReader::new(reader), writer };
    if peer != 0 {
        return client.fail("error: this mesh belongs to another user").await;
    }
    let (request, descriptors) = match read {
        Ok(read) => read,
        Err(e) => return client.fail(&format!("error: {e}")).await,
    };
    match request {
        Request::Apply { sources, namespace } => client.outcome(mesh.apply(&sources, &namespace)).await,
        Request::DeleteSources { sources, namespace } => client.outcome(mesh.delete_sources(&sources, &namespace)).await,
        Request::Delete { kind, names, namespace } => match kind.parse::<Kind>() {
            Ok(kind) => client.outcome(mesh.delete(kind, &names, &namespace)).await,
            Err(_) => client.fail(&unknown_kind(&kind)).await,
        },
        Request::Get { kinds, names, namespace, output, watch } => client.get(&mesh, &kinds, &names, namespace, output, watch).await,
        Request::Logs { pod, namespace, container, follow, tail, previous } => {
            client.logs(&mesh, (namespace, pod), container.as_deref(), follow, tail, previous).await
        }
        Request::Exec { pod, namespace, container, command, term } => {
            client.exec(&mesh, (namespace, pod), container.as_deref(), command, term, descriptors).await
        }
        Request::Ps => {
            let text = get::processes(&mesh.state());
            client.out(text).await?;
            client.exit(0).await
        }
        Request::Wait { timeout_seconds } => client.wait(&mesh, Duration::from_secs(timeout_seconds)).await,
        Request::Status => {
            let text = get::status(&mesh.state()).to_string() + "\n";
            client.out(text).await?;
            client.exit(0).await
        }
        Request::Down => {
            client.exit(0).await?;
            down.send_modify(|n| *n += 1);
            Ok(())
        }
    }
}

fn unknown_kind(kind: &str) -> String {
    format!("error: the server doesn't have a resource type \"{kind}\"")
}

/// One line of JSON, and the descriptors that came with its first bytes.
async fn read_request(stream: &UnixStream) -> io::Result<(Request, Vec<OwnedFd>)> {
    let mut line = Vec::new();
    let mut descriptors = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while !line.ends_with(b"\n") {
        let (length, mut more) = stream.async_io(Interest::READABLE, || receive_bytes(stream.as_fd(), &mut buffer)).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        descriptors.append(&mut more);
        line.extend_from_slice(&buffer[..length]);
        if line.len() > LONGEST_REQUEST {
            return Err(io::Error::other("the request is longer than 64 MB"));
        }
    }
    Ok((serde_json::from_slice(&line)?, descriptors))
}

struct Client {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Client {
    async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }

    async fn out(&mut self, text: String) -> io::Result<()> {
        self.send(&Reply::Out(text)).await
    }

    async fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.send(&Reply::Out(text.to_owned())).await,
            Err(_) => self.send(&Reply::Raw(base64::engine::general_purpose::STANDARD.encode(bytes))).await,
        }
    }

    async fn exit(&mut self, code: i32) -> io::Result<()> {
        self.send(&Reply::Exit(code)).await
    }

    async fn fail(&mut self, message: &str) -> io::Result<()> {
        self.send(&Reply::Err(format!("{message}\n"))).await?;
        self.exit(1).await
    }

    async fn outcome(&mut self, outcome: Outcome) -> io::Result<()> {
        for line in outcome.out {
            self.send(&Reply::Out(line + "\n")).await?;
        }
        for line in outcome.err {
            self.send(&Reply::Err(line + "\n")).await?;
        }
        self.exit(i32::from(outcome.failed)).await
    }

    async fn get(
        &mut self,
        mesh: &Mesh,
        kinds: &str,
        names: &[String],
        namespace: Option<String>,
        output: Output,
        watch: bool,
    ) -> io::Result<()> {
        let mut versions = mesh.versions();
        let mut seen = std::collections::BTreeMap::new();
        loop {
            let found = get::find(&mesh.state(), kinds, names, namespace.as_deref());
            let found = match found {
                Ok(found) => found,
                Err(message) => return self.fail(&message).await,
            };
            if !watch {
                let missing = found.missing.clone();
                let text = get::print(&found, output, namespace.is_none());
                if !text.is_empty() {
                    self.out(text).await?;
                }
                for line in &missing {
                    self.send(&Reply::Err(format!("{line}\n"))).await?;
                }
                return self.exit(i32::from(!missing.is_empty())).await;
            }
            let text = get::print_changes(&found, output, namespace.is_none(), &mut seen);
            if !text.is_empty() {
                self.out(text).await?;
            }
            tokio::select! {
                changed = versions.changed() => if changed.is_err() { return self.exit(0).await },
                gone = self.reader.fill_buf() => if gone.map_or(true, <[u8]>::is_empty) { return Ok(()) },
            }
        }
    }

    async fn logs(
        &mut self,
        mesh: &Mesh,
        key: PodKey,
        container: Option<&str>,
        follow: bool,
        tail: Option<usize>,
        previous: bool,
    ) -> io::Result<()> {
        let log = match choose(mesh, &key, container) {
            Ok((key, slot)) => {
                let mut state = mesh.state_mut();
                state.pods.get_mut(&key).and_then(|p| p.container_mut(slot)).map(|c| (c.log.clone(), c.plan.name.clone()))
            }
            Err(message) => return self.fail(&message).await,
        };
        let Some((log, name)) = log else { return self.fail("error: the pod is gone").await };
        if previous && !log.borrow().has_previous() {
            let message =
                format!("Error from server (BadRequest): previous terminated container \"{name}\" in pod \"{}\" not found", key.1);
            return self.fail(&message).await;
        }
        // Taken together, so that nothing falls between what was and what comes.
        let (text, mut coming) = (log.borrow().read(previous, tail), log.borrow().follow());
        // The pod may go while somebody follows: then the sender goes too and the following ends.
        drop(log);
        for piece in text.chunks(32 * 1024) {
            self.bytes(piece).await?;
        }
        if previous || !follow {
            return self.exit(0).await;
        }
        loop {
            let piece = tokio::select! {
                piece = coming.recv() => piece,
                gone = self.reader.fill_buf() => if gone.map_or(true, <[u8]>::is_empty) { return Ok(()) } else { continue },
            };
            match piece {
                Ok(piece) => self.bytes(&piece).await?,
                Err(tokio::sync::broadcast::error::RecvError::Lagged(n)) => {
                    self.send(&Reply::Err(format!("({n} pieces of output missed)\n"))).await?
                }
                Err(tokio::sync::broadcast::error::RecvError::Closed) => break,
            }
        }
        self.exit(0).await
    }

    async fn exec(
        &mut self,
        mesh: &Mesh,
        key: PodKey,
        container: Option<&str>,
        command: Vec<String>,
        term: Option<String>,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let Ok(streams) = <[OwnedFd; 3]>::try_from(descriptors) else {
            return self.fail("error: exec needs input, output and errors of the caller").await;
        };
        let (key, slot) = match choose(mesh, &key, container) {
            Ok(chosen) => chosen,
            Err(message) => return self.fail(&message).await,
        };
        let started = mesh.run_in_container(&key, slot, command, Some((streams, term)));
        let (pid, mut end) = match started {
            Ok(started) => started,
            Err(e) => {
                self.send(&Reply::Err(format!("error: {e}\n"))).await?;
                // As a shell: 126 cannot run, 127 not there.
                return self.exit(if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 }).await;
            }
        };
        let mut line = String::new();
        loop {
            tokio::select! {
                ended = &mut end => return self.exit(ended.map_or(1, End::code)).await,
                read = self.reader.read_line(&mut line) => match read {
                    Ok(1..) => {
                        if let Ok(Further::Signal(number)) = serde_json::from_str(&line)
                            && let Ok(signal) = Signal::try_from(number)
                        {
                            process::signal(pid, signal);
                        }
                        line.clear();
                    }
                    // The caller is gone: so is the reason to run.
                    _ => {
                        process::signal(pid, Signal::SIGKILL);
                        return Ok(());
                    }
                },
            }
        }
    }

    /// Ready pods are no use to callers that do not know them yet. A proxy that never answers ends the wait, not the mesh.
    async fn wait_for_proxies(&self, mesh: &Mesh, until: tokio::time::Instant) {
        let mut in_a_row = 0;
        // Twice, with time for the control plane to notice what was written last.
        while in_a_row < 2 && tokio::time::Instant::now() < until {
            tokio::time::sleep(CONTROL_PLANE_NOTICES).await;
            in_a_row = if synced::all(mesh).await { in_a_row + 1 } else { 0 };
        }
    }

    async fn wait(&mut self, mesh: &Mesh, at_most: Duration) -> io::Result<()> {
        let mut versions = mesh.versions();
        let until = tokio::time::Instant::now() + at_most;
        let mut told = Vec::new();
        let mut settled = false;
        while !settled && tokio::time::Instant::now() < until {
            // A version that was missed between the look and the wait is seen at the next tick.
            let _ = tokio::time::timeout(Duration::from_millis(200), versions.changed()).await;
            settled = *versions.borrow_and_update() > 0 && mesh.state().is_settled();
            let waiting = if settled { Vec::new() } else { unready::lines(&mesh.state()) };
            if waiting != told {
                self.send(&Reply::Waiting(waiting.clone())).await?;
                told = waiting;
            }
        }
        if settled {
            self.wait_for_proxies(mesh, until).await;
            let refused: Vec<String> =
                mesh.state().refused.iter().map(|(k, why)| format!("{} {}/{}: {why}\n", k.kind, k.namespace, k.name)).collect();
            for line in &refused {
                self.send(&Reply::Err(line.clone())).await?;
            }
            return self.exit(i32::from(!refused.is_empty())).await;
        }
        self.send(&Reply::Waiting(Vec::new())).await?;
        let late = unready::lines(&mesh.state()).join("\n  ");
        self.fail(&format!("error: not everything is ready after {} s:\n  {late}", at_most.as_secs())).await
    }
}

/// The pod and container that are meant: the pod by its name, `deploy/NAME` or a Deployment's first pod; the container by its name or the first that is no proxy.
fn choose(mesh: &Mesh, key: &PodKey, container: Option<&str>) -> Result<(PodKey, Slot), String> {
    let state = mesh.state();
    let wanted = key.1.strip_prefix("pod/").or_else(|| key.1.strip_prefix("po/")).unwrap_or(&key.1);
    let deployment = ["deploy/", "deployment/", "deployments/"].iter().find_map(|p| key.1.strip_prefix(p));
    let found = match deployment {
        Some(name) => {
            let mut pods: Vec<_> =
                state.pods.iter().filter(|(k, p)| k.0 == key.0 && p.owner.kind == Kind::Deployment && p.owner.name == name).collect();
            pods.sort_by_key(|(_, p)| (!p.is_ready(), p.created));
            pods.into_iter().next()
        }
        None => state.pods.get_key_value(&(key.0.clone(), wanted.to_owned())),
    };
    let Some((key, pod)) = found else {
        let (kind, name) = deployment.map_or((Kind::Pod, wanted), |d| (Kind::Deployment, d));
        return Err(format!("Error from server (NotFound): {} not found", quoted(kind, name)));
    };
    let slot = match container {
        Some(name) => {
            let at = |list: &[crate::store::mesh::Container]| list.iter().position(|c| c.plan.name == name);
            at(&pod.containers).map(|index| Slot { init: false, index }).or_else(|| at(&pod.init).map(|index| Slot { init: true, index }))
        }
        None => {
            let app = pod.containers.iter().position(|c| c.plan.role != crate::pod::plan::Role::Proxy).unwrap_or(0);
            Some(Slot { init: false, index: app })
        }
    };
    slot.map(|slot| (key.clone(), slot))
        .ok_or_else(|| format!("error: container {} is not valid for pod {}", container.unwrap_or_default(), key.1))
}
