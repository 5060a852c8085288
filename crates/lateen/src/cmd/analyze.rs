//! `lateen analyze`: what is wrong with a folder of YAML, without running it.
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use lateen_model::{Diagnostic, Limits, Severity, analyze, load_paths};

use crate::paint::{Paint, Tone};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lateen analyze shop/                 every problem, as file:line:column
  lateen analyze -o json a.yaml | jq   for machines
  lateen analyze --strict shop/        warnings fail too

Exit code: 0 when nothing is wrong, 1 when something is.")]
pub(crate) struct Args {
    /// Files and folders to read
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Namespace of resources that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t = Output::Log)]
    output: Output,
    /// Fail on warnings too
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Log,
    Json,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let loaded = load_paths(&args.paths, &args.namespace, &Limits::default());
    let mut found = loaded.diagnostics;
    found.extend(analyze(&loaded.resources));
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&found)?),
        Output::Log => {
            print(&found);
            eprintln!("{}", summary(&found, loaded.files.len(), loaded.resources.len()));
        }
    }
    let fails = |d: &Diagnostic| d.is_error() || (args.strict && d.severity == Severity::Warning);
    Ok(if found.iter().any(fails) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One line each, coloured by severity on a terminal.
pub(crate) fn print(found: &[Diagnostic]) {
    let paint = Paint::stdout();
    for diagnostic in found {
        let tone = match diagnostic.severity {
            Severity::Error => Tone::Bad,
            Severity::Warning => Tone::Warning,
            Severity::Info => Tone::Quiet,
        };
        println!("{}", paint.first_word_after_position(&diagnostic.to_string(), tone));
    }
}

fn summary(found: &[Diagnostic], files: usize, resources: usize) -> String {
    let count = |severity| found.iter().filter(|d| d.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    format!("{resources} resources in {files} files: {errors} errors, {warnings} warnings")
}
