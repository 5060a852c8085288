//! The same Envoy configuration, static or discovered, through `lateen proxy` and through the real Envoy: what callers, upstreams and
//! the access log see must be the same.
//!
//! A file below `cases/` is a piece of configuration with requests; both proxies run it at the same time, each with
//! upstreams of its own. `known.yaml` lists the differences that are meant, and an entry that no longer differs fails.
//! With `SHOW=1` a case prints what Envoy did.
mod admin;
mod case;
mod certificates;
mod client;
mod compare;
mod compressed;
mod config;
mod discovery;
mod known;
mod proxies;
mod run;
mod upstream;
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use crate::case::Case;
use crate::certificates::Certificates;
use crate::known::Known;

/// Cases that run at once: most wait most of the time.
const AT_ONCE: usize = 4;

struct Bench {
    runtime: Runtime,
    folder: tempfile::TempDir,
    certificates: Certificates,
    known: Vec<Known>,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(AT_ONCE));
    if proxies::envoy().is_none() {
        let skipped = Trial::test("skipped", || {
            eprintln!("skipped: LATEEN_TEST_ENVOY is not set (`cargo xtask test` sets it), so nothing is compared with Envoy");
            Ok(())
        });
        return libtest_mimic::run(&arguments, vec![skipped]).exit_code();
    }
    let bench = match bench() {
        Ok(bench) => Arc::new(bench),
        Err(e) => {
            eprintln!("{e:#}");
            return ExitCode::FAILURE;
        }
    };
    let whole = arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list;
    let outcome = libtest_mimic::run(&arguments, trials(&bench));
    let stale: Vec<String> = bench.known.iter().filter_map(Known::stale).collect();
    if whole && !outcome.has_failed() && !stale.is_empty() {
        eprintln!("known.yaml lists what no longer differs; remove it:\n  {}", stale.join("\n  "));
        return ExitCode::FAILURE;
    }
    outcome.exit_code()
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential")
}

fn bench() -> anyhow::Result<Bench> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    Ok(Bench { runtime, certificates, folder, known: known::read(&here().join("known.yaml"))? })
}

/// A test for each file; one that cannot be read is a test that fails.
fn trials(bench: &Arc<Bench>) -> Vec<Trial> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(here().join("cases")).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    let trial = |file: PathBuf| {
        let bench = Arc::clone(bench);
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Trial::test(name, move || {
            // Cases with timeouts run beside others on a machine that may be short of time: what differs twice differs.
            let once_more = |first: anyhow::Error| {
                eprintln!("differs, tried once more: {first:#}");
                check(&bench, &file)
            };
            check(&bench, &file).or_else(once_more).map_err(|e| format!("{e:#}").into())
        })
    };
    let of_admin = Arc::clone(bench);
    let pages = move || {
        let compared = of_admin.runtime.block_on(admin::compare(of_admin.folder.path()));
        compared.map_err(|e| format!("{e:#}").into())
    };
    files.into_iter().map(trial).chain([Trial::test("admin_pages", pages)]).collect()
}

fn check(bench: &Bench, file: &Path) -> anyhow::Result<()> {
    let case = Case::read(file)?;
    let folder = tempfile::Builder::new().prefix(&format!("{}.", case.name)).tempdir_in(bench.folder.path())?.keep();
    let found = bench.runtime.block_on(run::run(&case, &folder, &bench.certificates))?;
    let known = |f: &run::Found| bench.known.iter().filter(|k| k.covers(&case.name, &f.request, &f.difference)).count() > 0;
    let unknown: Vec<String> = found.iter().filter(|f| !known(f)).map(told).collect();
    anyhow::ensure!(unknown.is_empty(), "{} differences:\n{}", unknown.len(), unknown.join("\n"));
    Ok(())
}

fn told(found: &run::Found) -> String {
    let run::Found { request, difference: d } = found;
    format!("  {request}\n    {}\n      lateen: {}\n      envoy:  {}", d.field, d.lateen, d.envoy)
}
