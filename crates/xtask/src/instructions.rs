//! `cargo xtask instructions`: what a request costs in instructions, allocations and looks at the clock, counted by valgrind.
//! Unlike times these are the same on a busy machine, so a change can be held against the committed figures.
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, str};

/// Scenarios with the number of worker threads in each, and what its requests are divided by because they cost so much: what `crates/proxy/examples/instructions` drives.
const SCENARIOS: [(&str, u32, u64); 5] = [("http1", 1, 1), ("h2c", 1, 1), ("routing", 1, 1), ("tls", 2, 1), ("handshake", 2, 20)];
/// The costs of a request are those of the second run less those of the first: start and connections cancel out.
const FEW: u64 = 500;
const MANY: u64 = 2500;
/// How much more than committed fails a check, in percent.
const SLACK: f64 = 3.0;
const ALLOCATIONS: [&str; 5] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"];

/// What one request costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cost {
    instructions: f64,
    allocations: f64,
    clocks: f64,
}

/// Measures, prints, and with `--check` compares with `bench/instructions/counts.txt`; `--write` replaces that file.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Result<(), String> {
    let args: Vec<String> = args.collect();
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("valgrind is not installed: instructions are not counted");
        return Ok(());
    }
    let file = super::root().join("bench/instructions/counts.txt");
    let committed = fs::read_to_string(&file).unwrap_or_default();
    let before = parse(&committed);
    let compiler = compiler()?;
    let program = build()?;
    let mut text = format!("# per request: scenario instructions allocations clocks (cargo xtask instructions --write)\n# {compiler}\n");
    let mut failures = Vec::new();
    for (scenario, workers, fewer) in SCENARIOS {
        let cost = measure(&program, scenario, workers, [FEW / fewer, MANY / fewer])?;
        let change = before.get(scenario).map(|old| (cost.instructions / old.instructions - 1.0) * 100.0);
        let shown = change.map_or_else(String::new, |percent| format!("  {percent:+.1} %"));
        println!(
            "{scenario:8} {:7.0} instructions {:5.1} allocations {:5.1} clocks{shown}",
            cost.instructions, cost.allocations, cost.clocks
        );
        text += &format!("{scenario} {:.0} {:.1} {:.1}\n", cost.instructions, cost.allocations, cost.clocks);
        if change.is_none_or(|percent| percent > SLACK) {
            failures.push(scenario);
        }
    }
    if args.iter().any(|arg| arg == "--write") {
        return fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()));
    }
    if !committed.lines().any(|line| line.strip_prefix("# ") == Some(&compiler)) {
        println!("the committed figures are of another compiler or processor than {compiler}: not compared");
        return Ok(());
    }
    if args.iter().any(|arg| arg == "--check") && !failures.is_empty() {
        return Err(format!(
            "more than {SLACK} % over {}: {}. If that is the price of a feature, commit new figures: cargo xtask instructions --write",
            file.display(),
            failures.join(", ")
        ));
    }
    Ok(())
}

/// Compiler and processor: others make other instructions, and libraries choose theirs by the processor.
fn compiler() -> Result<String, String> {
    let output = Command::new("rustc").arg("--version").output().map_err(|e| format!("rustc does not start: {e}"))?;
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    Ok(format!("{} {} {model}", String::from_utf8_lossy(&output.stdout).trim(), std::env::consts::ARCH).trim_end().to_owned())
}

fn build() -> Result<PathBuf, String> {
    super::run(super::cargo().args(["build", "--release", "-p", "lateen-proxy", "--example", "instructions"]))?;
    Ok(super::peers::target().join("release/examples/instructions"))
}

fn measure(program: &Path, scenario: &str, workers: u32, requests: [u64; 2]) -> Result<Cost, String> {
    let [few, many] = requests;
    let more = (many - few) as f64;
    let few = count(program, scenario, workers, few)?;
    let many = count(program, scenario, workers, many)?;
    let each = |few: f64, many: f64| (many - few) / more;
    Ok(Cost {
        instructions: each(few.instructions, many.instructions),
        allocations: each(few.allocations, many.allocations),
        clocks: each(few.clocks, many.clocks),
    })
}

/// Runs the scenario under callgrind; the sum over its worker threads, which are the first after the main one.
fn count(program: &Path, scenario: &str, workers: u32, requests: u64) -> Result<Cost, String> {
    let folder = super::peers::target().join("instructions");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let out = folder.join(format!("{scenario}.{requests}"));
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=callgrind", "--separate-threads=yes"]);
    command.arg(format!("--callgrind-out-file={}", out.display()));
    super::run(command.arg(program).args([scenario, &requests.to_string()]))?;
    let mut sum = Cost::default();
    for thread in 2..2 + workers {
        let path = folder.join(format!("{scenario}.{requests}-{thread:02}"));
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let one = profile(&text).ok_or_else(|| format!("{} has no summary", path.display()))?;
        sum.instructions += one.instructions;
        sum.allocations += one.allocations;
        sum.clocks += one.clocks;
    }
    Ok(sum)
}

/// Totals of one thread's profile: its summary line, and the calls of functions by name. A name is given once, with a number
/// that stands for it from then on.
fn profile(text: &str) -> Option<Cost> {
    let mut cost = Cost::default();
    let mut names = HashMap::new();
    let mut called = "";
    let mut summary = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("summary: ") {
            summary = rest.trim().parse::<f64>().ok();
        } else if let Some(name) = line.strip_prefix("fn=").or_else(|| line.strip_prefix("cfn=")) {
            let (number, name) = name.split_once(' ').unwrap_or((name, ""));
            if !name.is_empty() {
                names.insert(number, name);
            }
            called = names.get(number).copied().unwrap_or("");
        } else if let Some(rest) = line.strip_prefix("calls=") {
            let calls = rest.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
            if ALLOCATIONS.contains(&called) {
                cost.allocations += calls;
            } else if called.starts_with("clock_gettime") {
                cost.clocks += calls;
            }
        }
    }
    cost.instructions = summary?;
    Some(cost)
}

fn parse(text: &str) -> HashMap<String, Cost> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        let mut number = || words.next()?.parse().ok();
        Some((name, Cost { instructions: number()?, allocations: number()?, clocks: number()? }))
    };
    text.lines().filter(|l| !l.starts_with('#')).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_name_and_by_the_number_that_stands_for_it() {
        let text = "thread: 2\nsummary: 1000\nfn=(1) main\n0 5\ncfn=(2) malloc\ncalls=3 0\n0 90\ncfn=(3) clock_gettime@@GLIBC_2.17\n\
                    calls=2 0\n0 9\ncfn=(4) free\ncalls=9 0\n0 9\nfn=(4)\n0 1\ncfn=(2)\ncalls=4 0\n0 9\n";
        assert_eq!(profile(text), Some(Cost { instructions: 1000.0, allocations: 7.0, clocks: 2.0 }));
        assert_eq!(profile("no profile"), None);
    }

    #[test]
    fn the_committed_figures_name_every_scenario() {
        let file = super::super::root().join("bench/instructions/counts.txt");
        let figures = parse(&fs::read_to_string(file).unwrap());
        for (scenario, ..) in SCENARIOS {
            assert!(figures.get(scenario).is_some_and(|c| c.instructions > 0.0), "{scenario} has no figure");
        }
    }
}
