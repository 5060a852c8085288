//! The mesh's first process: settles in the new namespaces, builds the network, runs everything on one thread until the end.
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use lateen_identity::token::{DEFAULT_ISSUER, TOKEN_TTL, TokenIssuer};
use lateen_model::ResourceSet;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UdpSocket, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api;
use crate::config::{Publish, SourceText, UpConfig};
use crate::dns::{self, SharedZone, zone::Zone};
use crate::namespaces::{birth, sysctl};
use crate::netlink::link::Links;
use crate::pod::inject::Settings;
use crate::pod::restart::End;
use crate::relay::egress::{self, Outside};
use crate::relay::ingress::{self, Targets};
use crate::store::addresses::{GATEWAY, GATEWAY6, PodAddresses, ServiceAddresses};
use crate::store::builtin::{self, CONFIG, LOGS, PODS, SECRETS};
use crate::store::mesh::{Mesh, State};
use crate::store::start::BRIDGE;
use crate::store::sync::EGRESS_PORT;
use crate::store::volumes::write_atomically;

/// By then an ordinary mesh has started.
pub(crate) const SETTLED: Duration = Duration::from_secs(3);

/// What the process outside hands over: descriptors by number, and the configuration.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handover {
    pub line: RawFd,
    pub api: RawFd,
    pub published: Vec<(RawFd, Publish)>,
    pub config: UpConfig,
}

/// The descriptor of the handover's text, named on the command line.
#[allow(unsafe_code)]
fn take(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the process outside left these open for us under these numbers, and each is taken once.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Runs the mesh; returns when it has ended.
///
/// # Errors
/// What kept it from starting.
pub fn run(handover: RawFd) -> io::Result<()> {
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    birth::settle_inside()?;
    lateen_core::memory::share_one_heap();
    lateen_core::memory::settle_after(SETTLED);
    let mut text = String::new();
    let mut file = fs::File::from(take(handover));
    io::Seek::rewind(&mut file)?;
    io::Read::read_to_string(&mut file, &mut text)?;
    let handover: Handover = serde_json::from_str(&text)?;
    for folder in [CONFIG, SECRETS, LOGS, PODS] {
        fs::create_dir_all(folder)?;
    }
    let links = build_network()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, serve(handover, links));
    // Nothing is worth waiting for: when we end, the kernel ends the rest.
    runtime.shutdown_background();
    result
}

fn build_network() -> io::Result<Links> {
    let mut links = Links::open()?;
    links.up("lo")?;
    for (name, value) in
        [("net.ipv4.ip_forward", "1"), ("net.ipv4.conf.all.send_redirects", "0"), ("net.ipv4.conf.default.send_redirects", "0")]
    {
        sysctl(name, value)?;
    }
    // A kernel without IPv6 does as well.
    let six = [
        "net.ipv6.conf.all.disable_ipv6=0",
        "net.ipv6.conf.default.disable_ipv6=0",
        "net.ipv6.conf.default.accept_dad=0",
        "net.ipv6.conf.all.forwarding=1",
    ];
    for (name, value) in six.iter().filter_map(|s| s.split_once('=')) {
        let _ = sysctl(name, value);
    }
    links.add_bridge(BRIDGE, [0x02, 0x6c, 0x61, 0x74, 0x65, 0x6e])?;
    links.up(BRIDGE)?;
    links.add_address(BRIDGE, GATEWAY.into(), 16)?;
    if let Err(e) = links.add_address(BRIDGE, GATEWAY6.into(), 64) {
        tracing::info!("no IPv6 in this mesh: {e}");
    }
    Ok(links)
}

