//! Clients of other languages against `lateen proxy`, in the clear, over mutual TLS, and through a pair of proxies with
//! HTTP/2 and mutual TLS between them. None may see an error.
//!
//! `LATEEN_CLIENT_REQUESTS` says how many requests each client sends. A client that is not installed is told as skipped.
mod lab;
mod python;
mod tools;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use crate::lab::{Lab, Way};

/// What a client does; a text instead of an outcome says why it could not.
type Client = fn(&Lab, Way) -> anyhow::Result<Outcome>;

/// What came of it.
enum Outcome {
    /// In a few words.
    Done(String),
    Skipped(&'static str),
}

const CLIENTS: [(&str, Client); 6] = [
    ("curl", tools::curl),
    ("wrk", tools::wrk),
    ("h2load", tools::h2load),
    ("nghttp", tools::nghttp),
    ("grpc_in_python", python::grpc),
    ("websocket_in_python", python::websocket),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each is to have the machine for itself.
    arguments.test_threads = Some(1);
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(None)).exit_code();
    }
    let lab = match Lab::start() {
        Ok(lab) => Arc::new(lab),
        Err(e) => {
            eprintln!("{e:#}");
            return ExitCode::FAILURE;
        }
    };
    // What the lab started ends when the last trial has let go of it.
    libtest_mimic::run(&arguments, trials(Some(&lab))).exit_code()
}

fn trials(lab: Option<&Arc<Lab>>) -> Vec<Trial> {
    let all = CLIENTS.into_iter().flat_map(|client| Way::ALL.map(|way| (client, way)));
    let trial = |((name, client), way): ((&'static str, Client), Way)| {
        let lab = lab.cloned();
        Trial::test(format!("{name}::{}", way.name()), move || {
            let Some(lab) = lab else { return Ok(()) };
            match client(&lab, way) {
                Ok(Outcome::Done(told)) => eprintln!("{name}, {}: {told}", way.name()),
                Ok(Outcome::Skipped(why)) => eprintln!("skipped: {why}"),
                Err(e) => return Err(format!("{e:#}\n{}", lab.said()).into()),
            }
            lab.saw_no_errors().map_err(|e| format!("{e:#}").into())
        })
    };
    all.map(trial).collect()
}
