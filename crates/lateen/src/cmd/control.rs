//! `lateen control`: the control plane and certificate authority of a folder of YAML.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use lateen_control::{Config, Debounce, Files, Identity, Source, build};
use lateen_identity::authenticate::{AUDIENCE, Authenticator, Authenticators, CertificateAuthenticator, JwtAuthenticator, JwtConfig};
use lateen_identity::ca::CertificateAuthority;
use lateen_model::{Limits, MeshConfig};

/// The issuer of Kubernetes' service-account tokens, and of the local runner's.
const KUBERNETES: &str = "https://kubernetes.default.svc.cluster.local";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen control --folder mesh/                         serve mesh/ to proxies; edit it while it runs
  lateen control --folder mesh/ --ca-folder /var/lib/lateen/ca
                                                        keep the root certificate over restarts
  lateen control --folder mesh/ --cacerts /etc/cacerts  sign with your own intermediate

Ports are Istio's: 15010 xDS, 15012 xDS over TLS, 15014 metrics and debug, 8080 debug on this machine only.")]
pub(crate) struct Args {
    /// Files and folders of YAML to watch
    #[arg(long = "folder", required = true, value_name = "PATH")]
    folders: Vec<PathBuf>,
    /// Namespace of resources that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Keep a self-signed root certificate and its key here; without it a restart makes a new root
    #[arg(long, value_name = "DIR", conflicts_with = "cacerts")]
    ca_folder: Option<PathBuf>,
    /// Sign with ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem of this folder
    #[arg(long, value_name = "DIR")]
    cacerts: Option<PathBuf>,
    /// Trust domain of all identities
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// Accept service-account tokens signed by the keys of this JSON Web Key Set
    #[arg(long, value_name = "FILE")]
    token_jwks: Option<PathBuf>,
    /// The `iss` that such tokens must have
    #[arg(long, default_value = KUBERNETES, value_name = "URL")]
    token_issuer: String,
    /// Address to listen on; every address of both families if not given
    #[arg(long, value_name = "IP")]
    bind: Option<IpAddr>,
    /// Port for xDS and certificates without TLS; 0 for a free one
    #[arg(long, default_value_t = 15010)]
    xds_port: u16,
    /// Port for xDS and certificates over TLS
    #[arg(long, default_value_t = 15012)]
    xds_tls_port: u16,
    /// Port for debug pages, open to this machine only
    #[arg(long, default_value_t = 8080)]
    debug_port: u16,
    /// Port for metrics and readiness
    #[arg(long, default_value_t = 15014)]
    monitoring_port: u16,
    /// Collect changes until none came for this many milliseconds
    #[arg(long, default_value_t = 100, value_name = "MS")]
    debounce: u64,
    /// Name of this control plane in responses
    #[arg(long, env = "POD_NAME", default_value = "lateen")]
    name: String,
    /// What to log: error, warn, info, debug, or module=level
    #[arg(long, default_value = "info")]
    log_level: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    lateen_core::memory::share_one_heap();
    let _ = crate::log::start(&args.log_level);
    lateen_core::memory::settle_after(super::SETTLED);
    // One thread serves hundreds of proxies; a second keeps health checks prompt while it translates.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(8).enable_all().build()?;
    runtime.block_on(serve(args))?;
    runtime.shutdown_timeout(Duration::from_millis(500));
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: &Args) -> anyhow::Result<()> {
    let ca = Arc::new(authority(args)?);
    let follow = tokio::spawn(Arc::clone(&ca).follow_folder());
    let identity = Identity { authenticators: authenticators(args, &ca)?, ca, csr_limits: Default::default() };
    let files = Files::new(args.folders.clone(), args.namespace.clone(), Limits::default());
    let sources: Vec<Box<dyn Source>> = vec![Box::new(files)];
    let plane = build(config(args), sources, Some(identity)).await.context("the control plane cannot start")?;
    let addresses = plane.addresses();
    tracing::info!(xds = ?addresses.xds_plain, xds_tls = ?addresses.xds_tls, monitoring = ?addresses.monitoring, "control plane listens");
    plane.run(lateen_app::terminated()?).await;
    follow.abort();
    Ok(())
}

/// Every address: of both families, or of IPv4 where the kernel has no other. A mesh with IPv6 gives the control plane's
/// service an address of each, and Envoy tries the IPv6 one alone.
fn everywhere() -> IpAddr {
    let both = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    if TcpListener::bind((both, 0)).is_ok() { both } else { Ipv4Addr::UNSPECIFIED.into() }
}

fn config(args: &Args) -> Config {
    let bind = args.bind.unwrap_or_else(everywhere);
    let at = |port| Some(SocketAddr::new(bind, port));
    Config {
        identifier: args.name.clone(),
        xds_plain: at(args.xds_port),
        xds_tls: at(args.xds_tls_port),
        debug: at(args.debug_port),
        monitoring: at(args.monitoring_port),
        mesh: MeshConfig { trust_domain: args.trust_domain.clone(), ..MeshConfig::default() },
        debounce: Debounce { quiet: Duration::from_millis(args.debounce), ..Debounce::default() },
        ..Config::default()
    }
}

fn authority(args: &Args) -> anyhow::Result<CertificateAuthority> {
    let now = SystemTime::now();
    let ca = match (&args.cacerts, &args.ca_folder) {
        (Some(folder), _) => CertificateAuthority::plugged_in(folder, now),
        (None, Some(folder)) => CertificateAuthority::self_signed(folder, &args.trust_domain, now),
        (None, None) => CertificateAuthority::in_memory(&args.trust_domain, now),
    };
    ca.context("the certificate authority cannot start")
}

fn authenticators(args: &Args, ca: &Arc<CertificateAuthority>) -> anyhow::Result<Authenticators> {
    let certificates = CertificateAuthenticator::new(Arc::clone(ca), vec![args.trust_domain.clone()]);
    let mut ways: Vec<Arc<dyn Authenticator>> = vec![Arc::new(certificates)];
    if let Some(file) = &args.token_jwks {
        let jwks = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let config =
            JwtConfig { issuer: args.token_issuer.clone(), audiences: vec![AUDIENCE.to_owned()], trust_domain: args.trust_domain.clone() };
        let tokens = JwtAuthenticator::from_jwks(config, &jwks).with_context(|| format!("{} holds no usable keys", file.display()))?;
        ways.push(Arc::new(tokens));
    }
    Ok(Authenticators::new(ways))
}
