//! A control plane over a folder, without identity: for pointing a stock Envoy or a gRPC library at.
//!
//! `cargo run -p lateen-control --example serve -- FOLDER [PORT]`; xDS in plaintext on 127.0.0.1:PORT
//! (15010), debug pages on the next port.
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use lateen_control::{Config, Files, build};
use lateen_model::Limits;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();
    let mut arguments = std::env::args().skip(1);
    let folder: PathBuf = arguments.next().ok_or_else(|| anyhow::anyhow!("name a folder of YAML"))?.into();
    let port: u16 = arguments.next().map_or(Ok(15010), |p| p.parse())?;
    let at = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let config = Config { xds_plain: at(port), xds_tls: None, debug: at(port.saturating_add(1)), monitoring: None, ..Config::default() };
    let plane = build(config, vec![Box::new(Files::new([folder], "default", Limits::default()))], None).await?;
    println!("{:?}", plane.addresses());
    plane.run(async { drop(tokio::signal::ctrl_c().await) }).await;
    Ok(())
}
