//! Runs a bootstrap file: `cargo run -p lateen-proxy --example static_proxy FILE [WORKERS]`
use std::path::Path;

use lateen_proxy::main_thread::{self, Options};
use lateen_snapshot::bootstrap;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or_else(|| anyhow::anyhow!("name a bootstrap file"))?;
    let concurrency = arguments.next().map_or(Ok(1), |n| n.parse())?;
    let options = Options { concurrency, ..Options::new(bootstrap::load(Path::new(&file))?) };
    let process = main_thread::start(options).await?;
    tokio::select! {
        () = process.quit() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    process
        .shut_down(main_thread::DrainPlan {
            grace: std::time::Duration::from_secs(5),
            minimum: std::time::Duration::ZERO,
            exit_when_idle: true,
        })
        .await;
    Ok(())
}
