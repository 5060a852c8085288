//! Compiles bootstrap files and says what would serve: `cargo run -p lateen-snapshot --example check_bootstrap FILE...`
use std::path::Path;
use std::time::Instant;

use lateen_snapshot::bootstrap;
use lateen_snapshot::compile::Compiler;

fn main() {
    let mut failed = false;
    for file in std::env::args().skip(1) {
        let begin = Instant::now();
        match check(Path::new(&file)) {
            Ok(found) => println!("{file}: {found} in {:?}", begin.elapsed()),
            Err(reason) => {
                failed = true;
                println!("{file}: {reason}");
            }
        }
    }
    std::process::exit(i32::from(failed));
}

fn check(file: &Path) -> Result<String, String> {
    let bootstrap = bootstrap::load(file).map_err(|e| e.to_string())?;
    let mut compiler = Compiler::new();
    compiler.add_static(bootstrap.resources, Instant::now()).map_err(|e| format!("{}: {}", e.name, e.reason))?;
    let snapshot = compiler.snapshot();
    let clusters = snapshot.clusters.iter().flatten();
    let waiting = compiler.waiting();
    Ok(format!(
        "{} listeners, {} clusters with {} hosts, waiting: {waiting:?}",
        snapshot.listeners.len(),
        clusters.clone().count(),
        clusters.map(|c| c.hosts.len()).sum::<usize>()
    ))
}
