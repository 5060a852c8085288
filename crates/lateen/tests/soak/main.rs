//! Everything at once, for a while: mixed traffic through two proxies while their configuration, certificates, endpoints and
//! worker counts change, and one of them is replaced by a new process again and again. No call that had a healthy endpoint
//! may fail, and memory must stay flat.
//!
//! In the tests it takes 20 seconds; `cargo xtask soak --minutes 10` takes as long as it is told and prints what happened.
mod callers;
mod certificates;
mod config;
mod memory;
mod process;
mod tally;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::certificates::Authority;
use crate::config::Site;
use crate::memory::Curve;
use crate::process::{App, Lineage};
use crate::tally::Tally;

/// What changes, changes so often.
const EVERY: Duration = Duration::from_millis(1500);
/// After so long at most, whoever calls sees a changed configuration.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// The endpoints, of which a part is in use at a time.
const APPS: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let seconds = std::env::var("LATEEN_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let soak = move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let outcome = runtime.block_on(soak(Duration::from_secs(seconds)));
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome.map_err(|e| Failed::from(format!("{e:#}")))
    };
    libtest_mimic::run(&arguments, vec![Trial::test("soak::no_call_is_lost_and_memory_stays_flat", soak)]).exit_code()
}

async fn soak(length: Duration) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut authority = Authority::new()?;
    let apps: Vec<App> = (0..APPS).map(|n| App::start(&format!("app{n}"))).collect::<anyhow::Result<_>>()?;
    let mut sites = Vec::new();
    for name in ["steady", "replaced"] {
        let mut site = Site::new(&folder.path().join(name), &apps)?;
        site.write_all(&mut authority)?;
        sites.push(site);
    }
    let mut proxies = Vec::new();
    for (number, site) in sites.iter().enumerate() {
        proxies.push(Lineage::start(site, number as u32).await?);
    }
    let tally = Tally::new(&sites);
    tally.new_client_certificate(&mut authority)?;
    let callers = callers::start(&tally, &sites);
    let outcome = change_all(length, &mut sites, &mut proxies, &mut authority, &tally).await;
    let seen = newest_is_seen(&tally, &sites).await;
    tally.stop();
    for caller in callers {
        caller.await.context("a caller")?;
    }
    let curves = outcome?;
    println!("{tally}");
    for (curve, site) in curves.iter().zip(&sites) {
        println!("{}: {curve}", site.name());
    }
    tally.nothing_was_lost()?;
    seen?;
    for curve in &curves {
        curve.is_flat()?;
    }
    for proxy in proxies {
        proxy.end().await?;
    }
    Ok(())
}

/// Changes one thing after the other until the time is over; the memory of each proxy meanwhile.
async fn change_all(
    length: Duration,
    sites: &mut [Site],
    proxies: &mut [Lineage],
    authority: &mut Authority,
    tally: &Arc<Tally>,
) -> anyhow::Result<Vec<Curve>> {
    let start = Instant::now();
    let mut curves: Vec<Curve> = proxies.iter().map(|_| Curve::new(length)).collect();
    let mut turn = 0;
    // A process of its own lasts long enough for its memory to be worth a look.
    let replace_every = (length / 20).clamp(Duration::from_secs(5), Duration::from_secs(30));
    let mut replaced_at = Instant::now();
    while start.elapsed() < length {
        tokio::time::sleep(EVERY).await;
        for (curve, proxy) in curves.iter_mut().zip(proxies.iter_mut()) {
            proxy.is_alive()?;
            curve.sample(start.elapsed(), proxy.pid())?;
        }
        turn += 1;
        for site in sites.iter_mut() {
            match turn % 3 {
                0 => site.change_endpoints()?,
                1 => site.change_listeners()?,
                _ => site.change_certificates(authority)?,
            }
        }
        if turn % 3 == 2 {
            tally.new_client_certificate(authority)?;
        }
        if replaced_at.elapsed() >= replace_every {
            replaced_at = Instant::now();
            let (Some(proxy), Some(site)) = (proxies.last_mut(), sites.last()) else { continue };
            proxy.replace(site).await?;
            tally.replaced();
        }
    }
    Ok(curves)
}

/// The last configuration and certificate are in force.
async fn newest_is_seen(tally: &Tally, sites: &[Site]) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        let missing: Vec<String> = sites.iter().enumerate().filter_map(|(n, site)| tally.misses(n, site)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        ensure!(since.elapsed() < SEEN_WITHIN, "not in force after {SEEN_WITHIN:?}: {}", missing.join(", "));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