async fn serve(handover: Handover, links: Links) -> io::Result<()> {
    let config = handover.config;
    let zone: SharedZone = Arc::new(RwLock::new(Arc::new(Zone::new("cluster.local"))));
    let tokens = TokenIssuer::generate(DEFAULT_ISSUER).map_err(io::Error::other)?;
    write_atomically(&Path::new(SECRETS).join("jwks.json"), tokens.jwks().as_bytes())?;
    let published: Vec<(Publish, Targets)> = handover.published.iter().map(|(_, p)| (p.clone(), Targets::default())).collect();
    for ((descriptor, _), (_, targets)) in handover.published.iter().zip(&published) {
        let listener = std::net::TcpListener::from(take(*descriptor));
        listener.set_nonblocking(true)?;
        tokio::spawn(ingress::serve(TcpListener::from_std(listener)?, targets.clone()));
    }
    let sources = config.sources.clone();
    let mesh = Mesh::new(
        State {
            settings: settings(&config),
            resources: ResourceSet::new(),
            created: BTreeMap::new(),
            refused: BTreeMap::new(),
            pods: BTreeMap::new(),
            children: BTreeMap::new(),
            pod_addresses: PodAddresses::default(),
            service_addresses: ServiceAddresses::default(),
            network: None,
            published,
            links,
            tokens,
            root_cert: root_certificate(&config)?,
            control_folder: lateen_core::generation::Writer::new(CONFIG),
            stopping: false,
            since: Instant::now(),
            config,
        },
        zone.clone(),
    );
    let outside = Outside::new(take(handover.line))?;
    let udp = UdpSocket::bind(dns::address(GATEWAY.into())).await?;
    let tcp = TcpListener::bind(dns::address(GATEWAY.into())).await?;
    tokio::spawn(dns::serve(udp, tcp, zone, outside.clone()));
    for address in ["0.0.0.0", "::"] {
        match two_family_listener(address) {
            Ok(listener) => drop(tokio::spawn(egress::serve(listener, outside.clone()))),
            Err(e) if address == "0.0.0.0" => return Err(e),
            Err(_) => {}
        }
    }
    let (down, mut downs) = watch::channel(0u32);
    let api = std::os::unix::net::UnixListener::from(take(handover.api));
    api.set_nonblocking(true)?;
    tokio::task::spawn_local(api::server::serve(UnixListener::from_std(api)?, mesh.clone(), down));
    tokio::task::spawn_local(reap(mesh.clone())?);
    let renewing = mesh.clone();
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(TOKEN_TTL / 2).await;
            renewing.state().renew_tokens();
        }
    });
    first_resources(&mesh, &sources);
    let following = mesh.clone();
    tokio::task::spawn_local(async move { following.follow_changes().await });
    let mut stops = outside.stops();
    let line = outside.clone();
    let mut line_ended = tokio::task::spawn_local(async move { line.run().await });
    tokio::select! {
        _ = stops.changed() => {}
        _ = downs.changed() => {}
        // The process outside is gone: so is everything else, at once.
        _ = &mut line_ended => return Ok(()),
    }
    // A second asking ends the patience.
    tokio::select! { () = mesh.end_all() => {}, _ = stops.changed() => {}, _ = &mut line_ended => {} }
    Ok(())
}

fn two_family_listener(address: &str) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let at = std::net::SocketAddr::new(address.parse().map_err(io::Error::other)?, EGRESS_PORT);
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&at.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

fn settings(config: &UpConfig) -> Settings {
    Settings {
        data_plane: config.data_plane,
        trust_domain: config.trust_domain.clone(),
        domain: "cluster.local".into(),
        discovery_address: "istiod.istio-system.svc:15012".into(),
        inject_default: config.inject_default,
        envoy_path: config.envoy_path.clone(),
    }
}

/// Makes the mesh's certificate authority where the control plane will find it, and returns the root for the pods.
fn root_certificate(config: &UpConfig) -> io::Result<Option<String>> {
    if !config.control_plane {
        return Ok(None);
    }
    let folder = Path::new(SECRETS).join("ca");
    fs::create_dir_all(&folder)?;
    let ca = lateen_identity::ca::CertificateAuthority::self_signed(&folder, &config.trust_domain, std::time::SystemTime::now());
    Ok(Some(ca.map_err(io::Error::other)?.roots_pem()))
}

fn first_resources(mesh: &Mesh, sources: &[SourceText]) {
    let builtin = SourceText { file: "built in".into(), text: builtin::resources(&mesh.state().config) };
    let own = mesh.apply(&[builtin], "default");
    for line in own.err {
        mesh.say(line);
    }
    let outcome = mesh.apply(sources, "default");
    for line in outcome.out.iter().chain(&outcome.err) {
        mesh.say(line);
    }
    mesh.touch();
}

/// Learns of every process that ends: ours, and orphans that fall to pid 1.
fn reap(mesh: Mesh) -> io::Result<impl Future<Output = ()>> {
    let mut ended = signal(SignalKind::child())?;
    Ok(async move {
        loop {
            // Signals that come together count once; the tick catches what a signal before the handler missed.
            let _ = tokio::time::timeout(Duration::from_millis(500), ended.recv()).await;
            loop {
                match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(pid, code)) => mesh.child_ended(pid, End::Code(code)),
                    Ok(WaitStatus::Signaled(pid, signal, _)) => mesh.child_ended(pid, End::Signal(signal as i32)),
                    Ok(WaitStatus::StillAlive) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        }
    })
}
